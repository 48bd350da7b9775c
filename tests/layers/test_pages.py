"""What is written about layers is so: the table, the example, the length of methods."""

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from regard.layers import registry
from tests.scripts import script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clean_registry():
    registry.names()  # loads them all
    before = dict(registry._layers.kinds)
    yield
    registry._layers.kinds.clear()
    registry._layers.kinds.update(before)


def test_the_table_of_layers_is_in_step(clean_registry):
    registry._layers.kinds.pop("near", None)
    page = script("scripts/layers_page.py")
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


def test_the_median_method_is_short():
    counts = script("scripts/method_lines.py").counts()
    assert len(counts) > 50
    assert median(counts.values()) < 60


def test_a_layer_from_outside_passes_the_laws():
    """The example of the page, in under 40 lines, through the command that the page gives."""
    text = (ROOT / "examples" / "distance_attention.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs",
         "regard.conformance", "--layer", "examples.distance_attention:NearAttention"],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert " passed" in ran.stdout
    assert "failed" not in ran.stdout


def test_a_layer_that_breaks_a_law_is_found(tmp_path):
    """The suite can fail: a layer that looks ahead, and one that forgets its padding."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from regard.layers import Attention, Capabilities, register\n"
        "from regard.core.support import Everything\n"
        "@register('sees_ahead')\n"
        "class SeesAhead(Attention):\n"
        "    can = Capabilities(bidirectional=False, cross=False)\n"
        "    def support(self):\n"
        "        return Everything()\n",
        encoding="utf-8",
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs",
         "regard.conformance", "--layer", "broken:SeesAhead"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert ran.returncode == 1
    assert "test_the_future_changes_nothing" in ran.stdout
    assert "test_decoding_equals_the_whole" in ran.stdout
