"""`regard calibrate`: files that `regard shrink` uses, and wrong words told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")

from typer.testing import CliRunner

from regard.core.errors import RegardError
from regard.policies.calibration import read_calibration as read


def run(module: str, *words: str) -> tuple[int, str, BaseException | None]:
    import importlib

    import typer

    app = typer.Typer()
    app.command()(importlib.import_module(f"regard.cli.{module}").command)
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout, done.exception


@pytest.mark.parametrize(
    ("name", "words", "held"),
    [
        ("duo_attention", ("--set", "steps=3"), "gates"),
        ("kv_sharer", ("--set", "share=0.25"), "sources"),
        ("minference", ("--set", "block=32"), "patterns"),
        ("moa_sparse", ("--length", "256,384", "--set", "block=16"), "plans"),
        ("seer_attention", ("--set", "steps=2", "--set", "block=32"), "gates"),
        ("pod", ("--set", "window=32"), "sources"),
    ],
)
def test_what_it_writes_is_used(
    name: str, words: tuple[str, ...], held: str, tmp_path: Path
) -> None:
    path, text = tmp_path / "found.cal", tmp_path / "text.txt"
    text.write_text(Path(__file__).read_text(encoding="utf-8") * 2, encoding="utf-8")
    code, said, error = run(
        "calibrate", name, "--to", str(path), "--rows", "2", "--length", "256",
        "--file", str(text), *words,
    )  # fmt: skip
    assert code == 0, error
    assert str(path) in said.replace("\n", "")
    assert held in read(path)["found"]
    code, said, error = run(
        "shrink", "--policy", f"{name},streaming", "--keep", "0.75", "--eval", "needle",
        "--length", "200", "--draws", "1", "--calibrate", str(path), "--out", str(tmp_path),
        "--json",
    )  # fmt: skip
    assert code == 0, error
    assert [c["policy"] for c in json.loads(said)["cells"]] == ["full", name, "streaming"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("snapkv",), "needs no calibration"),
        (("duo_atention",), "near: duo_attention"),
        (("duo_attention", "--set", "steps"), "--set"),
        (("duo_attention", "--set", "step=3"), "steps"),
        (("duo_attention", "--rows", "0"), "--rows"),
        (("duo_attention", "--length", "many"), "--length"),
        (("moa_sparse", "--rows", "1"), "two lengths"),
        (("duo_attention", "--length", "40"), "length"),
        (("duo_attention", "--file", "no-such-file.txt"), "--file"),
        (("duo_attention", "nowhere/at-all"), "model"),
    ],
)
def test_wrong_words_are_told(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    _, _, error = run("calibrate", *words, "--to", str(tmp_path / "x.cal"))
    assert isinstance(error, RegardError)
    assert said in str(error)
    assert not list(tmp_path.iterdir())
