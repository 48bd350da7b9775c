"""Calibration files: what a policy found out about one model, checked when it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from regard.core.errors import RegardError, RuleError, fail
from regard.memories.files import read, write
from regard.policies.base import Policy


class CalibrationError(RegardError):
    """A calibration is missing, or is that of another model or policy."""


def need_calibration(policy: Policy, lacking: str) -> NoReturn:
    """Raise: a policy was used without what a calibration finds, "which layers share" say."""
    inputs, file = "rows" if policy.learns_from == "answers" else "texts", f"{policy.name}.cal"
    fail(
        CalibrationError, "calibrate", "nothing", lacking,
        f'regard.policies.calibrate(model, "{policy.name}", {inputs}, to="{file}"), and '
        f'shrink(..., calibrate="{file}")',
    )  # fmt: skip


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Let gradients pass the weights of a model by, while something else learns."""
    weights = [p for p in model.parameters() if p.requires_grad]
    for p in weights:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in weights:
            p.requires_grad_(True)


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


def serves(path: str | Path, policy: Policy) -> bool:
    """Whether a calibration file is one that a policy takes."""
    return read(path).get("policy") in (policy.name, *policy.takes)


def load_calibration(policies: Sequence[Policy], model: Any, path: Any) -> None:
    """Give a file to the policy it is of."""
    if not isinstance(path, str | Path):
        fail(
            RuleError, "calibrate", repr(path)[:60], "the name of a calibration file",
            "make one with regard.policies.calibrate(model, policy, to=...)",
        )  # fmt: skip
    content = read(path)
    names = [p.name for p in policies]
    taker = next((p for p in policies if content.get("policy") in (p.name, *p.takes)), None)
    if taker is None:
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
    taker.take(content["found"])


def calibrate(
    model: Any,
    policy: Any,
    inputs: Any,
    *,
    to: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Let a policy find out about a model, and write what it found to a file.

    What is done is kept in `to`.part: a run that was broken off, or killed, goes on from there.

        rows = regard.bench.shrinking.pass_keys(tokenizer)
        file = calibrate(model, "duo_attention", rows, to="heads.cal")
        regard.shrink(model, "duo_attention", keep=0.5, calibrate=file)
    """
    from regard.policies.registry import policy as make

    made: Policy = make(policy) if isinstance(policy, str) else policy
    learn = getattr(made, "learn", None)
    if learn is None:
        fail(
            RuleError, "policy", repr(made.name), "one that learns of a model",
            "use it as it is: it needs no calibration",
        )  # fmt: skip
    path = Path(to)
    part = path.with_name(path.name + ".part")
    about = {"policy": made.name, "model": fingerprint(model), "settings": made.settings()}
    state: dict[str, Any] = {}
    if part.exists():
        held = read(part)
        if held["about"] != about:
            fail(
                CalibrationError, "to", f"{part}, begun for another model or with other settings",
                f"a run of {made.name} like this one", "remove it, or name another file",
            )  # fmt: skip
        state = held["state"]
    for done, whole in learn(
        model, inputs, state, lambda s: write(part, {"about": about, "state": s})
    ):
        if progress is not None:
            progress(done, whole)
    save_calibration(made, model, path)
    part.unlink(missing_ok=True)
    return path


__all__ = [
    "CalibrationError", "calibrate", "fingerprint", "frozen", "load_calibration",
    "need_calibration", "save_calibration", "serves",
]  # fmt: skip
