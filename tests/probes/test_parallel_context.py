"""Parallel contexts are separate runs put together; selection drops whole pieces."""

import math

import pytest
import torch

import regard
from regard.core.call import Call
from regard.core.errors import CapabilityError, ShapeError, ValueRangeError
from regard.models.engine import Engine
from regard.models.loading import load
from regard.models.site import Site
from regard.models.weights import closed_weights
from regard.probes.parallel_context import (
    ParallelContext,
    TailEntropy,
    parallel_contexts,
    parallel_positions,
)

LENGTHS, TAIL, PREFIX = (5, 3, 4), 4, 2
N = PREFIX + sum(LENGTHS) + TAIL
PLACE = Site(0, module="attn", heads=4, kv_heads=2)


def drawn(n=N):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 8, dtype=torch.float64) for h in (4, 2, 2))
    return Call.of(2 * q, k, v, regard.Rule(regard.Causal()), site=PLACE)


def test_the_support_is_written_out_by_piece():
    found = parallel_contexts(LENGTHS, TAIL, PREFIX).matrix(N)[0, 0]
    piece = [-1] * PREFIX + [p for p, n in enumerate(LENGTHS) for _ in range(n)] + [9] * TAIL
    for i in range(N):
        for j in range(N):
            sees = j <= i and (piece[j] == -1 or piece[j] == piece[i] or piece[i] == 9)
            assert bool(found[i, j]) == sees


def test_pieces_stand_at_the_same_places():
    places = parallel_positions(LENGTHS, TAIL, PREFIX)
    assert places.tolist() == [0, 1, *range(2, 7), *range(2, 5), *range(2, 6), *range(7, 11)]


@pytest.fixture(scope="module")
def demo():
    model, tokenizer = load()
    return model.double(), tokenizer  # so that rounding is no question


def test_one_piece_is_the_plain_model(demo):
    model, _ = demo
    ids = torch.randint(20, 2000, (1, 30))
    with torch.no_grad():
        plain = model(ids).logits
        with regard.attach(model, ParallelContext((20,), tail=8, prefix=2), check=False):
            places = parallel_positions((20,), 8, 2)[None]
            assert places.tolist() == [list(range(30))]
            assert torch.allclose(model(ids, position_ids=places).logits, plain, atol=1e-5)


def test_a_piece_reads_as_if_it_were_alone(demo):
    model, _ = demo
    ids = torch.randint(20, 2000, (1, N))
    stage = ParallelContext(LENGTHS, TAIL, PREFIX)
    with torch.no_grad():
        with regard.attach(model, stage, check=False):
            together = model(
                ids, position_ids=parallel_positions(LENGTHS, TAIL, PREFIX)[None]
            ).logits
        for start, length in zip(stage.starts, LENGTHS, strict=False):
            own = torch.cat([ids[:, :PREFIX], ids[:, start : start + length]], 1)
            alone = model(own).logits[:, PREFIX:]
            assert torch.allclose(together[:, start : start + length], alone, atol=1e-9)


@pytest.mark.parametrize("best", [1, 2, 3])
def test_selection_keeps_the_pieces_with_the_most_weight(best):
    call = drawn()
    stage = ParallelContext(LENGTHS, TAIL, PREFIX, best=best)
    out = Engine([stage]).run(call)
    weights = closed_weights(stage.before(call), "test")
    for i in range(N):
        kept = weights[:, :, i].clone()
        masses = torch.stack([
            kept[..., a:b].sum(-1) for a, b in zip(stage.starts, stage.starts[1:], strict=False)
        ])  # fmt: skip
        for p, (a, b) in enumerate(zip(stage.starts, stage.starts[1:], strict=False)):
            rank = (masses > masses[p]).sum(0)
            kept[..., a:b] *= (rank < best)[..., None]
        kept = kept / kept.sum(-1, keepdim=True)
        wanted = torch.einsum("bhm,bhme->bhe", kept, call.v.repeat_interleave(2, 1))
        assert torch.allclose(out[:, :, i], wanted, atol=1e-8)


def test_entropies_are_those_of_the_matrix():
    call = drawn()
    stage = ParallelContext(LENGTHS, TAIL, PREFIX)
    probe = TailEntropy(TAIL, stage)
    Engine([stage, probe]).run(call)
    scores = probe.told()
    weights = closed_weights(stage.before(call), "test")[:, :, -TAIL:]
    wanted = torch.special.entr(weights).sum(-1).mean((0, 2))
    assert torch.allclose(scores.values[PLACE], wanted, atol=1e-6)
    share = torch.stack([
        weights[..., a:b].sum(-1) for a, b in zip(stage.starts, stage.starts[1:], strict=False)
    ])  # fmt: skip
    share = share / share.sum(0)
    by_piece = torch.special.entr(share).sum(0).mean((0, 2))
    assert torch.allclose(scores.details["pieces"][PLACE], by_piece, atol=1e-6)
    assert bool((by_piece <= math.log(3)).all())


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda: ParallelContext(LENGTHS, 2, best=4), ValueRangeError, "best"),
        (lambda: Engine([ParallelContext((2, 2), 2)]).run(drawn()), ShapeError, "6 at most"),
        (lambda: TailEntropy(0), ValueRangeError, "tail"),
    ],
)
def test_bad_contexts_are_refused(ask, error, says):
    with pytest.raises(error, match=says):
        ask()


def test_too_few_queries_have_no_tail():
    probe = TailEntropy(99)
    Engine([probe]).run(drawn())
    with pytest.raises(CapabilityError, match="at least 99"):
        probe.told()
