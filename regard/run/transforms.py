"""Which transforms of `torch.func` a call is inside of, and which executors go through them."""

from __future__ import annotations

from enum import IntEnum
from typing import NoReturn

import torch

from regard.core.errors import ExecutorError, fail


class Transforms(IntEnum):
    """What surrounds a call, and the most that an executor may be surrounded by."""

    NONE = 0
    # vmap, and one gradient: what PyTorch's own kernels go through.
    FIRST = 1
    # Forward-mode derivatives and gradients of gradients: plain tensor code goes through these.
    ANY = 2


def transforms_around() -> Transforms:
    """Return what a call made here is inside of.

    >>> found = []
    >>> _ = torch.func.vmap(lambda x: found.append(transforms_around()) or x)(torch.ones(2))
    >>> found[0].name, transforms_around().name
    ('FIRST', 'NONE')
    """
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return Transforms.NONE
    kinds = [level.key() for level in functorch.get_interpreter_stack() or ()]
    gradients = kinds.count(functorch.TransformType.Grad)
    forward = functorch.TransformType.Jvp in kinds
    return Transforms.ANY if forward or gradients > 1 else Transforms.FIRST


def no_second_derivative(executor: str) -> NoReturn:
    """Raise that the backward of an executor has no derivative of its own."""
    fail(
        ExecutorError, "create_graph", f"True: a second derivative through '{executor}'",
        "first derivatives only", "take executor='reference' where you need more",
    )  # fmt: skip
