"""The budget of a sweep: seconds in total, FLOPs or steps per run, parameters per model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from regard.core.errors import RuleError, fail

_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "": 1.0}
_TIMES = {"s": 1.0, "m": 60.0, "h": 3600.0}
HELP = (
    "5m, 90s or 1h of wall clock for the whole sweep; 2Tflops or 500steps for each run; "
    "200kparams for the size of each model; several by commas"
)


@dataclass(frozen=True)
class RunBudget:
    """The budget that all runs of a sweep share.

    One of `seconds` (of the whole sweep, divided evenly among runs), `flops` and `steps` (of each
    run) ends training; `params` sets the width of each model so that all have about as many.
    """

    seconds: float | None = None
    flops: float | None = None
    steps: int | None = None
    params: float | None = None

    def describe(self) -> str:
        """Describe the budget.

        >>> read_budget("5m").describe()
        '300 s for the whole sweep'
        """
        parts = []
        if self.seconds is not None:
            parts.append(f"{self.seconds:g} s for the whole sweep")
        if self.flops is not None:
            parts.append(f"{self.flops:.3g} FLOPs a run")
        if self.steps is not None:
            parts.append(f"{self.steps} steps a run")
        if self.params is not None:
            parts.append(f"{self.params:.3g} parameters a model")
        return ", ".join(parts)


def read_budget(text: str) -> RunBudget:
    """Read a budget from the command line.

    >>> read_budget("2Tflops,200kparams")
    RunBudget(seconds=None, flops=2000000000000.0, steps=None, params=200000.0)
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, amount = _part(part.strip())
        if name in found:
            fail(RuleError, "budget", repr(text), f"one of each kind; {name} occurs twice", HELP)
        found[name] = amount
    ends = [name for name in found if name != "params"]
    if len(ends) > 1:
        fail(
            RuleError, "budget", repr(text), f"one end of training; {' and '.join(ends)} are two",
            "pass one of seconds, flops and steps",
        )  # fmt: skip
    if not ends:
        found["seconds"] = 300.0
    steps = found.pop("steps", None)
    return RunBudget(**found, steps=None if steps is None else max(1, int(steps)))


def _part(said: str) -> tuple[str, float]:
    amount = r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)"
    timed = re.fullmatch(amount + "(s|m|h)", said)
    if timed:
        return "seconds", float(timed[1]) * _TIMES[timed[2]]
    counted = re.fullmatch(amount + r"\s*([kMGBTP]?)\s*(flops|steps|params|parameters)", said)
    if counted:
        name = "params" if counted[3] == "parameters" else counted[3]
        return name, float(counted[1]) * _UNITS[counted[2]]
    fail(RuleError, "budget", repr(said), HELP, "pass 5m, 500steps, 2Tflops or 200kparams")
