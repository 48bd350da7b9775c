"""The newcomer's tasks of CONTRIBUTING: a mechanism, a probe and an executor, each in one file.

A support is tried in `tests/run/test_new_support.py`, an eviction policy in
`tests/policies/test_kinds.py`, a cache type of transformers in `tests/policies/test_laws.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

import regard
from regard.core.call import Call
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.core.support import Window
from regard.layers.attention import Attention
from regard.probes.base import Probe
from regard.probes.reading import counted_rows
from regard.run.executor import Answer, Executor, No, Yes
from regard.run.mass import mass
from regard.run.plan import Executors
from regard.run.reference import Reference


class Near(Attention):
    """A mechanism: heads that see the last `reach` tokens alone."""

    def __init__(self, dim: int, heads: int, *, reach: int = 3, **settings: Any) -> None:
        super().__init__(dim, heads, causal=True, support=Window(reach), **settings)


class OnItself(Probe):
    """A probe: how much a token looks at itself."""

    key, title = "on_itself", "weight on itself"
    definitions: ClassVar = {"mean": "mean over queries of A[i, i]"}

    def look(self, site: Any, call: Call, report: Any) -> None:
        """Measure the mass on the diagonal."""
        counted = counted_rows(self.reading, call)
        self.tally.add(site, mass(call, Window(1)), counted)


class Slowly(Executor):
    """An executor: the reference, one query at a time, of plain causal calls."""

    name = "slowly"

    def can(self, call: Call) -> Answer:
        """Calls with all tokens in a row."""
        return No("tokens stand at positions of their own") if call.placed else Yes()

    def run(self, call: Call) -> Partial:
        """Run each query by itself."""
        made = [
            Reference().run(call.replace(q=q, rule=call.rule.shift(i)))
            for i, q in enumerate(call.q.split(1, 2))
        ]
        return Partial(torch.cat([x.out for x in made], 2), torch.cat([x.lse for x in made], 2))


def test_a_mechanism_is_one_file() -> None:
    layer = regard.layer(f"{__name__}:Near", dim=16, heads=2, reach=3)
    x = torch.randn(1, 9, 16)
    whole, later = layer(x), layer(torch.cat((x[:, :5] + 1, x[:, 5:]), 1))
    assert not torch.allclose(whole[:, 5], later[:, 5])
    torch.testing.assert_close(whole[:, 8], later[:, 8])
    memory = layer.memory()
    steps = [layer(one, memory=memory) for one in x.split(1, 1)]
    torch.testing.assert_close(torch.cat(steps, 1), whole)


def test_a_probe_is_one_file() -> None:
    ids = torch.randint(5, 60, (1, 12))
    for asked in (OnItself(), f"{__name__}:OnItself"):
        seen = regard.see(regard.model(["mha"], dim=16, heads=2, vocab=60), ids, probes=[asked])
        (scores,) = seen.scores["on_itself"].values.values()
        assert scores.numel() == 2
        assert bool(((scores > 0) & (scores < 1)).all())


def test_an_executor_is_one_file_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Executors.places, "slowly", (__name__, "Slowly"))
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    for rule in (Rule(regard.Causal()), Rule(Window(3) | regard.Sinks(1))):
        assert "slowly" in regard.plan(q, k, k, rule).considered
        found = regard.attend(q, k, k, rule, executor="slowly")
        torch.testing.assert_close(found, regard.attend(q, k, k, rule, executor="reference"))
