"""Calibration: files that are checked, and runs that go on after they were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.core.errors import RegardError
from regard.memories import Kept
from regard.memories.memory_files import save as save_memory
from regard.policies import calibrate, policy
from regard.policies.calibration import read_calibration as read
from tests.architectures import DECODERS, build

ROWS = [(torch.randint(5, 60, (1, 40), generator=torch.Generator().manual_seed(i)), 6)
        for i in range(3)]  # fmt: skip


def model() -> Any:
    return build("llama", DECODERS["llama"], causal=True)


def duo(steps: int = 8) -> Any:
    return policy("duo_attention", sinks=1, recent=4, steps=steps)


def test_a_run_that_was_broken_off_gives_what_it_would_have_given(tmp_path: Path) -> None:
    whole = calibrate(model(), duo(), ROWS, to=tmp_path / "whole")

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model(), duo(), ROWS, to=tmp_path / "broken", progress=stop)
    seen: list[int] = []
    path = calibrate(
        model(), duo(), ROWS, to=tmp_path / "broken", progress=lambda done, _: seen.append(done)
    )
    assert seen == [4, 5, 6, 7, 8]
    assert read(path)["found"] == read(whole)["found"]
    assert not list(tmp_path.glob("*.part"))


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    code = (
        "from tests.policies.test_calibration import *\n"
        "import time, sys\n"
        f"calibrate(model(), duo(200), ROWS, to={str(tmp_path / 'heads')!r},"
        " progress=lambda d, _: time.sleep(0.02))\n"
    )
    root = Path(regard.__file__).parents[1]
    ran = subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ})
    part = tmp_path / "heads.part"
    until = time.monotonic() + 90
    while time.monotonic() < until and not (part.exists() and read(part)["state"]["step"] > 3):
        time.sleep(0.05)
    ran.send_signal(signal.SIGKILL)
    ran.wait()
    done = read(part)["state"]["step"]
    assert 3 < done < 200
    first: list[int] = []

    def note(step: int, _: int) -> None:
        first.append(step)
        if len(first) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model(), duo(200), ROWS, to=tmp_path / "heads", progress=note)
    assert first == [done + 1, done + 2]


def test_a_calibration_serves_its_own_model_and_policy(tmp_path: Path) -> None:
    path = calibrate(model(), duo(), ROWS, to=tmp_path / "heads")
    with regard.shrink(model(), duo(), keep=0.5, calibrate=path, check=False) as shrunk:
        shrunk.model(ROWS[0][0])
        kept = [sum(x.kept) for x in shrunk.report().layers]
        assert sum(kept) == 2 * 40 + 2 * 5  # two of four heads, and sinks and window of the others
    with regard.shrink(model(), "lserve", keep=16, calibrate=path, check=False):
        pass
    other = model()
    with torch.no_grad():
        other.lm_head.weight += 1
    with pytest.raises(RegardError, match="another LlamaForCausalLM"):
        regard.shrink(other, duo(), calibrate=path)
    with pytest.raises(RegardError, match="a calibration of 'duo_attention'"):
        regard.shrink(model(), "kv_sharer", calibrate=path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RegardError, match="checksum"):
        regard.shrink(model(), duo(), calibrate=path)


def test_only_the_same_run_goes_on_from_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model(), duo(), ROWS, to=tmp_path / "heads", progress=stop)
    with pytest.raises(RegardError, match="other settings"):
        calibrate(model(), duo(9), ROWS, to=tmp_path / "heads")
    with pytest.raises(RegardError, match=r"different: inputs"):
        calibrate(model(), duo(), ROWS[:2], to=tmp_path / "heads")
    with monkeypatch.context() as patched:
        patched.setattr("regard.policies.calibration.hash_of_code", lambda: "another")
        with pytest.raises(RegardError, match=r"different: code"):
            calibrate(model(), duo(), ROWS, to=tmp_path / "heads")
    other = model()
    other.config.rope_parameters = {"rope_type": "default", "rope_theta": 77.0}
    with pytest.raises(RegardError, match=r"different: model"):
        calibrate(other, duo(), ROWS, to=tmp_path / "heads")
    with pytest.raises(RegardError, match="it needs none"):
        calibrate(model(), "snapkv", ROWS, to=tmp_path / "x")


def test_what_the_user_wrote_is_not_overwritten(tmp_path: Path) -> None:
    from regard.memories import Kept, save

    place = tmp_path / "heads"
    place.write_text("the user's")
    with pytest.raises(RegardError, match="overwrite=True"):
        calibrate(model(), duo(), ROWS, to=place)
    with pytest.raises(RegardError, match="overwrite=True"):
        save(Kept(), place)
    assert place.read_text() == "the user's"
    calibrate(model(), duo(2), ROWS, to=place, overwrite=True)
    calibrate(model(), duo(2), ROWS, to=place)  # its own is replaced
    assert read(place)["policy"] == "duo_attention"


def test_a_calibration_of_something_else_stays(tmp_path: Path) -> None:
    """Of another model, policy or text; and no other kind of file goes for a calibration."""
    path = calibrate(model(), duo(), ROWS[:1], to=tmp_path / "heads")
    held = path.read_bytes()
    other = model()
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    for given, inputs in ((other, ROWS[:1]), (model(), ROWS[1:2])):
        with pytest.raises(RegardError, match="another model or other inputs"):
            calibrate(given, duo(), inputs, to=path)
    memory = Kept()
    memory.extend(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    with pytest.raises(RegardError, match="overwrite=True"):
        save_memory(memory, path)
    assert path.read_bytes() == held
    calibrate(model(), duo(), ROWS[:1], to=path)  # the same again
    calibrate(other, duo(), ROWS[:1], to=path, overwrite=True)
    assert path.read_bytes() != held


def test_a_full_disk_is_told_and_the_weights_can_be_trained_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    made = model()
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RegardError, match=r"(?i)no space left"):
        calibrate(made, duo(), ROWS, to=tmp_path / "heads")
    assert all(p.requires_grad for p in made.parameters())


def test_sharers_find_a_map_and_patterns_are_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = build("llama", {**DECODERS["llama"], "num_hidden_layers": 4}, causal=True)
    texts = [row for row, _ in ROWS]
    path = calibrate(made, policy("kv_sharer", least=-1.0), texts, to=tmp_path / "map")
    sources = read(path)["found"]["sources"]
    assert len(sources) == 1
    assert all(source < layer for layer, source in sources.items())
    one = policy("minference", block=8)
    found = read(calibrate(made, one, texts, to=tmp_path / "lines"))["found"]["patterns"]
    assert set(found) == {0, 1, 2, 3}
    assert all(name in one.kinds for own in found.values() for name in own)


@pytest.mark.parametrize("keep", ["25%", 16, "8kB"])
def test_a_pattern_is_searched_at_any_budget(keep: Any, tmp_path: Path) -> None:
    """The budget was read as a share, whatever it was."""
    ids = torch.randint(5, 60, (1, 64), generator=torch.Generator().manual_seed(0))
    made = policy("minference", block=8, last=8, keep=keep)
    path = calibrate(model(), made, [ids], to=tmp_path / "patterns")
    assert len(read(path)["found"]["patterns"]) == 2
    same = calibrate(model(), policy("minference", block=8, last=8, keep=1.0), [ids],
                     to=tmp_path / "all")  # fmt: skip
    assert read(same)["found"]["patterns"].keys() == read(path)["found"]["patterns"].keys()
