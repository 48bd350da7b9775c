"""The public functions: attend, partial, plan."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import PLAIN, Call
from regard.core.errors import RuleError, fail, shape_of
from regard.core.keys import Dense, Keys
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.core.score.base import Score
from regard.core.support.base import Support
from regard.core.weigh import Weigh
from regard.run.isolation import one_dtype
from regard.run.plan import EXECUTORS, Plan, make_plan
from regard.run.runner import OUT, partial_of, run

RuleLike = Rule | Support | Score | Weigh | None


def attend(
    q: Tensor,
    k: Tensor | Keys,
    v: Tensor | None = None,
    rule: RuleLike = None,
    *,
    executor: str | None = None,
    q_positions: Tensor | None = None,
    k_positions: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend: q [b, h, n, d], k [b, g, m, d], v [b, g, m, e] give [b, h, n, e].

    `rule` is a `Rule` or one of its parts; g divides h. `q_positions` and `k_positions` are those
    of tokens that are not at 0, 1, 2, ... (see `Call`). In place of k and v a `Keys` of any form is
    taken: `attend(q, keys, rule=rule)`. The executor is chosen by `plan` unless one is named.
    Queries that may attend to no key give zeros.

    >>> import torch
    >>> from regard.core.support import Causal, Sinks, Window
    >>> q, k = torch.randn(1, 4, 32, 16), torch.randn(1, 2, 32, 16)
    >>> attend(q, k, k, Causal() & (Window(8) | Sinks(2))).shape
    torch.Size([1, 4, 32, 16])
    >>> attend(q, Dense(k, k).take(torch.tensor([[[0, 5], [7, 8]]])), rule=Causal()).shape
    torch.Size([1, 4, 32, 16])
    """
    if isinstance(k, Tensor) and v is not None:
        q, k, v = one_dtype(q, k, v)
    if (
        torch.compiler.is_compiling()
        and isinstance(k, Tensor)
        and v is not None
        and q_positions is None
        and k_positions is None
        and not dropout
    ):
        from regard.run.compile import attend_compiled  # loads the compiler, which takes a second

        forced = -1 if executor is None else list(EXECUTORS.places).index(executor)
        whole = PLAIN if rule is None else rule
        if isinstance(whole, Rule) and not whole.traced:
            return attend_compiled(q, k, v, list(whole.held), whole.number, forced)
    if torch.compiler.is_dynamo_compiling():
        from regard.core.uncompiled import uncompiled

        out: Tensor = uncompiled(
            attend, q, k, v, rule, executor=executor,
            q_positions=q_positions, k_positions=k_positions, dropout=dropout,
        )  # fmt: skip
        return out
    call = Call(q, _keys(k, v, k_positions), Rule.of(rule), q_positions, dropout)
    return run(call, OUT, executor).out


def partial(
    q: Tensor,
    k: Tensor | Keys,
    v: Tensor | None = None,
    rule: RuleLike = None,
    *,
    executor: str | None = None,
    q_positions: Tensor | None = None,
    k_positions: Tensor | None = None,
) -> Partial:
    """Attend to these keys as a part of more: (out, lse), to be merged.

    What counts once a row (a sink logit) is left out: `rule.weigh.apply_sink(merge(...))` adds it.

    >>> import torch
    >>> q = torch.randn(1, 2, 3, 8)
    >>> partial(q, q, q).lse.shape
    torch.Size([1, 2, 3])
    """
    if torch.compiler.is_compiling():
        from regard.core.uncompiled import uncompiled

        part: Partial = uncompiled(
            partial, q, k, v, rule, executor=executor,
            q_positions=q_positions, k_positions=k_positions,
        )  # fmt: skip
        return part
    if isinstance(k, Tensor) and v is not None:
        q, k, v = one_dtype(q, k, v)
    return partial_of(Call(q, _keys(k, v, k_positions), Rule.of(rule), q_positions), executor)


def plan(
    q: Tensor,
    k: Tensor | Keys,
    v: Tensor | None = None,
    rule: RuleLike = None,
    *,
    executor: str | None = None,
    q_positions: Tensor | None = None,
    k_positions: Tensor | None = None,
    dropout: float = 0.0,
) -> Plan:
    """Return which executor would run the call, why, at what cost, and what was ruled out and why.

    >>> import torch
    >>> q = torch.randn(1, 2, 64, 8)
    >>> plan(q, q, q).executor
    'fused'
    """
    keys = _keys(k, v, k_positions)
    return make_plan(Call(q, keys, Rule.of(rule), q_positions, dropout), executor)


def _keys(k: Tensor | Keys, v: Tensor | None, k_positions: Tensor | None) -> Keys:
    """Return keys as a value."""
    if type(k) is Tensor or not isinstance(k, Keys):
        return Dense(k, v, k_positions)  # type: ignore[arg-type]  # checked with the call
    if v is not None or k_positions is not None:
        fail(
            RuleError, "v" if v is not None else "k_positions",
            shape_of(v if v is not None else k_positions),
            "nothing beside a Keys, which holds its values and positions",
            "name the rule: attend(q, keys, rule=rule)",
        )  # fmt: skip
    return k
