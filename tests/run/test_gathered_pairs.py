"""Weight on few pairs, gathered, is that under a mask over all of them."""

import pytest
import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, SoftCap
from regard.core.support import Causal, Everything, Padding, Where, Window
from regard.core.weigh import Softmax
from regard.probes.reading import Reading
from regard.probes.roles import Delimiter, InductionInText
from regard.run.mass import (
    GATHERED,
    at_distance,
    gathers,
    log_part,
    log_part_at,
    log_part_of_groups,
    log_part_of_keys,
)

RULES = {
    "causal": Rule(Causal()),
    "window": Rule(Causal() & Window(50)),
    "everything": Rule(),
    "capped": Rule(Causal(), Dot() >> SoftCap(5)),
    "by position": Rule(Causal(), Dot() + Alibi.for_heads(4)),
    "sink": Rule(Causal(), weigh=Softmax(plus_one=True)),
}


def call_of(rule, n=180):
    return Call.of(torch.randn(1, 4, n, 8), *(torch.randn(1, 2, n, 8) for _ in "kv"), rule)


def alike(found, wanted):
    assert torch.equal(torch.isinf(found), torch.isinf(wanted))
    there = ~torch.isinf(wanted)
    assert torch.allclose(found[there], wanted[there].to(found.dtype), atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_of_groups(name):
    call = call_of(RULES[name])
    of_queries, of_keys = (torch.randint(-1, 20, (call.n,)) for _ in "qk")

    def same(b, h, i, j):
        return (of_queries[i.clamp(0, 179)] == of_keys[j.clamp(0, 179)]) & (of_keys[j] >= 0)

    for part in (Everything(), Window(20)):
        found = log_part_of_groups(call, of_queries, of_keys, part)
        alike(found, log_part(call, part & Where(same)))


@pytest.mark.parametrize("distance", [0, 1, -1, 49, 50, 400])
@pytest.mark.parametrize("name", RULES)
def test_at_a_distance(name, distance):
    for call in (call_of(RULES[name]), call_of(RULES[name].replace(offset=7))):
        alike(log_part_at(call, distance), log_part(call, at_distance(distance)))
        q_positions = torch.arange(call.n) + 3
        placed = call.replace(q_positions=q_positions)
        alike(log_part_at(placed, distance), log_part(placed, at_distance(distance)))


@pytest.mark.parametrize("at_once", [64, 512])
@pytest.mark.parametrize("name", RULES)
def test_of_keys(name, at_once, monkeypatch):
    monkeypatch.setattr("regard.run.mass.BEFORE", at_once)
    call = call_of(RULES[name])
    there = torch.rand(call.m) < 0.2
    alike(log_part_of_keys(call, there.nonzero()[:, 0]), log_part(call, Padding(there)))


@pytest.mark.parametrize("probe", [InductionInText(), Delimiter(ids=[3, 5])], ids=["text", "marks"])
def test_probes_of_long_texts_gather_and_say_the_same(probe, monkeypatch):
    call = call_of(RULES["causal"], GATHERED + 6)
    probe.show(Reading({"input_ids": torch.randint(0, 40, (1, call.n))}))
    assert gathers(call)
    quick = probe.log_part(call)
    monkeypatch.setattr("regard.probes.roles.gathers", lambda call: False)
    alike(quick, probe.log_part(call))
