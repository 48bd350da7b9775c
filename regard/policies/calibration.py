"""Calibration files: what a policy found out about one model, checked when it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regard.core.errors import RegardError, RuleError, fail
from regard.memories.files import read, write
from regard.policies.base import Policy


class CalibrationError(RegardError):
    """A calibration is missing, or is that of another model or policy."""


def fingerprint(model: Any) -> str:
    """Name a model by the shapes of its weights and some of their values.

    >>> import torch
    >>> a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    >>> fingerprint(a) == fingerprint(a), fingerprint(a) == fingerprint(b)
    (True, False)
    """
    found = hashlib.sha256()
    for name, weight in model.state_dict().items():
        found.update(f"{name} {list(weight.shape)}".encode())
        flat = weight.detach().flatten()
        found.update(flat[:: max(1, flat.numel() // 16)][:16].double().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def save_calibration(policy: Policy, model: Any, path: str | Path) -> Path:
    """Write what a policy found, with its settings and the model that it is of."""
    return write(path, {
        "policy": policy.name, "model": fingerprint(model), "kind": type(model).__name__,
        "settings": policy.settings(), "found": policy.found(),
    })  # fmt: skip


def load_calibration(policies: Sequence[Policy], model: Any, path: Any) -> None:
    """Give a file to the policy it is of."""
    if not isinstance(path, str | Path):
        fail(
            RuleError, "calibrate", repr(path)[:60], "the name of a calibration file",
            "make one with regard.policies.calibrate(model, policy, to=...)",
        )  # fmt: skip
    content = read(path)
    names = [p.name for p in policies]
    if content.get("policy") not in names:
        fail(
            CalibrationError, "calibrate", f"{path}, a calibration of {content.get('policy')!r}",
            f"one of {', '.join(names)}", "name the file of this policy",
        )  # fmt: skip
    if content["model"] != fingerprint(model):
        fail(
            CalibrationError, "calibrate", f"{path}, made with another {content['kind']}",
            "a calibration of this model, weights and all",
            "calibrate this one: regard.policies.calibrate(model, policy, to=...)",
        )  # fmt: skip
    policies[names.index(content["policy"])].take(content["found"])


__all__ = ["CalibrationError", "fingerprint", "load_calibration", "save_calibration"]
