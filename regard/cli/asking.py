"""Check and read command-line arguments: folders, files, lists, devices."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from regard.core.errors import RuleError, ValueRangeError, fail
from regard.core.files import FileError, read_bytes

LARGEST_TEXT = 64 * 2**20


def listed(flag: str, said: str, *, empty: bool = False) -> list[str]:
    """Split names at commas or spaces.

    >>> listed("--tasks", "mqar:length=128, copy")
    ['mqar:length=128', 'copy']
    """
    found = said.replace(",", " ").split()
    if not found and not empty:
        fail(RuleError, flag, repr(said), "names by commas", "name at least one")
    return list(dict.fromkeys(found))


def numbers(flag: str, said: str, least: int = 1) -> list[int]:
    """Read comma-separated integers.

    >>> numbers("--lengths", "128,256")
    [128, 256]
    """
    found = [whole(word) for word in listed(flag, said)]
    if not all(x is not None and x >= least for x in found):
        fail(
            ValueRangeError, flag, repr(said), f"whole numbers from {least}, by commas",
            "pass 128,256,512",
        )  # fmt: skip
    return [x for x in found if x is not None]


def whole(word: str) -> int | None:
    """Read a whole number; None for another word, and where it has more than 64 bits.

    Python itself refuses to read more than 4,300 digits, with an error of its own.

    >>> whole("12"), whole("-1"), whole("9" * 5000)
    (12, None, None)
    """
    return int(word) if word.isdecimal() and len(word) < 19 else None


def at_least(flag: str, value: int, least: int) -> None:
    """Raise unless a number is large enough."""
    if value < least:
        fail(ValueRangeError, flag, value, f"at least {least}", "leave it out for the usual")


def budgets(flag: str, said: str) -> list[Any]:
    """Read comma-separated budgets: shares (0.25 or 25%), tokens (256tok), bytes (4MiB).

    >>> budgets("--keep", "25%, 256tok, 2 MiB, 0.1")
    [Budget(share=0.25), Budget(tokens=256), Budget(bytes=2097152), Budget(share=0.1)]
    """
    from regard.policies.budget import Budget

    found = []
    for word in filter(None, re.split(r"\s*,\s*|\s+(?=[\d.])", said.strip())):
        decimal = re.fullmatch(r"0?\.\d+|1\.0*", word)
        if re.search(r"\d{19}", word):
            fail(ValueRangeError, flag, repr(word), "a number of at most 64 bits", "pass less")
        try:
            found.append(Budget.of(float(word) if decimal and float(word) else word))
        except ValueRangeError as error:
            fail(ValueRangeError, flag, repr(word), error.expected, error.fix)
    if not found:
        fail(RuleError, flag, repr(said), "budgets by commas", "pass 10%,25% or 256tok")
    return list(dict.fromkeys(found))


def writable_folder(flag: str, folder: Path) -> Path:
    """Create a folder to write to; raise if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
    except FileExistsError:
        fail(RuleError, flag, f"{folder}, which is a file", "a folder", "name a folder, or none")
    except OSError as error:
        fail(
            RuleError, flag, f"{folder} ({error.strerror})", "a folder that can be written to",
            "name another, or make room and permissions there",
        )  # fmt: skip
    return folder


def writable_file(flag: str, path: Path) -> Path:
    """Raise unless a file can be written at a path."""
    if path.is_dir():
        fail(RuleError, flag, f"{path}, which is a folder", "a file", "name a file in it")
    writable_folder(flag, path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        fail(RuleError, flag, f"{path} (not writable)", "a file to write", "name another")
    return path


def read_text(flag: str, path: Path) -> str:
    """Read a text file; raise if it is binary, empty or too large."""
    try:
        if path.is_dir():
            fail(RuleError, flag, f"{path}, which is a folder", "a file of text", "name a file")
        raw = read_bytes(path, LARGEST_TEXT)
        if b"\0" in raw:
            fail(RuleError, flag, f"{path}, a binary file", "a file of text", "name a text file")
        text = raw.decode("utf-8")
    except FileError as error:
        fail(
            RuleError, flag, f"{path} ({error.got})", f"at most {LARGEST_TEXT:,} bytes",
            "shorten it: a model reads a few thousand tokens",
        )  # fmt: skip
    except OSError as error:
        fail(RuleError, flag, f"{path} ({error.strerror})", "a file of text", "name one")
    except UnicodeDecodeError as error:
        fail(
            RuleError, flag, f"{path} (byte {error.start} is no UTF-8)", "a file of text in UTF-8",
            "save it as UTF-8",
        )  # fmt: skip
    if not text.strip():
        fail(RuleError, flag, f"{path}, which holds no text", "some words", "name another file")
    return text


def need_device(flag: str, name: str) -> None:
    """Raise unless this machine has the device."""
    import torch

    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps", "xpu"):
        fail(RuleError, flag, repr(name), "cpu, cuda, cuda:1, mps or xpu", "pass cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        fail(
            RuleError, flag, f"{name!r} ({first})", "a device of this machine",
            "pass cpu, or cuda on a machine with a GPU",
        )  # fmt: skip
