"""The model that ships, its card, and the first command people run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import regard
from regard.models.loading import DEMO, load
from tests.scripts import ROOT, script


@pytest.fixture(scope="module")
def seen():
    return regard.see()


def test_the_model_that_ships_is_small():
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 12e6


def test_its_heads_have_the_roles_that_the_card_says(seen):
    card = json.loads((DEMO.parent / "evaluation.json").read_text())["ablation"]
    for name in card["induction"]["heads"]:
        layer, head = (int(x) for x in name[1:].split("H"))
        assert seen.scores["induction"][layer, head] > 0.35
    assert {head.name for head in seen.top("previous_token", 2)} == {"L1H0", "L2H7"}
    assert seen.scores["sink"].details["rate"] > 0.2
    assert seen.scores["retrieval"].top(1)[0].value > 0.7


def test_kept_heads_are_those_of_the_roles(seen):
    roles = {(site.layer, head) for site, head in seen.roles.first()}
    kept = {(deep.site.layer, deep.head) for deep in seen.deep}
    assert len(kept & roles) >= 8
    assert all(deep.facts["exact"] for deep in seen.deep)


def test_it_starts_every_text_with_its_start_token():
    model, tokenizer = load()
    ids = tokenizer("import os")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == model.config.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "import os"


def test_the_card_is_in_step_with_its_numbers():
    card = script("scripts/demo_model/card.py")
    assert (DEMO.parent / "README.md").read_text(encoding="utf-8") == card.card()


def test_the_pages_of_probes_are_in_step():
    wanted = script("scripts/probes_page.py").pages()
    assert {x.name for x in wanted} == {x.name for x in (ROOT / "docs" / "probes").glob("*.md")}
    for path, text in wanted.items():
        assert path.read_text(encoding="utf-8") == text, path.name


def run(*arguments: str, **more):
    return subprocess.run(
        [sys.executable, "-m", "regard.cli", "see", *arguments],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT, **more,
    )  # fmt: skip


def test_the_first_command_people_run(tmp_path):
    file = tmp_path / "text.py"
    file.write_text((ROOT / "conftest.py").read_text() * 4)
    done = run("--file", str(file), "--out", str(tmp_path / "seen"), "--json", "--heads", "3,5")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert any("induction" in sentence for sentence in said["findings"])
    assert {Path(x).suffix for x in said["files"]} == {".html", ".npz", ".png", ".csv"}
    manifest = json.loads((tmp_path / "seen" / "heads.json").read_text())
    assert [(x["site"], x["head"]) for x in manifest["deep"]] == [(3, 5)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no/such/model"], "check the name"),
        (["--file", "no-such-file.txt"], "a file of text"),
        (["--text", "a", "--file", "b"], "text beside --file"),
        (["--heads", "first"], "pairs such as"),
        (["--probes", "sinkz"], "did you mean"),
        (["--text", "  "], "a value"),
    ],
)
def test_wrong_words_are_answered_in_a_line(arguments, says, tmp_path):
    done = run(*arguments, "--out", str(tmp_path))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
