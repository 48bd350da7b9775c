"""Papers can be read where optional packages are not installed: evidence needs none of them."""

import json
import subprocess
import sys

import pytest

from regard.papers.catalogue import rows
from regard.papers.standing import standing

# As if they were not installed.
BLOCKED = """
import sys
for name in ("transformers", "tokenizers", "diffusers", "timm", "captum", "fla", "sklearn", "umap"):
    sys.modules[name] = None
sys.argv = ["regard", *sys.argv[1:]]
from regard.__main__ import main
main()
"""


def shell(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *words], capture_output=True, text=True, timeout=300
    )


def test_every_row_stands_where_it_stood() -> None:
    found = shell("papers", "--json")
    assert found.returncode == 0, found.stderr[-2000:]
    states = {row["key"]: row["state"] for row in json.loads(found.stdout)}
    assert states == {row.key: standing(row.key).state for row in rows()}


def test_a_check_says_what_to_install() -> None:
    pytest.importorskip("diffusers")
    found = shell("papers", "check", "ditctrl")
    assert found.returncode == 2
    assert "diffusers is required" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
