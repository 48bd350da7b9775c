"""MoA: spans that are calibrated, run as they are said, and go on where they were broken off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.core.errors import RegardError
from regard.models.attach import attach
from regard.policies import calibrate, policy
from regard.policies.calibration import read_calibration as read
from regard.policies.moa import HeadSpans, span
from tests.architectures import DECODERS, build

ROWS = [(torch.randint(5, 60, (1, n), generator=torch.Generator().manual_seed(n)), 4)
        for n in (32, 33, 64, 96)]  # fmt: skip


def model() -> Any:
    return build("llama", DECODERS["llama"], causal=True)


def moa(**settings: Any) -> Any:
    return policy("moa_sparse", sinks=2, block=8, shares=(0.5,), **settings)


def test_a_prompt_sees_the_spans_of_the_plan_and_memories_keep_them(tmp_path: Path) -> None:
    path = calibrate(model(), moa(), ROWS, to=tmp_path / "spans")
    found = read(path)["found"]
    # Lengths that differ by little are one; the unfinished block at the end counts.
    assert sorted(found["profile"]) == [33, 64, 96]
    one, ids = moa(), ROWS[-1][0]
    with regard.shrink(model(), one, keep=0.5, calibrate=path, check=False) as shrunk:
        assert one.rules == found["plans"][0.5]
        with torch.no_grad():
            ours = shrunk.model(ids).logits
        kept = [x.kept for x in shrunk.report().layers]
    spans = {x: [span(line, 96, one.block) for line in own] for x, own in one.rules.items()}
    assert kept == [tuple(float(min(96, 2 + s)) for s in spans[x]) for x in sorted(spans)]
    bare = model()
    with attach(bare, [HeadSpans(spans, 2)], check=False), torch.no_grad():
        torch.testing.assert_close(ours, bare(ids).logits)
    for n in (33, 64, 96):
        density = [min(n, 2 + span(x, n, one.block)) / n for own in one.rules.values() for x in own]
        assert sum(density) / len(density) <= 0.5 + 1e-6


def test_a_run_that_was_broken_off_gives_what_it_would_have_given(tmp_path: Path) -> None:
    whole = calibrate(model(), moa(), ROWS, to=tmp_path / "whole")

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model(), moa(), ROWS, to=tmp_path / "broken", progress=stop)
    path = calibrate(model(), moa(), ROWS, to=tmp_path / "broken")
    a, b = read(whole)["found"], read(path)["found"]
    assert a["plans"] == b["plans"]
    for n in a["profile"]:
        torch.testing.assert_close(a["profile"][n], b["profile"][n])


def test_wrong_uses_are_told(tmp_path: Path) -> None:
    with pytest.raises(RegardError, match="at least two lengths"):
        calibrate(model(), moa(), ROWS[:2], to=tmp_path / "x")
    path = calibrate(model(), moa(), ROWS, to=tmp_path / "spans")
    with pytest.raises(RegardError, match="a share of the keys"):
        regard.shrink(model(), moa(), keep=12, calibrate=path, check=False)
    with pytest.raises(RegardError, match="the sinks and one"):
        regard.shrink(model(), moa(), keep=0.02, calibrate=path, check=False)
    with pytest.raises(RegardError, match=r"regard\.policies\.calibrate"):
        regard.shrink(model(), moa(), keep=0.5, check=False)
