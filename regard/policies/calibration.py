"""Calibration files: what a policy learned about one model, checked when it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from regard.core.errors import RuleError, fail
from regard.core.files import (
    OF_ANOTHER,
    FileError,
    FileKind,
    is_packed,
    read_packed,
    reading,
    refuse_to_replace,
    write_packed,
)
from regard.core.hashes import hash_of, hash_of_code
from regard.models.attach import attach
from regard.models.fingerprint import fingerprint
from regard.models.stage import Stage
from regard.policies.base import Policy
from regard.policies.kinds import Calibrated


class CalibrationError(FileError):
    """A calibration is missing or damaged, or is that of another model or policy."""


CALIBRATION = FileKind(
    "regard-calibration", 2, "a calibration of a policy", "calibrate the model again",
    CalibrationError,
)  # fmt: skip
# The checkpoint of an interrupted calibration.
BEGUN = FileKind(
    "regard-calibration-begun", 2, "an interrupted calibration",
    "delete it, and start again", CalibrationError,
)  # fmt: skip


def need_calibration(policy: Calibrated, lacking: str) -> NoReturn:
    """Raise: a policy lacks its calibration, which finds "which layers share" (say)."""
    name = getattr(policy, "name", type(policy).__name__)
    inputs, file = "rows" if policy.learns_from == "answers" else "texts", f"{name}.cal"
    fail(
        CalibrationError, "calibrate", "nothing", lacking,
        f'regard.policies.calibrate(model, "{name}", {inputs}, to="{file}"), and '
        f'shrink(..., calibrate="{file}")',
    )  # fmt: skip


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Freeze the weights of a model inside a `with`."""
    weights = [p for p in model.parameters() if p.requires_grad]
    for p in weights:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in weights:
            p.requires_grad_(True)


