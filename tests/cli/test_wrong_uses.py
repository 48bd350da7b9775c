"""Every wrong use of the shell is one clear sentence and exit code 2; of a verb, one error."""

from __future__ import annotations

import shlex
import sys

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("pyarrow")

import regard
from regard.cli import main
from regard.cli.app import command
from regard.core.errors import RegardError
from tests.cli.wrong_uses import MODELS, SETTINGS, broken_files, verbs


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    broken_files(folder)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp)


def answered(words: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["regard", *words])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    return left.value.code or 0, out, err


def assert_refused(words: list[str], said: str, monkeypatch, capsys) -> None:
    code, out, err = answered(words, monkeypatch, capsys)
    assert code == 2, (err, out)
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("regard")
    assert said in err
    assert "Fix" in err or "Fix:" in err
    assert len(err) < 600
    assert "Traceback" not in err
    assert "defect" not in err


@pytest.mark.parametrize(("words", "said"), SETTINGS, ids=[words for words, _ in SETTINGS])
def test_bad_settings_are_refused_before_a_model_is_loaded(words, said, tmp, monkeypatch, capsys):
    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("regard.models.loading.load", loaded)
    monkeypatch.setattr("regard.bench.sweep.carry_out_all", loaded)
    assert_refused(shlex.split(words.format(tmp=tmp)), said, monkeypatch, capsys)


@pytest.mark.parametrize(("words", "said"), MODELS, ids=[words for words, _ in MODELS])
def test_models_that_do_not_serve_are_told_in_a_sentence(words, said, tmp, monkeypatch, capsys):
    assert_refused(shlex.split(words.format(tmp=tmp)), said, monkeypatch, capsys)


def leaves(made, path=()):
    below = getattr(made, "commands", {})
    for name, one in below.items():
        yield from leaves(one, (*path, name))
    if not below:
        yield path, made


LEAVES = list(leaves(command()))
NUMBERS = [
    (path, option)
    for path, made in LEAVES for option in made.params
    if option.param_type_name == "option" and type(option.default) in (int, float)
]  # fmt: skip


@pytest.mark.parametrize("path", [path for path, _ in LEAVES], ids=" ".join)
def test_a_flag_that_is_none_is_told(path, monkeypatch, capsys):
    assert_refused([*path, "--nosuch"], "--nosuch", monkeypatch, capsys)


@pytest.mark.parametrize(
    ("path", "option"), NUMBERS, ids=[f"{' '.join(p)} {o.opts[0]}" for p, o in NUMBERS]
)
def test_a_number_in_words_is_told_by_its_flag(path, option, monkeypatch, capsys):
    for flag in option.opts:
        assert_refused([*path, flag, "many"], flag, monkeypatch, capsys)


def test_there_are_a_hundred_and_fifty_and_more():
    assert len(SETTINGS) + len(MODELS) >= 150
    named = {words.split()[0] for words, _ in SETTINGS}
    assert {path[0] for path, _ in LEAVES} <= named


@pytest.fixture(scope="module")
def model():
    from regard.models.loading import load

    return load()


VERBS = list(verbs(None, None))


@pytest.mark.parametrize("case", VERBS)
def test_a_wrong_use_of_a_verb_is_one_error(case, model):
    call, said = verbs(*model)[case]
    with pytest.raises(RegardError, match=said):
        call()


def test_what_is_right_still_is(monkeypatch, capsys):
    code, out, _ = answered(["--version"], monkeypatch, capsys)
    assert (code, out.strip()) == (0, f"regard {regard.__version__}")
