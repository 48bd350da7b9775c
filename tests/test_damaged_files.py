"""Every reader against damage: one kind of error, or the very content that was written.

Quick runs try a few hundred damaged files for each reader, nightly ones 10,000 (2,000 folders of
models). Two laws: bytes that were damaged; and content that was made wrong by somebody who knows
the format, with a checksum that holds.
"""

from __future__ import annotations

import ast
import copy
import importlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import regard
from regard.bench.kept_cells import CELLS, KeptCells
from regard.bench.records import BEGUN as RUN_BEGUN
from regard.bench.records import RECORD, RESULTS, SPEED, SWEEP, TrainingRun, read_record, read_speed
from regard.bench.results import read_folder
from regard.bench.run_locks import claim, stale
from regard.bench.shrunk_cells import read_cells
from regard.core.files import (
    FileError,
    FileKind,
    read_json,
    read_packed,
    write_json,
    write_packed,
)
from regard.memories import Kept, load, save
from regard.memories.blocks import BLOCK, TextBlock, TextBlocks
from regard.memories.memory_files import MEMORY
from regard.policies.calibration import BEGUN, CALIBRATION, read_calibration
from regard.serving.vllm.request_lookback import LOOKBACK, read_lookback
from regard.views.run_file import RUN
from regard.views.run_file import Run as SeenRun
from tests.conftest import FUZZ

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
TRIES = {"quick": 300, "ci": 400, "nightly": 10_000, "fuzz": FUZZ}[PROFILE]
FOLDERS = {"quick": 12, "ci": 40, "nightly": 2_000, "fuzz": 2_000}[PROFILE]


class Case:
    """A file of one kind: how it is written, what reads it, and what was written."""

    kind: FileKind

    def __init__(self, folder: Path) -> None:
        self.path = folder / "file"

    def write(self) -> None: ...
    def read(self) -> Any: ...


class OfRun(Case):
    kind = RUN

    def write(self) -> None:
        arrays = {"scores/x": np.arange(40, dtype=np.float32), "role": np.ones((2, 3), np.int8)}
        self.path = SeenRun({"title": "a run", "tokens": ["a"] * 30}, arrays).save(self.path)

    def read(self) -> Any:
        run = SeenRun.load(self.path)
        return run.manifest, {name: (x.dtype, x.tolist()) for name, x in run.arrays.items()}


class OfMemory(Case):
    kind = MEMORY

    def write(self) -> None:
        memory = Kept()
        memory.extend(torch.arange(48.0).view(1, 2, 6, 4), torch.ones(1, 2, 6, 4))
        memory.choose(torch.tensor([[[0, 1, 5], [2, 3, -1]]]))
        save(memory, self.path)

    def read(self) -> Any:
        return [x.tolist() for x in load(Kept(), self.path).read() if x is not None]


class OfBlock(Case):
    kind = BLOCK

    def __init__(self, folder: Path) -> None:
        self.path, self.folder = folder / "name.block", folder

    def write(self) -> None:
        x = (torch.arange(12.0).view(1, 1, 3, 4),)
        TextBlocks("a model", folder=self.folder).keep("name", TextBlock(x, x))

    def read(self) -> Any:
        found = TextBlocks("a model", folder=self.folder).find("name")
        return [x.tolist() for x in (*found.k, *found.v)]


class OfCalibration(Case):
    kind = CALIBRATION
    content: ClassVar[dict[str, Any]] = {
        "policy": "duo_attention", "model": "0" * 32, "kind": "Llama", "settings": {"steps": 3},
        "found": {"gates": {0: [0.5, 1.0], 1: [0.0, 0.25]}},
    }  # fmt: skip

    def write(self) -> None:
        write_packed(self.path, self.content, self.kind)

    def read(self) -> Any:
        return read_calibration(self.path)


class OfBegunCalibration(OfCalibration):
    kind = BEGUN
    content: ClassVar[dict[str, Any]] = {
        "about": {"policy": "x"},
        "state": {"step": 3, "gates": torch.ones(3)},
    }

    def __init__(self, folder: Path) -> None:
        self.path = folder / "file.part"

    def read(self) -> Any:
        found = read_calibration(self.path)
        return found["about"], repr(found["state"])


class OfJson(Case):
    content: ClassVar[dict[str, Any]]

    def write(self) -> None:
        write_json(self.path, self.content, self.kind)

    def read(self) -> Any:
        return read_json(self.path, self.kind)


