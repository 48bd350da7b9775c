"""A method one percent off: every number that the code of a row returns, and nothing else."""

import contextlib
import dataclasses
import functools
import inspect
import sys
from unittest import mock

import torch

from regard.core.method import claims_of
from regard.papers.checks import checks
from regard.papers.closure import OWN

OFF = 0.01
# Numbers of a tensor over which it is left alone: reserved addresses, which no memory is behind.
LARGEST = 2**26
# Rows whose code is a value that says which pairs may attend: what runs it is put off instead.
RUN_BY = dict.fromkeys(("gna", "landmark_attention"), "attend") | {"aaren": "prefix_softmax"}


def off(value):
    """Put numbers off by up to a percent, more along the last axis, so that no ratio hides it."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        if value.numel() > LARGEST:
            return value
        if not value.dim():
            return value * (1 + OFF)
        slant = torch.linspace(1 - OFF, 1 + OFF, value.shape[-1], dtype=value.dtype)
        along = torch.linspace(1 - OFF, 1 + OFF, value.shape[-2] if value.dim() > 1 else 1)
        wrong = value * slant
        return wrong * along.to(value.dtype)[:, None] if value.dim() > 1 else wrong
    if isinstance(value, float):
        return value * (1 + OFF)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(off, value))
    if isinstance(value, tuple | list):
        return type(value)(map(off, value))
    if isinstance(value, dict):
        return {name: off(one) for name, one in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        numbers = {name: off(one) for name, one in fields.items() if isinstance(one, _NUMBERS)}
        return dataclasses.replace(value, **numbers) if numbers else value
    return value


_NUMBERS = (torch.Tensor, float, dict, list, tuple)


def slanted(function):
    """Give a function whose numbers are off."""

    @functools.wraps(function)
    def wrong(*args, **options):
        return off(function(*args, **options))

    return wrong


def parts(key):
    """Yield owner, name and function of everything that the code claiming a row defines."""
    for module in {claim.module for claim in claims_of(key)} - {"regard.papers.ground"}:
        yield from _parts_of(sys.modules[module], module)
    for claim in claims_of(key):
        if inspect.isclass(claim.obj):
            # A layer that is a rule and no more is put off where its heads are joined.
            bare = not any(_methods(claim.obj)) and hasattr(claim.obj, "mix")
            yield from [(claim.obj, "mix", claim.obj.mix)] if bare else _methods(claim.obj)


def _parts_of(home, module):
    for name, thing in list(vars(home).items()):
        if getattr(thing, "__module__", None) != module:
            continue
        if inspect.isfunction(thing) and not inspect.isgeneratorfunction(thing):
            yield home, name, thing
        elif inspect.isclass(thing):
            yield from _methods(thing)


def _methods(kind):
    for name, thing in list(vars(kind).items()):
        plain = inspect.isfunction(thing) and not inspect.isgeneratorfunction(thing)
        if plain and not (name.startswith("__") and name != "__call__"):
            yield kind, name, thing


@contextlib.contextmanager
def mutant(key):
    """Run with the code of a row one percent off, wherever its check took it from."""
    users = [m for name, m in list(sys.modules.items()) if name.startswith(OWN)]
    done = set()
    with contextlib.ExitStack() as stack:
        if key in RUN_BY:
            home = sys.modules[checks()[key].function.__module__]
            wrong = slanted(getattr(home, RUN_BY[key]))
            stack.enter_context(mock.patch.object(home, RUN_BY[key], wrong))
        for owner, name, function in parts(key):
            if (id(owner), name) in done:
                continue
            done.add((id(owner), name))
            wrong = slanted(function)
            stack.enter_context(mock.patch.object(owner, name, wrong))
            for user in users:
                for alias, thing in list(vars(user).items()):
                    if thing is function:
                        stack.enter_context(mock.patch.object(user, alias, wrong))
        yield len(done)


def outcome(key):
    """What a row's check does when its method is off: "noticed", "survived", or "whole".

    Whole is a row whose numbers a percent does not move at all: choices, counts and words.
    """
    from regard.papers import seeding

    def measured():
        seeding.begin(0)
        found = list(checks()[key].function())
        return [(one.says, one.held) for one in found], [repr(one.measured) for one in found]

    held, numbers = measured()
    with mutant(key) as changed:
        assert changed or key in RUN_BY, key
        try:
            held_after, numbers_after = measured()
        except Exception:  # what cannot even run has been noticed
            return "noticed"
    if held != held_after:
        return "noticed"
    return "whole" if numbers == numbers_after else "survived"
