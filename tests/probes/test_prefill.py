"""What sparse patterns keep is what the matrix has on their pairs; made heads have their shape."""

import pytest
import torch

from regard.core.errors import CapabilityError, ValueRangeError
from regard.probes.prefill import SHAPES, PrefillPattern
from tests.naive import looked, pointing, random_call, weights

N, TILE = 96, 16


def test_kept_weight_is_that_of_the_matrix():
    call = random_call(n=N, b=1)
    probe = PrefillPattern(density=0.25, tile=TILE)
    found = looked(probe, call)
    a, budget = weights(call)[0], 24
    i, j = torch.arange(N)[:, None], torch.arange(N)
    ends = (a * ((j < 3) | (i - j < budget - 3))).sum((1, 2))
    columns = a.sum(1).topk(budget).values.sum(1)
    by_distance = torch.stack([a.diagonal(-d, 1, 2).sum(1) for d in range(N)], 1)
    slashes = by_distance.topk(budget).values.sum(1)
    tiles = a.unflatten(1, (-1, TILE)).unflatten(3, (-1, TILE)).sum((2, 4))
    blocks = tiles.topk(round(budget / TILE)).values.sum((1, 2))
    wanted = torch.stack([ends, columns, slashes, blocks], 1) / N
    assert torch.allclose(probe.result().details["kept"][call.site], wanted, atol=1e-5)
    assert torch.allclose(found, wanted.amax(1), atol=1e-5)


def test_made_heads_have_their_shape():
    generator = torch.Generator().manual_seed(0)
    few = torch.randperm(N, generator=generator)[:8].sort().values
    heads = {
        "vertical": [int(few[few <= i][i % max(1, int((few <= i).sum()))]) if (few <= i).any()
                     else 0 for i in range(N)],
        "slash": [i - 40 if i >= 40 else i for i in range(N)],
        # Within a tile of keys that lies anywhere, any key.
        "block": [min(i, TILE * ((7 * (i // TILE)) % (i // TILE + 1)) + (5 * i) % TILE)
                  for i in range(N)],
    }  # fmt: skip
    for name in ("vertical", "slash", "block"):
        probe = PrefillPattern(density=0.1, tile=TILE)
        call = pointing(heads[name])
        looked(probe, call)
        kept = dict(zip(SHAPES, probe.result().details["kept"][call.site][0].tolist(), strict=True))
        assert kept[name] == max(kept.values()), (name, kept)
        assert kept[name] > 0.9, (name, kept)
    assert probe.result().details["shape"][call.site] == ["block"]


def test_wrong_settings_and_decoding_are_errors():
    with pytest.raises(ValueRangeError, match="density"):
        PrefillPattern(density=0.0)
    call = random_call(n=N)
    with pytest.raises(CapabilityError, match="whole prompt"):
        looked(PrefillPattern(), call.replace(q=call.q[:, :, -1:], rule=call.rule.shift(N - 1)))
