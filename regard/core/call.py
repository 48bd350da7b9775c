"""One call of attention: queries, the keys they may attend to, and a rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from regard.core.keys import Dense, Keys
from regard.core.rule import Rule
from regard.core.score.base import At

PLAIN = Rule.of(None)
_PARTS = ("q", "keys", "rule", "q_positions", "dropout", "site", "forward")


@dataclass(frozen=True, eq=False, init=False)
class Call:
    """Queries q [b, h, n, d], the `keys` they may attend to, and the rule.

    `keys` is a `Keys` in any form; `Call.of` makes one of tensors k [b, g, m, d], v [b, g, m, e].
    `q_positions` [n] or [b, n] are the positions of the queries, where these are not 0, 1, 2, ...
    after `rule.offset`. `site` names the place in a model that the call comes from, and `forward`
    is what is known of the forward of the model that is running.

    >>> q = torch.randn(1, 4, 3, 8)
    >>> call = Call(q, Dense(q[:, :2], q[:, :2]))
    >>> call.h, call.g, call.m
    (4, 2, 3)
    """

    q: Tensor
    keys: Keys
    rule: Rule = PLAIN
    q_positions: Tensor | None = None
    dropout: float = 0.0
    site: Any = None
    forward: Any = None

    def __init__(
        self,
        q: Tensor,
        keys: Keys,
        rule: Rule = PLAIN,
        q_positions: Tensor | None = None,
        dropout: float = 0.0,
        site: Any = None,
        forward: Any = None,
    ) -> None:
        parts = self.__dict__  # as a frozen dataclass would, in a third of the time: all calls pay
        parts["q"], parts["keys"], parts["rule"] = q, keys, rule
        parts["q_positions"], parts["dropout"] = q_positions, dropout
        parts["site"], parts["forward"] = site, forward

    @staticmethod
    def of(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rule: Rule = PLAIN,
        q_positions: Tensor | None = None,
        k_positions: Tensor | None = None,
        dropout: float = 0.0,
        site: Any = None,
        forward: Any = None,
    ) -> Call:
        """Build a call over tensors k [b, g, m, d] and v [b, g, m, e].

        `k_positions` [m], [b, m] or [b, g, m] are the positions of keys that are not 0, 1, 2, ...;
        -1 marks an empty slot.
        """
        return Call(q, Dense(k, v, k_positions), rule, q_positions, dropout, site, forward)

    @property
    def b(self) -> int:
        """Batch size."""
        return self.q.shape[0]

    @property
    def h(self) -> int:
        """Query heads."""
        return self.q.shape[1]

    @property
    def g(self) -> int:
        """Key heads."""
        return self.keys.shape[1]

    @property
    def n(self) -> int:
        """Queries."""
        return self.q.shape[2]

    @property
    def m(self) -> int:
        """Keys."""
        return self.keys.shape[2]

    @property
    def d(self) -> int:
        """Head size of queries and keys."""
        return self.q.shape[3]

    @property
    def e(self) -> int:
        """Head size of values."""
        return self.keys.shape[4]

    @property
    def dense(self) -> Dense:
        """The keys as tensors: made once, where they are stored otherwise."""
        keys = self.keys
        return keys if type(keys) is Dense else self._made_dense

    @cached_property
    def _made_dense(self) -> Dense:
        return self.keys.dense()

    @property
    def k(self) -> Tensor:
        """Keys [b, g, m, d] as a tensor."""
        keys = self.keys
        return keys.k if type(keys) is Dense else self._made_dense.k

    @property
    def v(self) -> Tensor:
        """Values [b, g, m, e] as a tensor."""
        keys = self.keys
        return keys.v if type(keys) is Dense else self._made_dense.v

    @property
    def k_positions(self) -> Tensor | None:
        """Positions of the keys; None where key j is at j."""
        return self.dense.positions

    @cached_property
    def placed(self) -> bool:
        """Whether it matters that tokens have other positions than 0, 1, 2, ..."""
        if self.q_positions is None and not self.keys.placed:
            return False
        return not (self.rule.position_free and self.keys.full)

    @property
    def needs_grad(self) -> bool:
        """Whether a gradient will be asked of q, k, v or the rule."""
        if not torch.is_grad_enabled():
            return False
        return self.q.requires_grad or self.keys.requires_grad or self.rule_needs_grad

    @property
    def rule_needs_grad(self) -> bool:
        """Whether the rule holds something that is being learned."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in self.rule.reads().tensors)

    def replace(self, **changes: Any) -> Call:
        """Return the same call with some parts changed; `k`, `v`, `k_positions` make dense keys."""
        if "k" in changes or "v" in changes or "k_positions" in changes:
            k, v, at = (changes.pop(x, self) for x in ("k", "v", "k_positions"))
            old = changes.pop("keys", None) or self.dense
            changes["keys"] = Dense(
                old.k if k is self else k, old.v if v is self else v, old.at if at is self else at
            )
        # Written out, for it is asked at every step of decoding.
        made = object.__new__(Call)
        parts = made.__dict__
        for name in _PARTS:
            parts[name] = changes.pop(name) if name in changes else self.__dict__[name]
        if changes:
            raise TypeError(f"a Call has no {', '.join(changes)}; it has {', '.join(_PARTS)}")
        return made

    def at(self, rows: Tensor | None = None, cols: Tensor | None = None) -> At:
        """Return the places of some queries and keys (all where not given), to broadcast.

        `rows` and `cols` are 1-D index tensors.
        """
        device = self.q.device
        rows = torch.arange(self.n, device=device) if rows is None else rows
        cols = torch.arange(self.m, device=device) if cols is None else cols
        b = torch.arange(self.b, device=device).view(-1, 1, 1, 1)
        h = torch.arange(self.h, device=device).view(-1, 1, 1)
        i, j = rows.view(-1, 1) + self.rule.offset, cols
        if self.q_positions is not None:
            x = self.q_positions.to(device)[..., rows] + self.rule.offset
            i = x[:, None, :, None] if x.dim() == 2 else x[:, None]
        positions = self.keys.positions
        if positions is not None:
            y = positions.to(device)[..., cols]
            if y.dim() == 3:
                y = y.repeat_interleave(self.h // y.shape[1], dim=1)
                j = y[:, :, None]
            else:
                j = y[:, None, None] if y.dim() == 2 else y
        return At(b, h, rows.view(-1, 1), cols, i, j)

    def allowed(self, at: At) -> Tensor:
        """Return which pairs may attend, broadcasting to [b, h, n, m]."""
        support = self.rule.support
        if support.tensors():
            support = support.memo(("on", str(self.q.device)), lambda: support.to(self.q.device))
        met = support.allows(at.b, at.h, at.i, at.j)
        return met & (at.j >= 0) if self.keys.placed else met

    def checked(self) -> Call:
        """Raise a `RegardError` unless the call can mean something; return the call."""
        from regard.core.call_checks import check_call  # it reads calls

        check_call(self)
        return self
