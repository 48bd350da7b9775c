"""Calls over the keys of a memory, in the simplest form that means the same."""

from __future__ import annotations

from torch import Tensor

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Both, Everything, Padding, Support


def placed(call: Call, k: Tensor, v: Tensor, positions: Tensor | None) -> Call:
    """Return a call with the keys of a memory."""
    if positions is None:
        return call.replace(k=k, v=v)
    # Padding is no key of the memory, so the rule need not look for it.
    rule = without_padding(call.rule)
    if call.n == 1 and rule.position_free and bool((positions >= 0).all()):
        return call.replace(k=k, v=v, rule=rule)
    positions = positions.long()
    if positions.dim() == 3 and k.shape[1] == 1:
        positions = positions[:, 0]
    return call.replace(k=k, v=v, rule=rule, k_positions=positions)


def without_padding(rule: Rule) -> Rule:
    """Return a rule less its padding; asked again, a rule gives the same.

    >>> import torch
    >>> from regard.core.support import Causal
    >>> without_padding(Rule(Causal() & Padding(torch.tensor([True, False]))))
    Rule(Causal())
    """
    support = rule.support
    if isinstance(support, Padding):
        return rule.memo("no padding", lambda: rule.replace(support=Everything()))
    if not isinstance(support, Both) or not any(isinstance(p, Padding) for p in support.parts):
        return rule
    left: Support = Everything()
    for part in support.parts:
        left = left if isinstance(part, Padding) else left & part
    return rule.memo("no padding", lambda: rule.replace(support=left))
