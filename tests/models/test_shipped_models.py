"""The models that ship are small and have cards in step; the loop that trains them resumes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

import regard
from tests.scripts import script

DEMO = Path(regard.__file__).parent / "demo"


@pytest.mark.parametrize("name", ["describer", "painter"])
def test_what_ships_is_small_and_has_a_card_in_step(name: str) -> None:
    folder = DEMO / name
    assert sum(x.stat().st_size for x in folder.iterdir()) < 6e6
    card = script(f"scripts/{name}/card.py").card()
    assert (folder / "README.md").read_text(encoding="utf-8") == card


def trained(home: Any, out: Path, *stops: int) -> tuple[nn.Module, nn.Module, list[Any]]:
    """Train a map of two numbers in as many runs as there are stops."""
    for stop in stops:
        torch.manual_seed(0)
        model, mean = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)) for _ in range(2))

        def loss_of(step: int, model: nn.Module = model) -> Tensor:
            x = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
            loss: Tensor = (model(x)[:, 0] - x.sum(1)).square().mean()
            return loss

        home.train(
            model, home.optimizers(model, lambda name: name == "0.weight", 0.02, 3e-3), loss_of,
            partial(home.rate, steps=12, warm_up=2, cool_down=0.5), out, stop, log_every=4,
            mean=mean, keep=lambda step: 0.5,
        )  # fmt: skip
    return model, mean, [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    home = script("scripts/small_models.py")
    model, mean, lines = trained(home, tmp_path / "whole", 12)
    again, other, more = trained(home, tmp_path / "broken", 7, 12)
    for a, b in ((model, again), (mean, other)):
        for x, y in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(x, y)
    assert [x["step"] for x in lines] == [4, 8, 12]
    assert [x["step"] for x in more] == [4, 7, 8, 12]
    assert lines[-1]["loss"] == more[-1]["loss"]
    assert more[-1]["seconds"] >= more[1]["seconds"]