class OfRecord(OfJson):
    kind = RECORD
    content: ClassVar[dict[str, Any]] = {
        "key": "k", "run": vars(TrainingRun("mha", "copy", "cs", 0, steps=3)),
        "inputs": {"code": "x"},
        "score": 0.5, "chance": 0.1, "curve": [{"share": 0.5}], "steps": 3, "machine": {},
        "tests": {"copy": {"score": 0.5, "error": 0.01, "chance": 0.1}},
    }  # fmt: skip

    def read(self) -> Any:
        return read_record(self.path)


class OfSweep(OfJson):
    kind = SWEEP
    content: ClassVar[dict[str, Any]] = {
        "runs": [vars(TrainingRun("mha", "copy", "cs", 0, steps=3))],
        "budget": "3steps", "code": "x",
        "left_out": [["a", "b", "cs", "why"]],
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sweep.json"

    def read(self) -> Any:
        found = read_folder(self.path.parent)
        return found.planned, found.left_out, found.budget


class OfSpeed(OfJson):
    kind = SPEED
    content: ClassVar[dict[str, Any]] = {
        "settings": {"dim": 3},
        "code": "x",
        "rows": [{"n": 3}] * 4,
    }

    def read(self) -> Any:
        return read_speed(self.path)


class OfResults(OfJson):
    kind = RESULTS
    content: ClassVar[dict[str, Any]] = {"records": [{"score": 0.5, "name": "é"}], "speed": []}


class OfBegunRun(Case):
    kind = RUN_BEGUN

    def write(self) -> None:
        state = {"about": {"run": {}}, "adam": {"state": {0: {"step": torch.tensor(3.0)}}}}
        write_packed(self.path, state, self.kind)

    def read(self) -> Any:
        return repr(read_packed(self.path, self.kind))


class OfCells(OfJson):
    kind = CELLS
    content: ClassVar[dict[str, Any]] = {
        "setting": {"length": 5}, "inputs": {"model": "m"},
        "cells": [{"policy": "full", "keep": None, "bits": 0.5, "of": "full"}],
    }  # fmt: skip

    def read(self) -> Any:
        return read_cells(self.path)


class OfLookback(OfJson):
    kind = LOOKBACK
    content: ClassVar[dict[str, Any]] = {
        "tokens": 3,
        "lookback": [{"layer": 2, "heads": [0.25, 0.75]}],
    }

    def read(self) -> Any:
        return read_lookback(self.path)


CASES = {
    case.kind.name: case
    for case in (
        OfRun, OfMemory, OfBlock, OfCalibration, OfBegunCalibration, OfRecord, OfSweep, OfSpeed,
        OfResults, OfBegunRun, OfCells, OfLookback,
    )
}  # fmt: skip


def kinds_of_the_package() -> set[str]:
    """Return the names of all kinds of files, found where the sources define them.

    What was imported before, and what other tests define, counts nothing.
    """
    root, found = Path(regard.__file__).parent, set()
    for path in root.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            value = node.value if isinstance(node, ast.Assign) else None
            if isinstance(value, ast.Call) and ast.unparse(value.func) == "FileKind":
                module = ".".join(("regard", *path.relative_to(root).with_suffix("").parts))
                names = [ast.unparse(x) for x in node.targets]
                found |= {getattr(importlib.import_module(module), x).name for x in names}
    return found


def test_every_kind_of_file_is_in_the_table() -> None:
    """A kind that is added to the package must be damaged here."""
    assert kinds_of_the_package() == set(CASES)


def outcome(read: Callable[[], Any]) -> tuple[Any, FileError | None]:
    """What a reader gives, or the error of a bad file; any other error fails the test."""
    try:
        return read(), None
    except FileError as error:
        return None, error


def damaged(body: bytes, draw: random.Random) -> bytes:
    """Cut off, flip bits, overwrite, drop, repeat, or add."""
    made, way = bytearray(body), draw.randrange(7)
    at, size = draw.randrange(len(body)), draw.randint(1, 1 + len(body) // 4)
    if way == 0:
        return bytes(made[:at])
    if way <= 2:
        for _ in range(draw.choice((1, 1, 1, 2, 8))):
            made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    elif way == 3:
        made[at : at + size] = draw.randbytes(len(made[at : at + size]))
    elif way == 4:
        del made[at : at + size]
    elif way == 5:
        made[at:at] = made[at : at + size]
    else:
        made += draw.choice((b"\0" * size, b"\n", draw.randbytes(size)))
    return bytes(made)


@pytest.mark.parametrize("name", CASES)
def test_damage_is_told_or_changes_nothing(name: str, tmp_path: Path, seed: int) -> None:
    case, draw = CASES[name](tmp_path), random.Random(seed)
    case.write()
    written, body = case.read(), case.path.read_bytes()
    told = 0
    for _ in range(TRIES):
        case.path.write_bytes(damaged(body, draw))
        found, error = outcome(case.read)
        if error is None:
            assert repr(found) == repr(written)
            continue
        assert isinstance(error, case.kind.error)
        assert case.path.name in str(error)
        assert len(str(error)) < 800
        told += 1
    assert told > TRIES / 2


ODD: list[Any] = [
    None, [], {}, "", "x", -1, 0, 2**70, 1.5, True, [[]], {"a": 1}, [1, 2, 3], "\ud800", "9" * 5000,
]  # fmt: skip


def changed(content: Any, draw: random.Random) -> Any:
    """Put something odd in one place of a tree of dicts and lists, or leave something out."""
    if not isinstance(content, dict | list) or not content or draw.random() < 0.2:
        return copy.copy(draw.choice(ODD))
    made = copy.copy(content)
    key = draw.choice(list(made) if isinstance(made, dict) else range(len(made)))
    if draw.random() < 0.3:
        del made[key]
    else:
        made[key] = changed(made[key], draw)
    return made


@pytest.mark.parametrize("name", CASES)
def test_wrong_content_is_told(name: str, tmp_path: Path, seed: int) -> None:
    """Whatever stands in a file whose checksum holds, a reader raises its own error or none."""
    case, draw = CASES[name](tmp_path), random.Random(seed)
    case.write()
    if name == RUN.name:
        content = json.loads(json.dumps(SeenRun.load(case.path).manifest))
    else:
        json_kind = isinstance(case, OfJson)
        content = (read_json if json_kind else read_packed)(case.path, case.kind)
    for _ in range(TRIES // 3):
        made = changed(content, draw)
        if name == RUN.name:
            SeenRun(made if isinstance(made, dict) else {}, {}).save(case.path, overwrite=True)
        elif isinstance(case, OfJson):
            content_now = made if isinstance(made, dict) else {}
            write_json(case.path, content_now, case.kind, may_replace=True)
        else:
            write_packed(case.path, made, case.kind)
        _, error = outcome(case.read)
        assert error is None or isinstance(error, case.kind.error)


def test_a_damaged_claim_is_nobodys(tmp_path: Path, seed: int) -> None:
    draw, ours = random.Random(seed), claim(tmp_path, "run")
    assert ours is not None
    body = ours.path.read_bytes()
    for _ in range(TRIES):
        ours.path.write_bytes(damaged(body, draw))
        assert stale(ours.path) in (True, False)


def test_cells_of_another_model_are_set_aside_and_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    KeptCells(path, {"model": "a", "setting": {}}).add(
        {"policy": "x", "keep": "25%", "bits": 1.0}, "of"
    )
    other = KeptCells(path, {"model": "b", "setting": {}})
    assert other.find("x", "25%", "of") is None
    (moved,) = (tmp_path / "older").iterdir()
    assert [(c.policy, c.keep, c.bits) for c in read_cells(moved)] == [("x", "25%", 1.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, as transformers saves them."""
    transformers = pytest.importorskip("transformers")
    from regard.models.loading import DEMO
    from tests.architectures import DECODERS, build

    place = tmp_path_factory.mktemp("model")
    build("llama", DECODERS["llama"], causal=True).save_pretrained(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    tokenizer.save_pretrained(place)
    return place


def test_a_damaged_folder_of_a_model_is_told(folder: Path, tmp_path: Path, seed: int) -> None:
    from regard.models.loading import load as load_model

    draw = random.Random(seed)
    names = sorted(p.name for p in folder.iterdir())
    for number in range(FOLDERS):
        place = tmp_path / f"{number}"
        shutil.copytree(folder, place)
        spoiled = place / draw.choice(names)
        if draw.random() < 0.15:
            spoiled.unlink()
        else:
            spoiled.write_bytes(damaged(spoiled.read_bytes(), draw))
        loaded, error = outcome(lambda place=place: load_model(place))
        assert error is not None or next(loaded[0].parameters()) is not None
        shutil.rmtree(place)


def test_missing_weights_are_an_error(folder: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    from regard.models.loading import load as load_model

    place = tmp_path / "model"
    shutil.copytree(folder, place)
    weights = safetensors.load_file(place / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileError, match=r"up_proj"):
        load_model(place)
