"""No writer of a path that a user names replaces a file of something else without a word.

Every function of the package that writes is in one of two tables: `WRITERS`, which are tried, or
`ELSEWHERE`, with the reason. Tried is that the same may be written again, that another thing of
Regard's and a file of the user's are refused (or, where a folder holds work of hours, moved to
`older/`), and that `overwrite=True` replaces them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import regard
from regard.analysis.overview import HeadCell, draw_overview
from regard.bench.records import TrainingRun, write_speed
from regard.bench.report import write_report
from regard.bench.results import Results, write_tables
from regard.bench.shrunk_cells import Cell
from regard.bench.shrunk_page import write_shrunk_page
from regard.bench.shrunk_picture import picture
from regard.bench.sweep import SweepPlan, keep_plan
from regard.core.errors import RegardError
from regard.memories import Kept, load, save
from regard.views.page import write_page
from regard.views.pictures import draw_heads
from tests.views.runs import seen

# A writer writes what is told by a word to a path; some take `overwrite`.
Writer = Callable[..., Any]


def look(of: str) -> Any:
    """Return a look at a model of this name."""
    made = seen(layers=1, n=60 + len(of), keep=())
    made.made_from = {"model": of, "inputs": "text"}
    return made


def results(of: str) -> Results:
    """Return measured speeds of a layer of this name."""
    row = {"who": of, "what": "forward", "n": 3, "seconds": 1.0, "bytes": 1}
    return Results((), 0, speed=(row,), title="Speed and memory")


def table(of: str, path: Path, **how: Any) -> None:
    """Save a table with its run beside it, as `regard see` does."""
    look(of).save(path, **how)
    look(of).save(path.with_suffix(".npz"), **how)


def mask(of: str, path: Path, **how: Any) -> None:
    """Draw the mask of a window whose size is the length of a word."""
    regard.Rule(regard.Window(len(of))).draw(8, to=str(path), **how)


def overview(of: str, path: Path, **how: Any) -> None:
    """Draw the cell of one head."""
    draw_overview([HeadCell(0, len(of), 0.5, 0.5, 0.5, of)], str(path), **how)


def drawn(of: str, path: Path, **how: Any) -> None:
    """Draw the curve of a policy."""
    cells = [Cell("full", None, bits=1.0), Cell(of, 0.5, bits=2.0, bytes=0.5)]
    picture(cells, path, of, **how)


def plan(of: str, path: Path) -> None:
    """Write the plan of a sweep of one layer."""
    keep_plan(SweepPlan((TrainingRun(of, "copy", "cs", 0, steps=3),), (), "3steps"), path.parent)


WRITERS: dict[tuple[str, str], tuple[str, Writer]] = {
    ("views/page.py", "write_page"):
        ("x.html", lambda of, path, **how: write_page(look(of).run(), path, **how)),
    ("views/run_file.py", "save"): ("x.npz", lambda of, path, **how: look(of).save(path, **how)),
    ("views/seen.py", "save"): ("x.csv", table),
    ("views/pictures.py", "draw_heads"):
        ("x.png", lambda of, path, **how: draw_heads(look(of).run(), path, **how)),
    ("core/draw.py", "_picture"): ("x.png", mask),
    ("analysis/overview.py", "draw_overview"): ("x.png", overview),
    ("bench/shrunk_page.py", "write_shrunk_page"):
        ("x.html", lambda of, path, **how: write_shrunk_page([], [], of, [], path, of, **how)),
    ("bench/shrunk_picture.py", "picture"): ("x.png", drawn),
}  # fmt: skip
# What a folder of `bench` holds: the older is moved aside, since runs of hours go on in it.
FOLDERS: dict[tuple[str, str], tuple[str, Writer]] = {
    ("bench/report.py", "write_report"):
        ("report.html", lambda of, path: write_report(results(of), path)),
    ("bench/results.py", "write_tables"):
        ("results.json", lambda of, path: write_tables(results(of), path.parent)),
    ("bench/records.py", "write_speed"):
        ("speed.json", lambda of, path: write_speed(path, {"layers": [of]}, [])),
    ("bench/sweep.py", "keep_plan"): ("sweep.json", plan),
}  # fmt: skip
ELSEWHERE = {
    ("core/picture_files.py", "write_figure"): "tried by those that call it",
    ("core/files.py", "write_packed"): "tried by those that call it",
    ("core/files.py", "write_json"): "tried by those that call it",
    ("policies/calibration.py", "save_calibration"):
        "tests/policies/test_calibration.py, test_a_calibration_of_something_else_stays",
    ("policies/calibration.py", "calibrate"): "the state of a run that goes on, by its own suffix",
    ("memories/memory_files.py", "save"):
        "a memory goes on, and is saved again: the test below",
    ("memories/blocks.py", "keep"): "named by hashes, in a folder of their own",
    ("bench/training.py", "_train"): "states of unfinished runs, in a folder of their own",
    ("bench/sweep.py", "one"): "named by the hash of settings; an older is moved aside before",
    ("bench/on_ray.py", "carry_out_on_ray"): "as in bench/sweep.py",
    ("bench/kept_cells.py", "add"): "cells of other inputs are moved aside when it is read",
    ("serving/vllm/request_lookback.py", "write"): "named by a request, in the folder of a server",
    ("tour.py", "pictures"): "the one picture of the tour",
}  # fmt: skip


def writing(tree: ast.AST) -> set[str]:
    """Name the functions of a module that write a file."""
    found = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            calls = {ast.unparse(x.func) for x in ast.walk(function) if isinstance(x, ast.Call)}
            if calls & {"write_bytes", "write_json", "write_packed", "write_figure"}:
                found.add(function.name)
    return found


def test_every_writer_is_in_a_table() -> None:
    root, found = Path(regard.__file__).parent, set()
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(root).as_posix()
        found |= {(name, function) for function in writing(tree)}
    assert found == {*WRITERS, *FOLDERS, *ELSEWHERE}


@pytest.fixture(autouse=True)
def _packages() -> None:
    for name in ("matplotlib", "pyarrow"):
        pytest.importorskip(name)


@pytest.mark.parametrize("key", WRITERS, ids=lambda key: "-".join(key))
def test_a_file_of_something_else_stays(key: tuple[str, str], tmp_path: Path) -> None:
    name, write = WRITERS[key]
    place = tmp_path / name
    write("one", place)
    write("one", place)
    held = place.read_bytes()
    with pytest.raises(RegardError, match="overwrite=True"):
        write("other", place)
    assert place.read_bytes() == held
    write("other", place, overwrite=True)
    assert place.read_bytes() != held


@pytest.mark.parametrize("key", [*WRITERS, *FOLDERS], ids=lambda key: "-".join(key))
def test_a_file_that_was_edited_or_is_the_user_s_stays(
    key: tuple[str, str], tmp_path: Path
) -> None:
    name, write = {**WRITERS, **FOLDERS}[key]
    place = tmp_path / name
    write("one", place)
    edited = place.read_bytes().replace(b"0", b"1") + b" "
    for held in (b"the user's", edited) if place.suffix in (".csv", ".html") else (b"the user's",):
        place.write_bytes(held)
        with pytest.raises(RegardError, match="overwrite=True"):
            write("one", place)
        assert place.read_bytes() == held


@pytest.mark.parametrize("key", FOLDERS, ids=lambda key: "-".join(key))
def test_what_a_folder_held_of_something_else_is_moved_aside(
    key: tuple[str, str], tmp_path: Path
) -> None:
    name, write = FOLDERS[key]
    place, older = tmp_path / name, tmp_path / "older"
    write("one", place)
    write("one", place)
    assert not older.exists()
    held = place.read_bytes()
    write("other", place)
    assert held in [path.read_bytes() for path in older.iterdir()]
    assert place.read_bytes() != held


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_picture_that_was_edited_stays_though_it_keeps_its_mark(
    kind: str, tmp_path: Path
) -> None:
    place = tmp_path / f"x.{kind}"
    mask("one", place)
    held = place.read_bytes()
    for at in range(0, len(held), max(1, len(held) // 50)):
        place.write_bytes(held[:at] + bytes([held[at] ^ 1]) + held[at + 1 :])
        with pytest.raises(RegardError, match="overwrite=True"):
            mask("one", place)
    place.write_bytes(held)
    mask("one", place)
    if kind == "png":
        pil = pytest.importorskip("PIL.Image")
        made = pil.open(place)
        assert made.text["Software"].startswith("Regard"), "it opens, and says who made it"
        words = pytest.importorskip("PIL.PngImagePlugin").PngInfo()
        for name, word in made.text.items():
            words.add_text(name, word)
        made.rotate(180).save(place, pnginfo=words)
        with pytest.raises(RegardError, match="overwrite=True"):
            mask("one", place)


def test_a_memory_takes_the_place_of_what_was_saved_of_it_alone(tmp_path: Path) -> None:
    memory, place = Kept(), tmp_path / "keys"
    memory.extend(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    place.write_text("the user's")
    with pytest.raises(RegardError, match="overwrite=True"):
        save(memory, place)
    assert place.read_text() == "the user's"
    save(memory, place, overwrite=True)
    memory.extend(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    save(memory, place)
    assert load(Kept(), place).seen == 4
    loaded = load(Kept(), place)
    loaded.extend(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    save(loaded, place)
    other = Kept()
    other.extend(torch.zeros(1, 1, 9, 2), torch.zeros(1, 1, 9, 2))
    with pytest.raises(RegardError, match="overwrite=True"):
        save(other, place)
    assert load(Kept(), place).seen == 5
    save(other, place, overwrite=True)
    assert load(Kept(), place).seen == 9
