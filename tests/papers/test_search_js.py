"""The search of the page finds what `regard papers search` finds, in the same order."""

import json
import shutil
import subprocess
from importlib.resources import files

import pytest

from regard.papers import index as python_index
from regard.papers.catalogue import rows
from regard.papers.index import search
from regard.papers.pages import words_of_search
from tests.papers.more_queries import MORE
from tests.papers.new_queries import NEW
from tests.papers.queries import QUERIES, TUNED

NODE = shutil.which("node")
PROGRAM = """
const { prepare } = require(process.argv[1]);
const { given, rows, questions } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const find = prepare(given, rows);
const said = questions.map((q) => find(q).slice(0, 12).map(([i, score]) => [rows[i].key, score]));
console.log(JSON.stringify(said));
"""
QUESTIONS = [
    *QUERIES.values(), *TUNED.values(), *MORE.values(), *NEW.values(),
    *(one.title for one in rows()), "the the head", "xyzzyplugh", "kv", "ViT & k/v: 3?",
]  # fmt: skip


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_twin_finds_the_same_in_the_same_order(monkeypatch):
    monkeypatch.setattr(python_index, "nearness", lambda question: None)
    given = json.loads(words_of_search())
    parts = [{x: getattr(one, x) for x in ("key", "title", "family", "what")} for one in rows()]
    told = json.dumps({"given": given, "rows": parts, "questions": QUESTIONS})
    script = str(files("regard.papers").joinpath("search.js"))
    run = subprocess.run(
        [NODE, "-e", PROGRAM, script], input=told, capture_output=True, text=True, check=True
    )
    for question, theirs in zip(QUESTIONS, json.loads(run.stdout), strict=True):
        ours = [(hit.row.key, hit.score) for hit in search(question, limit=12)]
        assert [key for key, _ in theirs] == [key for key, _ in ours], question
        assert [score for _, score in theirs] == pytest.approx([score for _, score in ours])
