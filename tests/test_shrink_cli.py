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
    told = json.loads(run(*words, "--report", "page")[1])
    page = Path(told["page"]).read_text(encoding="utf-8")
    assert page.count("<tr>") == 1 + len(cells)
    assert told["advice"].replace("'", "&#x27;") in page
    again = told["cells"]
    assert [c["seconds"] for c in again] == [round(c["seconds"], 4) for c in cells]


def test_what_was_measured_of_another_model_or_calibration_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old numbers are never handed out: not after weights, calibration, code or text changed."""
    import torch

    from regard.bench import shrunk_models
    from regard.bench.shrunk_cells import read_cells
    from regard.models.loading import load
    from regard.policies import policy
    from regard.policies.budget import Budget

    model, tokenizer = load()
    model = model.float()
    setting = shrunk_models.Setting(length=160, draws=1, texts=1, steps=4)
    place, counted = tmp_path / "cells.json", []

    def count(model: object, tokens: object, made: object, keep: object, *_: object) -> object:
        counted.append(keep)
        spelled = None if keep is None else Budget.of(keep).label
        return shrunk_models.Cell(
            "full" if made is None else "streaming", spelled, bits=len(counted)
        )

    monkeypatch.setattr(shrunk_models, "measure", count)

    def measured(budgets: tuple[float, ...] = (0.5,), sinks: int = 4) -> int:
        before = len(counted)
        own = [lambda: policy("streaming", sinks=sinks)]
        list(shrunk_models.curves(model, tokenizer, own, budgets, ["ppl"], setting, place))
        return len(counted) - before

    assert [measured(), measured(), measured((0.5, 1)), measured((1.0,))] == [2, 0, 1, 1]
    assert measured(sinks=5) == 1  # other settings: the full model is not measured again
    with torch.no_grad():
        next(model.parameters())[3, 5] += 1  # a number that no sample reaches
    assert [measured(), measured()] == [2, 0]
    monkeypatch.setattr(shrunk_models, "hash_of_code", lambda: "another")
    assert [measured(), measured()] == [2, 0]
    monkeypatch.setattr(shrunk_models, "haystack", lambda: "another text")
    assert [measured(), measured()] == [2, 0]
    assert len(read_cells(place)) == 2
    assert len(list((tmp_path / "older").iterdir())) == 3


def test_a_policy_is_found_again_by_any_of_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regard.bench import shrunk_models
    from regard.models.loading import load

    model, tokenizer = load()
    setting = shrunk_models.Setting(length=160, draws=1, texts=1, steps=4)
    place, counted = tmp_path / "cells.json", []

    def count(model: object, tokens: object, made: object, keep: object, *_: object) -> object:
        counted.append(made)
        name = "full" if made is None else "quest"
        return shrunk_models.Cell(name, None if keep is None else "50%", bits=1.0)

    monkeypatch.setattr(shrunk_models, "measure", count)
    for name in ("pages", "pages", "quest"):
        list(shrunk_models.curves(model, tokenizer, [name], (0.5,), ["ppl"], setting, place))
    assert len(counted) == 2


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
        (("--report", "book"), "--report"),
        (("nowhere/at-all",), "model"),
    ],
)
def test_wrong_words_are_told(words: tuple[str, ...], said: str) -> None:
    _, _, error = run(*words)
    assert isinstance(error, RegardError)
    assert said in str(error)
