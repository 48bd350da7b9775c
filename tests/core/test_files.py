"""Files: whole, of one generation, checksummed, refused where damaged; errors that travel."""

import ast
import copy
import errno
import importlib
import multiprocessing
import os
import pickle
import pkgutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard.core import files
from regard.core.errors import RegardError, RuleError
from regard.core.files import FileError, FileKind, read_json, read_packed, write_bytes
from regard.core.packing import DTYPES, pack, unpack
from regard.core.private_names import open_private

KIND = FileKind("regard-test", 3, "something made by a test", "make it again")


def every_error() -> list[type[RegardError]]:
    """Every class of errors in the package, found by importing all of it."""
    for module in pkgutil.walk_packages(regard.__path__, "regard."):
        if module.name.endswith("__main__") or ".triton" in module.name:
            continue
        try:
            importlib.import_module(module.name)
        except ImportError:
            continue  # of a package that is not installed here
    found, todo = [], [RegardError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return sorted(
        (k for k in found if k.__module__.startswith("regard.")), key=lambda k: k.__name__
    )


@pytest.mark.parametrize("kind", every_error(), ids=lambda k: k.__name__)
def test_an_error_travels_between_processes(kind: type[RegardError]) -> None:
    error = kind("q", lambda: None, "a tensor", "pass one")  # what came cannot be pickled itself
    error.row = 3
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(back) is kind
        assert str(back) == str(error)
        assert (back.argument, back.expected, back.fix) == ("q", "a tensor", "pass one")
        assert back.row == 3


def refuse(x: int) -> None:
    raise RuleError("x", x, "something else", "pass it")


def test_an_error_comes_out_of_a_pool_of_processes() -> None:
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(RuleError, match="got 7"),
    ):
        pool.apply_async(refuse, (7,)).get(timeout=60)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_plain_values_come_back_as_they_went(x: Any) -> None:
    assert repr(unpack(b"".join(pack(x)))) == repr(x)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 5)], ids=str)
def test_tensors_come_back_as_they_went(name: str, shape: tuple[int, ...], seed: int) -> None:
    x = torch.randn(shape).mul(3).to(DTYPES[name])
    back = unpack(b"".join(pack([x, x.mT if x.dim() > 1 else x])))
    for found, wanted in zip(back, (x, x.mT if x.dim() > 1 else x), strict=True):
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert repr(found.tolist()) == repr(wanted.tolist())


def test_what_cannot_be_packed_is_said() -> None:
    for x in (object(), torch.zeros(2, device="meta"), torch.zeros(2).to_sparse()):
        with pytest.raises(RuleError, match="content"):
            pack(x)


@pytest.mark.parametrize("write", [files.write_packed, files.write_json])
def test_nobody_sees_a_part(write: Any, tmp_path: Any) -> None:
    """A reader beside two writers finds one whole content or the other, and nothing is left."""
    place, read = tmp_path / "x", read_packed if write is files.write_packed else read_json
    contents = [{"who": who, "row": [who] * 2000} for who in "ab"]
    write(place, contents[0], KIND)
    going = True

    def writer(mine: dict[str, Any]) -> None:
        while going:
            write(place, mine, KIND)

    threads = [threading.Thread(target=writer, args=(x,)) for x in contents]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            found = read(place, KIND)
            assert set(found["row"]) == {found["who"]}
    finally:
        going = False
        for thread in threads:
            thread.join()
    assert os.listdir(tmp_path) == ["x"]


def test_the_temporary_name_is_private_and_opened_exclusively(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that somebody laid at the temporary name is not followed."""
    target = tmp_path / "precious"
    target.write_text("keep me")
    monkeypatch.setattr("secrets.token_hex", lambda n: "guessed")
    (tmp_path / ".x.guessed.part").symlink_to(target)
    with pytest.raises(FileError):
        write_bytes(tmp_path / "x", b"new")
    assert target.read_text() == "keep me"


KILLED = """
import os, sys
from regard.core import files
os.fsync = lambda handle: os.kill(os.getpid(), 9)
files.write_bytes(sys.argv[1], b"half" * 1000)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Any) -> None:
    """Of this file alone, and only where its writer has ended; nothing else is touched."""
    pytest.importorskip("fcntl")
    place = tmp_path / "x"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(place)], check=False)
    assert ended.returncode == -9
    (left,) = tmp_path.iterdir()
    alive, handle = open_private(place)
    mine = tmp_path / ".x.notes.part"
    of_another = tmp_path / f".y.{'0' * 16}.part"
    for path in (mine, of_another):
        path.write_text("keep me")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert write_bytes(place, b"whole").read_bytes() == b"whole"
    os.close(handle)
    assert set(tmp_path.iterdir()) == {place, alive, mine, of_another}
    assert not left.exists()


