"""Rules without padding, for keys of a memory, which has none."""

from __future__ import annotations

from regard.core.rule import Rule
from regard.core.support import Both, Everything, Padding, Support


def without_padding(rule: Rule) -> Rule:
    """Return a rule without its padding; the result is cached.

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
