"""Every program in `examples/` runs, and prints what stands in `examples/output/`.

Numbers differ by machine in their last digits: words must be the same, and so must names of heads.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# What is no recipe: it trains for minutes, starts processes or a server, is no program of its own,
# or is tried with its subject.
ELSEWHERE = {
    *("bench_own_layer", "distance_attention", "serve_in_vllm", "serve_over_http", "spread_model"),
    "steer_a_word",
}
NAMES = sorted(x.stem for x in EXAMPLES.glob("*.py") if x.stem not in ELSEWHERE)


def words_of(text: str) -> str:
    """Text with its numbers masked, names of heads and columns kept; blanks are alike."""
    masked = re.sub(r"(?<![A-Za-z0-9.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", "#", text)
    return " ".join(masked.split())


def test_the_words_of_a_text_keep_names_and_lose_numbers() -> None:
    assert words_of("L3H5 0.92,  1,024 tokens\n") == words_of("L3H5 0.93, 2,048 tokens")
    assert words_of("L3H5 0.92") != words_of("L3H4 0.92")


def test_each_program_has_its_output_and_each_output_its_program() -> None:
    assert {x.stem for x in (EXAMPLES / "output").glob("*.txt")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_prints_what_the_page_shows(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    root = str(EXAMPLES.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = (EXAMPLES / "output" / f"{name}.txt").read_text(encoding="utf-8")
    assert words_of(done.stdout) == words_of(wanted)
