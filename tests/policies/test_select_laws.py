"""What a policy that reads fewer keys must read in any case, over all that are registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from regard.core.call import Call
from regard.models.attach import attach
from regard.models.stage import Stage
from regard.policies import known
from regard.policies.scoring import best
from regard.policies.selecting import Selecting
from regard.policies.shrinking import Shrinking
from tests.architectures import sharp_llama
from tests.policies.test_laws import prepared

LENGTH, PAD = 150, 37
SELECTING = sorted({k.name for k in known().values() if issubclass(k, Selecting)})


class Newest(Stage):
    """Hold the newest key of each call, as the model made it."""

    def before(self, call: Call) -> Call:
        """Take it before a policy reads the memory."""
        self.key = call.k[:, :, -1:]
        return call


class Reads(Stage):
    """Note where the newest key is not among those of a single query."""

    def __init__(self, newest: Newest) -> None:
        super().__init__()
        self.newest, self.missed, self.calls = newest, list[str](), 0

    def see(self, call: Call, result: Any) -> None:
        """Look for it in every row and head."""
        if call.n > 1:
            return
        found = (call.k == self.newest.key).all(-1)
        if call.k_positions is not None:
            at = call.k_positions
            found &= (at[:, None] if at.dim() == 2 else at) >= 0
        self.calls += 1
        if not bool(found.any(-1).all()):
            self.missed.append(f"layer {call.site.layer}: {found.any(-1).tolist()}")


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("keep", [0.1, 0.3, 9, 40])
@pytest.mark.parametrize("name", SELECTING)
def test_a_step_reads_the_newest_key(name: str, keep: Any, padded: bool) -> None:
    model = sharp_llama(2)
    made = prepared(name, model)
    if name == "duo_attention" and not isinstance(keep, float):
        pytest.skip("its budget is a share of the heads")
    ids = torch.randint(5, 60, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    real = torch.ones_like(ids)
    real[0, : PAD if padded else 0] = 0
    newest = Newest()
    reads = Reads(newest)
    with attach(model, [newest, Shrinking([made], keep), reads], check=False):
        model.generate(
            ids, attention_mask=real, max_new_tokens=20, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
    assert reads.calls >= 2 * 18
    assert not reads.missed


def test_of_equal_scores_the_newest_stay() -> None:
    score, at = torch.zeros(1, 1, 7), torch.tensor([[[-1, -1, 2, 3, 4, 5, 6]]])
    assert best(score, torch.tensor([[3]]), at).tolist() == [[[4, 5, 6]]]


@torch.no_grad()
@pytest.mark.parametrize("name", SELECTING)
def test_an_index_waits_for_no_more_than_it_takes_in_at_once(name: str) -> None:
    model = sharp_llama(2)
    made = prepared(name, model)
    ids = torch.randint(5, 60, (1, 50), generator=torch.Generator().manual_seed(1))
    stage = Shrinking([made], 0.5)
    with attach(model, [stage], check=False):
        model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
        for layer in stage.layers:
            index = layer.extra.get(name)
            if index is not None:
                m = layer.memory.keys().m
                assert 0 <= m - len(index) < index.takes
                assert len(index) >= m // index.takes * index.takes > 0
