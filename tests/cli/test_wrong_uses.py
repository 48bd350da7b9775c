"""Every wrong use of the shell is one clear sentence and exit code 2; of a verb, one error."""

from __future__ import annotations

import os
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
from regard.core.errors import CapabilityError, RegardError, fail
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
    assert_refused(shlex.split(words.format(tmp=tmp, digits="9" * 5000)), said, monkeypatch, capsys)


@pytest.mark.parametrize(("words", "said"), MODELS, ids=[words for words, _ in MODELS])
def test_models_that_do_not_serve_are_told_in_a_sentence(words, said, tmp, monkeypatch, capsys):
    assert_refused(shlex.split(words.format(tmp=tmp, digits="9" * 5000)), said, monkeypatch, capsys)


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


def typed_with(path, option, word) -> list[str]:
    """A use of an option or argument with a word; a dash keeps it from being taken for a flag."""
    if option.param_type_name == "argument":
        return [*path, "--", word]
    made = dict(LEAVES)[path]
    needed = ["x" for one in made.params if one.param_type_name == "argument" and one.required]
    return [*path, f"{max(option.opts, key=len)}={word}", *needed]


def named(option) -> str:
    return "word" if option.param_type_name == "argument" else max(option.opts, key=len)


VALUED = [
    (path, option)
    for path, made in LEAVES for option in made.params
    if option.param_type_name == "argument" or not option.is_flag
]  # fmt: skip


@pytest.mark.parametrize("word", ["", "  "])
@pytest.mark.parametrize(
    ("path", "option"), VALUED, ids=[f"{' '.join(p)} {o.name}" for p, o in VALUED]
)
def test_an_empty_word_is_refused_everywhere(path, option, word, monkeypatch, capsys):
    assert_refused(typed_with(path, option, word), named(option), monkeypatch, capsys)


def test_an_empty_word_after_its_flag_is_told_by_the_flag(monkeypatch, capsys):
    assert_refused(["see", "--out", ""], "--out", monkeypatch, capsys)


@pytest.mark.parametrize("word", ["9" * 30, "-" + "9" * 30, "nan", "inf", "1e999"])
@pytest.mark.parametrize(
    ("path", "option"), NUMBERS, ids=[f"{' '.join(p)} {o.opts[0]}" for p, o in NUMBERS]
)
def test_a_number_that_is_none_is_refused_everywhere(path, option, word, monkeypatch, capsys):
    whole = type(option.default) is int
    if not whole and word.strip("-9") == "":
        return  # a large number, and a finite one
    assert_refused(typed_with(path, option, word), named(option), monkeypatch, capsys)


WORDS = [
    (path, option) for path, option in VALUED
    if option.param_type_name == "option" and type(option.default) not in (int, float)
    and "Path" not in str(option.type_descriptor.annotation)
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "option"), WORDS, ids=[f"{' '.join(p)} {o.name}" for p, o in WORDS]
)
def test_words_that_are_no_utf_8_are_refused_everywhere(path, option, monkeypatch, capsys):
    assert_refused(typed_with(path, option, "a\udce4"), named(option), monkeypatch, capsys)


# What may be long: a text to read, a prompt, names of branches, of controls.
FREE = ("text", "prompt", "revision", "which")
LONG = [(path, option) for path, option in WORDS if option.name not in FREE]


@pytest.mark.parametrize("word", ["9" * 5000, "(" * 3000], ids=["digits", "brackets"])
@pytest.mark.parametrize(("path", "option"), LONG, ids=[f"{' '.join(p)} {o.name}" for p, o in LONG])
def test_a_word_of_any_length_is_refused_everywhere(path, option, word, monkeypatch, capsys):
    """Python reads no number of more than 4,300 digits, and a sentence repeats no such word."""

    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("regard.models.loading.load", loaded)
    assert_refused(typed_with(path, option, word), "", monkeypatch, capsys)


FILES = [
    (path, option) for path, option in VALUED
    if "Path" in str(option.type_descriptor.annotation) or option.name in ("model", "a", "folder")
]  # fmt: skip


@pytest.mark.parametrize("kind", ["/dev/zero", "/dev/urandom", "pipe"])
@pytest.mark.parametrize(
    ("path", "option"), FILES, ids=[f"{' '.join(p)} {o.name}" for p, o in FILES]
)
def test_a_file_without_end_is_refused_everywhere(path, option, kind, tmp, monkeypatch, capsys):
    """A pipe that nobody writes to ends nothing either, but text may come through one."""

    def loaded(*_, **__):
        fail(CapabilityError, "model", "a load", "none before the settings are right", "check them")

    monkeypatch.setattr("regard.models.loading.load", loaded)
    word = kind
    if kind == "pipe":
        if option.name == "file":
            return
        word = str(tmp / "pipe")
        if not (tmp / "pipe").exists():
            os.mkfifo(word)
    words = typed_with(path, option, word)
    if path[-1] == "compare":
        words.append("other")
    if path[-1] == "calibrate":
        words = ["duo_attention" if one == "x" else one for one in words]
        if option.name == "model":
            words.insert(-1, "duo_attention")
    assert_refused(words, "", monkeypatch, capsys)


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