def last_hidden(model: Any, ids: Tensor) -> Tensor:
    """Return the last hidden states of a transformers model, [b, n, dim]."""
    found: Tensor = model(ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
    return found


def run_texts(
    model: Any, inputs: Sequence[Any], state: dict[str, Any], stage: Stage,
    keep: Callable[[dict[str, Any]], Any], found: Callable[[], dict[str, Any]],
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """Run a model under a stage on each input that `state` does not count yet; yield progress.

    An input is ids [1, n], or the arguments of a forward. After each, `keep` gets what was
    `found` so far, with the number of inputs done.
    """
    for step in range(int(state.get("step", 0)), len(inputs)):
        one = inputs[step]
        with attach(model, [stage], check=False), torch.no_grad():
            model(**one) if isinstance(one, Mapping) else model(one, use_cache=False)
        keep({"step": step + 1, **found()})
        yield step + 1, len(inputs)


def save_calibration(
    policy: Policy, model: Any, path: str | Path, about: dict[str, Any] | None = None, *,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write what a policy learned, with its settings and the fingerprint of its model.

    An existing calibration of this policy, model and inputs is replaced, any other file only where
    `overwrite` is true.
    """
    content = {
        **(about or {}), "policy": policy.name, "model": fingerprint(model),
        "kind": type(model).__name__, "settings": policy.settings(), "found": found_by(policy),
    }  # fmt: skip

    def may_replace(there: Path) -> bool:
        return overwrite or need_same(there, content)

    return write_packed(path, content, CALIBRATION, may_replace=may_replace)


def need_same(path: Path, about: dict[str, Any]) -> bool:
    """Return whether a file is a calibration; raise if it is one of another policy or model."""
    if not is_packed(path, CALIBRATION):
        return False
    there = read_calibration(path)
    if any(there.get(x) != about.get(x) for x in ("policy", "model", "inputs")):
        refuse_to_replace(path, CalibrationError, OF_ANOTHER)
    return True


def read_calibration(path: str | Path) -> dict[str, Any]:
    """Read a calibration: `policy`, `model` (its fingerprint), `kind`, `settings`, `found`.

    An interrupted run has `about` and `state`.
    """
    kind = BEGUN if Path(path).name.endswith(".part") else CALIBRATION
    content = read_packed(path, kind)
    wanted = {"about", "state"} if kind is BEGUN else {"policy", "model", "kind", "found"}
    if not isinstance(content, dict) or not wanted <= set(content):
        kind.bad(path, f"a file without {', '.join(sorted(wanted))}")
    return dict(content)


def found_by(policy: Policy) -> dict[str, Any]:
    """Return what a policy learned; nothing for one that does not learn."""
    return policy.found() if isinstance(policy, Calibrated) else {}


def accepted(policy: Any) -> tuple[str, ...]:
    """Return the names of policies whose calibrations a policy accepts.

    >>> from regard.policies import policy
    >>> accepted(policy("lserve")), accepted(policy("snapkv"))
    (('lserve', 'duo_attention'), ())
    """
    own = (policy.name,)
    return (*own, *policy.accepts) if isinstance(policy, Calibrated) else ()


def serves(path: str | Path, policy: Policy) -> bool:
    """Return whether a policy accepts a calibration file."""
    return read_calibration(path)["policy"] in accepted(policy)


def load_calibration(policies: Sequence[Policy], model: Any, path: Any) -> None:
    """Load a file into the policy that accepts it."""
    if not isinstance(path, str | Path):
        fail(
            RuleError, "calibrate", repr(path)[:60], "the path of a calibration file",
            "create one with regard.policies.calibrate(model, policy, to=...)",
        )  # fmt: skip
    content = read_calibration(path)
    names = [p.name for p in policies]
    learning = [p for p in policies if isinstance(p, Calibrated)]
    taker = next((p for p in learning if content["policy"] in accepted(p)), None)
    if taker is None:
        fail(
            CalibrationError, "calibrate", f"{path}, a calibration of {content['policy']!r}",
            f"one of {', '.join(names)}", "pass the file of this policy",
        )  # fmt: skip
    if content["model"] != fingerprint(model):
        fail(
            CalibrationError, "calibrate", f"{path}, made with another {content['kind']}",
            "a calibration of this model, weights and all",
            "calibrate this one: regard.policies.calibrate(model, policy, to=...)",
        )  # fmt: skip
    with reading(path, CALIBRATION):
        taker.take(content["found"])


def calibrate(
    model: Any,
    policy: Any,
    inputs: Any,
    *,
    to: str | Path,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> Path:
    """Calibrate a policy on a model, and write what it learned to a file.

    Progress is kept in `to`.part: a run that was interrupted or killed resumes from there, if the
    model (weights and config), the policy and its settings, the inputs and the code of Regard have
    the same hashes. A file at `to` that Regard did not write, or that is of another policy, model
    or inputs, is an error and stays as it is, unless `overwrite` is true.

        rows = regard.bench.shrunk_models.pass_keys(tokenizer)
        file = calibrate(model, "duo_attention", rows, to="heads.cal")
        regard.shrink(model, "duo_attention", keep=0.5, calibrate=file)
    """
    from regard.policies.registry import policy as make

    made: Policy = make(policy) if isinstance(policy, str) else policy
    learn = made.learn if isinstance(made, Calibrated) else None
    if learn is None:
        fail(
            RuleError, "policy", repr(made.name), "a policy that needs calibration",
            "use it as it is: it needs none",
        )  # fmt: skip
    path = Path(to)
    part = path.with_name(path.name + ".part")
    about = {
        "policy": made.name, "model": fingerprint(model), "settings": made.settings(),
        "inputs": _hash_of_inputs(inputs), "code": hash_of_code(),
    }  # fmt: skip
    if path.exists() and not overwrite and not need_same(path, about):
        refuse_to_replace(path, CalibrationError)  # before the work, not after it
    state: dict[str, Any] = {}
    if part.exists():
        held = read_calibration(part)
        begun = held["about"] if isinstance(held["about"], dict) else {}
        other = [name for name, x in about.items() if x is None or begun.get(name) != x]
        if other:
            fail(
                CalibrationError, "to",
                f"{part}, started for another model, text or code, or with other settings "
                f"(different: {', '.join(other)})",
                f"a run of {made.name} like this one", "remove it, or pass another file",
            )  # fmt: skip
        state = held["state"]
    for done, whole in learn(
        model, inputs, state, lambda s: write_packed(part, {"about": about, "state": s}, BEGUN)
    ):
        if progress is not None:
            progress(done, whole)
    save_calibration(made, model, path, about, overwrite=overwrite)
    part.unlink(missing_ok=True)
    return path


def _hash_of_inputs(inputs: Any) -> str | None:
    """Hash what a policy learns from; None if that has no hash, so that no run resumes."""
    try:
        return hash_of(inputs)
    except RuleError:
        return None
