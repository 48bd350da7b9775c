"""What the environment variable `REGARD` asks of a vLLM server, and what a request asks for itself.

Clauses are divided by `;`:

    on                          Regard takes part, and nothing else; vLLM's kernel attends where
                                it can, and `on kernel=regard` keeps it from that
    shrink POLICY NAME=VALUE    a policy with its settings; `keep=` is what it may keep
    see out=FOLDER              requests that ask for it are surveyed; one run file each
    steer CONTROL NAME=VALUE    requests that ask for it are steered
    off                         vLLM's own attention, as if Regard were not installed
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regard.core.errors import RuleError, fail, nearest, shape_of

VARIABLE = "REGARD"
CLAUSES = ("on", "off", "shrink", "see", "steer")
# Extra arguments of a request's sampling parameters.
SEE, SHRINK, STEER = "regard_see", "regard_shrink", "regard_steer"
WHICH, STRENGTH = "regard_which", "regard_strength"
EXTRAS = (SEE, SHRINK, STEER, WHICH, STRENGTH)


@dataclass(frozen=True)
class Shrink:
    """A policy by name, with its settings; `keep` is a share, tokens or bytes."""

    policy: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep: Any = 0.25


@dataclass(frozen=True)
class See:
    """Where run files of surveyed requests go, and which probes look."""

    out: str
    probes: tuple[str, ...] = ("roles", "sinks", "shape")


@dataclass(frozen=True)
class Steer:
    """A control by name, with its settings; requests may say `which` and `strength`."""

    control: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What a server is asked to do.

    >>> Settings.of("shrink quest keep=10% page=16; see out=runs").shrink.settings
    {'page': 16}
    >>> Settings.of("").on, Settings.of("on").on, Settings.of("off; see out=runs").on
    (False, True, False)
    """

    on: bool = False
    shrink: Shrink | None = None
    see: See | None = None
    steer: Steer | None = None
    # Whether vLLM's own kernel may attend for whoever asks for nothing.
    kernel: bool = True

    @staticmethod
    def of(said: str) -> Settings:
        """Read the value of `REGARD`."""
        clauses = [x.split() for x in said.split(";") if x.strip()]
        names = [words[0] for words in clauses]
        for name in names:
            if name not in CLAUSES:
                some = f"clauses that begin with one of {', '.join(CLAUSES)}"
                fail(RuleError, VARIABLE, repr(name), some, nearest(name, CLAUSES, _EXAMPLE))
            if names.count(name) > 1:
                fail(RuleError, VARIABLE, f"{name!r} twice", "each clause once", _EXAMPLE)
        if not clauses or "off" in names:
            return Settings()
        found: dict[str, Any] = {}
        for name, *words in clauses:
            if name == "shrink":
                found["shrink"] = _shrink(words)
            elif name == "see":
                found["see"] = _see(words)
            elif name == "steer":
                found["steer"] = _steer(words)
            elif words:
                found["kernel"] = _kernel(words)
        return Settings(True, **found)


_EXAMPLE = f"write {VARIABLE}='shrink quest keep=10%; see out=/var/tmp/runs', say"


def _shrink(words: list[str]) -> Shrink:
    if not words or "=" in words[0]:
        fail(RuleError, VARIABLE, "shrink without a policy", "the name of a policy", _EXAMPLE)
    settings = _pairs("shrink", words[1:])
    return Shrink(words[0], settings, settings.pop("keep", 0.25))


def _steer(words: list[str]) -> Steer:
    if not words or "=" in words[0]:
        fail(RuleError, VARIABLE, "steer without a control", "the name of a control", _EXAMPLE)
    return Steer(words[0], _pairs("steer", words[1:]))


def _see(words: list[str]) -> See:
    settings = _pairs("see", words)
    unknown = set(settings) - {"out", "probes"}
    if unknown or "out" not in settings:
        got = f"see with {', '.join(sorted(settings)) or 'nothing'}"
        fail(RuleError, VARIABLE, got, "out=FOLDER, and probes=NAME,NAME if wanted", _EXAMPLE)
    probes = settings.get("probes")
    made = See(str(settings["out"]))
    return made if probes is None else See(made.out, tuple(str(probes).split(",")))


def _kernel(words: list[str]) -> bool:
    settings = _pairs("on", words)
    if set(settings) != {"kernel"} or settings["kernel"] not in ("vllm", "regard"):
        got = f"on {' '.join(words)}"
        fail(RuleError, VARIABLE, got, "on alone, or with kernel=vllm or kernel=regard", _EXAMPLE)
    return bool(settings["kernel"] == "vllm")


def _pairs(clause: str, words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        name, sign, said = word.partition("=")
        if not name.isidentifier() or not sign or not said or name in found:
            fail(RuleError, VARIABLE, f"{word!r} in {clause}", "NAME=VALUE, each once", _EXAMPLE)
        try:
            found[name] = ast.literal_eval(said)
        except (ValueError, SyntaxError):
            found[name] = said
    return found


@dataclass(frozen=True)
class Asked:
    """What a request asks for: to be surveyed, not to be shrunk, to be steered, and how.

    >>> Asked.of({"regard_see": True, "other": 3})
    Asked(see=True, shrink=True, steer=False, which=None, strength=None)
    >>> Asked.of({"regard_steer": 1, "regard_which": "Paris", "regard_strength": "2"}).strength
    2.0
    """

    see: bool = False
    shrink: bool = True
    steer: bool = False
    which: Any = None
    strength: float | None = None

    @staticmethod
    def of(given: Mapping[str, Any] | None) -> Asked:
        """Read the extra arguments of a request's sampling parameters."""
        given = given or {}
        for name in given:
            if name.startswith("regard_") and name not in EXTRAS:
                known = nearest(name, EXTRAS, f"leave it out, or pass one of {', '.join(EXTRAS)}")
                fail(RuleError, "extra_args", repr(name), f"one of {', '.join(EXTRAS)}", known)
        steer = _flag(STEER, given.get(STEER, False))
        for name in (WHICH, STRENGTH):
            if name in given and not steer:
                fail(RuleError, name, repr(given[name]), f"{STEER} beside it", f"pass {STEER}=1")
        return Asked(
            _flag(SEE, given.get(SEE, False)), _flag(SHRINK, given.get(SHRINK, True)), steer,
            given.get(WHICH), _number(STRENGTH, given.get(STRENGTH)),
        )  # fmt: skip


def _number(name: str, x: Any) -> float | None:
    if x is None:
        return None
    try:
        return float(x)
    except (TypeError, ValueError):
        return fail(RuleError, name, shape_of(x), "a number", f"pass {name}=2")


def _flag(name: str, x: Any) -> bool:
    # Servers pass words and numbers on, and no booleans.
    words = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
    said = str(x).lower()
    if said not in words:
        fail(RuleError, name, shape_of(x), f"one of {', '.join(words)}", f"pass {name}=True")
    return words[said]
