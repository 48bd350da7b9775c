"""Measurements of a shrunk model in a file, so that measuring can be interrupted and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regard.bench.records import BenchError
from regard.core.errors import RuleError
from regard.core.files import FileKind, locked, read_json, reading, set_aside, write_json
from regard.core.hashes import hash_of, hash_of_modules
from regard.policies.base import Policy
from regard.policies.calibration import found_by

CELLS = FileKind(
    "regard-shrink", 2, "measurements of a shrunk model", "delete it, and measure again", BenchError
)


class KeptCells:
    """Cells in a file, all made from the same `inputs` (hashes of model, text, code, setting).

    A file of other inputs is moved to `older/` beside it. Several processes may add to one file:
    each adds its cell to what is there, under a lock.
    """

    def __init__(self, path: Path, inputs: dict[str, Any]) -> None:
        self.path = path
        self.inputs = json.loads(json.dumps(inputs))  # as it reads in a file
        self._rows = self._read()

    def find(self, policy: str, keep: Any, of: str | None) -> dict[str, Any] | None:
        """Return the fields of a cell of this policy, budget and hash of the policy, or None."""
        for row in self._rows:
            same = row["policy"] == policy and type(row["keep"]) is type(keep)
            if same and row["keep"] == keep and of is not None and row["of"] == of:
                return {name: x for name, x in row.items() if name != "of"}
        return None

    def add(self, cell: dict[str, Any], of: str | None) -> None:
        """Add a cell in place of an older one of the same policy and budget."""
        named = ("policy", "keep")
        with locked(self.path):
            rows = [r for r in self._read() if [r[n] for n in named] != [cell[n] for n in named]]
            self._rows = [*rows, {**cell, "of": of}]
            said = {"setting": self.inputs.get("setting"), "inputs": self.inputs}
            write_json(self.path, {**said, "cells": self._rows}, CELLS)

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        said = read_json(self.path, CELLS)
        with reading(self.path, CELLS):
            if said["inputs"] != self.inputs:
                set_aside(self.path)
                return []
            return [{"of": None, **row} for row in said["cells"]]


def hash_of_policy(policy: Policy | None) -> str | None:
    """Hash a policy: its class, settings and what its calibration found; None if it has no hash."""
    if policy is None:
        return "full"
    try:
        settings = {
            name: hash_of_policy(x) if isinstance(x, Policy) else x
            for name, x in policy.settings().items()
        }  # fmt: skip
        held = [type(policy).__qualname__, settings, found_by(policy)]
        return hash_of([*held, hash_of_modules([type(policy).__module__])])
    except RuleError:
        return None
