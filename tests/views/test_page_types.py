"""The scripts of the page have types that hold: TypeScript reads their JSDoc, and nothing is built.

`make types` fetches the compiler once; without node, or before that, there is nothing to ask.
"""

import shutil

import pytest

from tests.scripts import script

checks = script("scripts/check_page_types.py")
with_compiler = pytest.mark.skipif(
    checks.compiler() is None, reason="no node, or no compiler yet: make types fetches it"
)


@with_compiler
def test_types_of_the_page_hold():
    assert checks.errors() == []


WRONG = {
    '$("no-such-id").textContent = "";': "keyof Ids",
    '$("map").value = "1";': "'value' does not exist on type 'HTMLCanvasElement'",
    "weight('1', 2);": "not assignable to parameter of type 'number'",
    "manifest.titel;": "'titel' does not exist on type 'Manifest'",
    'registerView({ name: "mine" });': "is missing the following properties",
}


@with_compiler
def test_wrong_lines_are_found(tmp_path):
    page = tmp_path / "page_files"
    shutil.copytree(checks.PAGE, page)
    script = page / "main.js"
    before = len(script.read_text().splitlines())
    script.write_text("\n".join([script.read_text().rstrip("\n"), *WRONG]) + "\n")
    said = checks.errors(page)
    for number, wanted in enumerate(WRONG.values(), before + 1):
        found = [x for x in said if f"main.js({number}," in x]
        assert any(wanted in x for x in found), (number, said)


def test_every_id_is_there_once():
    found = checks.ids()
    assert found["map"] == "canvas"
    assert len(found) > 60
