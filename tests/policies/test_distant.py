"""PoD: groups are found in texts, in one run or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.core.errors import RegardError
from regard.memories import NearKeys, load, save
from regard.policies import calibrate, policy
from regard.policies.calibration import read_calibration as read
from tests.architectures import DECODERS, build

TEXTS = [torch.randint(5, 60, (1, 60), generator=torch.Generator().manual_seed(i))
         for i in range(3)]  # fmt: skip


def model() -> Any:
    return build("llama", {**DECODERS["llama"], "num_hidden_layers": 4}, causal=True)


def pod(**settings: Any) -> Any:
    return policy("pod", sinks=2, window=8, **settings)


def test_groups_are_found_and_a_broken_run_goes_on(tmp_path: Path) -> None:
    whole = calibrate(model(), pod(like=0.0), TEXTS, to=tmp_path / "whole")
    assert read(whole)["found"]["sources"] == {1: 0, 2: 0, 3: 0}

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model(), pod(), TEXTS, to=tmp_path / "broken", progress=stop)
    path = calibrate(model(), pod(), TEXTS, to=tmp_path / "broken")
    again = calibrate(model(), pod(), TEXTS, to=tmp_path / "again")
    assert read(path)["found"] == read(again)["found"]
    none = calibrate(model(), pod(like=1.1), TEXTS, to=tmp_path / "none")
    with regard.shrink(model(), pod(), keep=0.5, calibrate=none, check=False) as shrunk:
        shrunk.model(TEXTS[0])
        assert shrunk.report().bytes == shrunk.report().full_bytes


def test_wrong_uses_are_told(tmp_path: Path) -> None:
    with pytest.raises(RegardError, match="more than the 4096"):
        calibrate(model(), policy("pod"), TEXTS, to=tmp_path / "x")
    with pytest.raises(RegardError, match=r"regard\.policies\.calibrate"):
        regard.shrink(model(), pod(), keep=0.5, check=False)


def test_near_keys_go_back_beams_follow_and_files_hold_them(tmp_path: Path) -> None:
    k, v = torch.randn(2, 2, 20, 4), torch.randn(2, 2, 20, 4)
    memory = NearKeys(window=5, sinks=2)
    memory.extend(k[:, :, :6], v[:, :, :6])
    memory.crop(4)
    memory.extend(k[:, :, 4:], v[:, :, 4:])
    memory.settle()
    near = memory.near()
    slots = [0, 1, 15, 16, 17, 18, 19]
    assert near.positions is not None
    assert near.positions[0].tolist() == slots
    assert torch.equal(near.k, k[:, :, slots])
    assert torch.equal(near.v, v[:, :, slots])
    assert torch.equal(memory.read().v, v)
    with pytest.raises(RegardError, match="dropped"):
        memory.crop(10)
    again = load(NearKeys(window=5, sinks=2), save(memory, tmp_path / "keys"))
    again.reorder(torch.tensor([1, 1]))
    assert torch.equal(again.near().k, k[[1, 1]][:, :, slots])