def test_a_file_has_the_rights_that_the_user_asked_for(tmp_path: Any) -> None:
    before = os.umask(0o027)
    try:
        path = write_bytes(tmp_path / "x", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_is_there_stays_unless_it_may_go(tmp_path: Any) -> None:
    place = tmp_path / "x"
    place.write_text("the user's")
    for may in (False, lambda path: False):
        with pytest.raises(FileError, match="overwrite=True"):
            write_bytes(place, b"new", may_replace=may)
        assert place.read_text() == "the user's"
    assert write_bytes(place, b"new", may_replace=lambda path: True).read_bytes() == b"new"
    assert write_bytes(tmp_path / "y", b"new", may_replace=False).read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"), (errno.EROFS, "Read-only")],
)
def test_a_disk_that_refuses_is_one_sentence(
    number: int, says: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_text("old")

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(FileError, match=says):
        write_bytes(tmp_path / "x", b"new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_folder_in_the_way_is_said(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="a folder has this name"):
        write_bytes(tmp_path, b"")
    with pytest.raises(FileError, match="a parent is a file"):
        write_bytes(tmp_path / "file" / "x", b"")


def test_other_kinds_and_versions_are_named(tmp_path: Any) -> None:
    other = FileKind("regard-other", 1, "another thing", "make another")
    later = FileKind("regard-test", 4, KIND.holds, KIND.fix)
    try:
        for kind, says in ((other, "another thing"), (later, "version 4")):
            files.write_packed(tmp_path / "x", 1, kind)
            with pytest.raises(FileError, match=says):
                read_packed(tmp_path / "x", KIND)
        files.write_json(tmp_path / "x", {}, later)
        with pytest.raises(FileError, match="version 4"):
            read_json(tmp_path / "x", KIND)
    finally:
        files.KINDS.pop("regard-other")
        files.KINDS["regard-test"] = KIND


def test_a_file_cannot_ask_for_more_than_it_brings(tmp_path: Any) -> None:
    """A header that promises terabytes is refused before anything is allocated."""
    body = b"".join(pack({"x": torch.ones(4)}))
    wide = body.replace(b"[4]", b"[4000000000000]")
    size = int.from_bytes(wide[:8], "little") + len(wide) - len(body)
    with pytest.raises(ValueError, match="cut off"):
        unpack(size.to_bytes(8, "little") + wide[8:])
    with pytest.raises(FileError, match="without end"), files.reading("/dev/zero", KIND):
        files.read_bytes("/dev/zero", 1000)
    (tmp_path / "deep").write_text("[" * 200_000)
    with pytest.raises(FileError, match="damaged"):
        read_json(tmp_path / "deep", KIND)


def count_up(place: Any, times: int) -> None:
    for _ in range(times):
        with files.locked(place):
            files.write_json(place, {"n": read_json(place, KIND)["n"] + 1}, KIND)


def test_two_processes_that_change_one_file_lose_nothing(tmp_path: Any) -> None:
    place = files.write_json(tmp_path / "n.json", {"n": 0}, KIND)
    start = multiprocessing.get_context("fork")
    both = [start.Process(target=count_up, args=(place, 20)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert read_json(place, KIND)["n"] == 40


def test_nothing_in_the_package_unpickles() -> None:
    """What is read from a file or a socket is never executed: nothing here could do it."""
    found = []
    for path in Path(regard.__file__).parent.rglob("*.py"):
        if path.parent.name == "conformance":
            continue  # a user's state_dict goes to a file and back there
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                plain = any(ast.unparse(x) == "allow_pickle=False" for x in node.keywords)
                safe = plain and called != "torch.load"
                loads = called in ("torch.load", "np.load", "numpy.load")
                names += [called] if loads and not safe else []
            bad = {"pickle", "marshal", "shelve", "dill", "torch.load", "np.load", "numpy.load"}
            found += [f"{path.name}: {name}" for name in names if name in bad]
    assert found == []


# What writes otherwise, and why.
OTHERWISE = {
    "core/files.py": "this is the one way",
    "memories/mapped.py": "files that are mapped, and go with their process",
    "bench/run_locks.py": "a claim is linked to its name, which one alone can do",
    "papers/evidence_files.py": "whole and in one step too",
    "schemes/local_processes.py": "what processes of one run hand each other, in their folder",
    "papers/pages.py": "pages of the documentation, which git has",
}


def writes(node: ast.AST) -> str | None:
    """Name a call that writes a file by its path."""
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    if called.rpartition(".")[2] in ("write_text", "savetxt", "savez", "savez_compressed"):
        return called
    if called in ("torch.save", "np.save", "os.replace", "os.rename", "shutil.move"):
        return called
    if called.endswith((".savefig", ".to_csv", ".to_parquet", ".write_table")):
        return called if node.args and ast.unparse(node.args[-1]) not in ("held",) else None
    modes = [a for a in node.args[1:2] if isinstance(a, ast.Constant)] if called == "open" else []
    return called if any(set(str(a.value)) & set("wax+") for a in modes) else None


def test_results_are_written_in_one_way() -> None:
    root = Path(regard.__file__).parent
    found = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if name in OTHERWISE or name.startswith("conformance/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = writes(node)
            found += [f"{name}:{node.lineno}: {called}"] if called else []
    assert found == []


# Calls that may replace whatever is there, by module, and why nothing of the user's is lost.
REPLACES = {
    "views/run_file.py": "both names were looked at under the lock",
    "policies/calibration.py": "regard calibrate looks first; a .part is of a run that goes on",
    "memories/blocks.py": "blocks are named by hashes, in a folder of their own",
    "bench/training.py": "states of unfinished runs, in a folder of their own",
}


def test_nothing_of_the_users_is_replaced() -> None:
    """Every write says what it may replace, or stands in the table with the reason."""
    root = Path(regard.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func).rpartition(".")[2]
            says = {word.arg for word in node.keywords}
            if called in ("write_bytes", "write_packed") and "may_replace" not in says:
                found.add(path.relative_to(root).as_posix())
    assert found == set(REPLACES)


@pytest.mark.parametrize("held", ["{}", "notes", '{"format": "mine"}', ""])
def test_json_of_the_users_stays(held: str, tmp_path: Any) -> None:
    place = tmp_path / "sweep.json"
    place.write_text(held)
    with pytest.raises(FileError, match="overwrite=True"):
        files.write_json(place, {"x": 1}, KIND)
    assert place.read_text() == held
    files.write_json(place, {"x": 1}, KIND, may_replace=True)
    assert read_json(files.write_json(place, {"x": 2}, KIND), KIND)["x"] == 2
