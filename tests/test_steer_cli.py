"""`regard steer`: strengths side by side, controls listed, wrong words told; and its example."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")

from typer.testing import CliRunner

from regard.controls import known
from regard.core.errors import RegardError

REPOSITORY = Path(__file__).resolve().parent.parent


def run(*words: str) -> tuple[int, str, BaseException | None]:
    import typer

    from regard.cli.steer import command

    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout, done.exception


def test_it_shows_strengths_side_by_side() -> None:
    code, text, error = run("--strength", "0,2", "--tokens", "4", "--json")
    assert code == 0, error
    found = json.loads(text)
    without, none, some = found["strengths"]
    assert without["strength"] is None
    assert none["text"] == without["text"]
    assert none["kl"] == 0
    assert some["kl"] > 0
    before, after = next(iter(some["masses"].values()))
    assert after > before
    assert found["control"][0]["op"] == "AddBias"
    code, text, error = run("--strength", "0,2", "--tokens", "4", "--heads", "1.0,2.3")
    assert code == 0, error
    assert "without |" in text
    assert "strength 2 |" in text


def test_it_lists_the_controls() -> None:
    code, text, _ = run("--list", "--json")
    assert code == 0
    assert {x["control"] for x in json.loads(text)} == {k.name for k in known().values()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--control", "emphasiss"), "did you mean"),
        (("--strength", "much"), "numbers by commas"),
        (("--heads", "3"), "layer.head"),
        (("--layers", "x"), "whole numbers"),
        (("--which", "Paris"), "words of the prompt"),
        (("--prompt", "x = 1"), "words of the prompt to emphasize"),
        (("--tokens", "0"), "at least 1"),
    ],
)
def test_wrong_words_are_told(words: tuple[str, ...], said: str) -> None:
    code, _, error = run(*words)
    assert code != 0
    assert isinstance(error, RegardError)
    assert said in str(error)


def test_the_page_names_every_control() -> None:
    page = (REPOSITORY / "docs" / "steer.md").read_text(encoding="utf-8")
    own = {k.name for k in known().values() if k.__module__.startswith("regard.controls.")}
    lacking = {name for name in own if f"`{name}`" not in page}
    diffusion = {k.name for k in known().values() if k.models == "diffusion"}
    assert not lacking - diffusion


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(REPOSITORY / "examples" / "steer_a_word.py"), run_name="__main__")
    assert "emphasis: changed" in capsys.readouterr().out
