"""`regard shrink`: numbers and a picture, resumed, and wrong words told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from regard.core.errors import RegardError


def run(*words: str) -> tuple[int, str, BaseException | None]:
    import typer

    from regard.cli.shrink import command

    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout, done.exception


def test_it_measures_and_draws_and_does_not_measure_twice(tmp_path: Path) -> None:
    words = ("--policy", "streaming,quantized", "--keep", "64tok", "--eval", "needle", "--length",
             "160", "--draws", "1", "--out", str(tmp_path), "--json")  # fmt: skip
    code, text, error = run(*words)
    assert code == 0, error
    cells = json.loads(text)["cells"]
    assert [c["policy"] for c in cells] == ["full", "streaming", "quantized"]
    assert cells[1]["bytes"] < 0.6
    assert (tmp_path / "quality-memory.png").stat().st_size > 5000
    again = json.loads(run(*words)[1])["cells"]
    assert [c["seconds"] for c in again] == [round(c["seconds"], 4) for c in cells]


def test_it_lists_the_policies() -> None:
    code, text, _ = run("--list")
    assert code == 0
    assert "snapkv" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--policy", "snapvk"), "near: snapkv"),
        (("--eval", "magic"), "needle"),
        (("--keep", "much"), "--keep"),
        (("nowhere/at-all",), "model"),
    ],
)
def test_wrong_words_are_told(words: tuple[str, ...], said: str) -> None:
    _, _, error = run(*words)
    assert isinstance(error, RegardError)
    assert said in str(error)
