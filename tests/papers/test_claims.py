"""Code claims rows that exist, from places that are looked at."""

import ast
from pathlib import Path

import pytest

import regard
from regard.core import method as registry
from regard.core.errors import RegardError
from regard.core.method import claims, claims_of, method
from regard.papers.catalogue import rows
from regard.papers.standing import PLACES, discover, example, where

# Their examples take a model, a pipeline or ranks: `test_examples_of_rows.py` runs them.
IN_CONTEXT = ("controls", "schemes")
ROOT = Path(regard.__file__).parent


@pytest.fixture
def registered(monkeypatch):
    """Make an empty registry for one test."""
    monkeypatch.setattr(registry, "_claims", {})


def written():
    """File, line and key of every `method(...)` in the package."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "method":
                for key in node.args:
                    yield path.relative_to(ROOT), node.lineno, ast.literal_eval(key)


def test_every_claim_is_of_a_row_that_could_run():
    known = {row.key for row in rows() if not row.reading}
    wrong = [(str(path), line, key) for path, line, key in written() if key not in known]
    assert not wrong


def test_every_claim_stands_where_it_is_looked_for():
    looked_at = {*PLACES, "papers"}
    lost = [str(path) for path, _, _ in written() if path.parts[0] not in looked_at]
    assert not lost


def test_every_claim_written_is_found_by_discovery():
    problems = discover()
    found = {claim.key for claim in claims()}
    for path, _, key in written():
        module = ".".join(("regard", *path.with_suffix("").parts))
        broken = any(module.startswith(name) for name in problems)
        assert key in found or broken, f"{key} claimed in {path} was not found"


def test_every_claim_says_where_it_is_and_how_to_call_it():
    discover()
    for claim in claims():
        if claim.module.startswith("regard."):
            file, _, line = where(claim).partition(":")
            assert (ROOT.parent / file).is_file(), claim
            assert line.isdigit(), claim
            ast.parse(example(claim))
            if claim.call and claim.place not in IN_CONTEXT:  # those of docstrings are doctests
                exec(compile(claim.call, claim.key, "exec"), {})


def test_a_claim_knows_its_place(registered):
    @method("moh", "mqa")
    class Toy:
        pass

    Toy.__module__ = "regard.layers.experts"
    method("moh")(Toy)
    here, there = sorted(claims_of("moh"), key=lambda claim: claim.place != "layers")
    assert (here.place, there.place) == ("layers", __name__.partition(".")[0])
    assert here.obj is there.obj is Toy
    assert [claim.key for claim in claims()] == ["moh", "moh", "mqa"]


def test_claiming_twice_from_one_place_is_one_claim(registered):
    def make():
        @method("moh")
        class Toy:
            pass

        return Toy

    make()
    latest = make()
    assert [claim.obj for claim in claims_of("moh")] == [latest]


def test_a_row_without_claims_has_none(registered):
    assert claims_of("moh") == ()


@pytest.mark.parametrize("keys", [(), ("MoH",), ("a row",), (7,), ("moh", "")])
def test_a_key_that_cannot_be_one_is_refused(keys):
    with pytest.raises(RegardError, match="key"):
        method(*keys)


def test_only_named_objects_can_claim():
    with pytest.raises(RegardError, match="a class or a function"):
        method("moh")(3)
