"""Every quick check gives its committed verdict here and now, and fails when its method is off."""

import pytest
import torch

from regard.core.method import claims_of
from regard.layers.agents import AgentAttention
from regard.layers.base import Layer
from regard.layers.dynamic_convolution import SpanConvolution
from regard.layers.flow_attention import FlowAttention
from regard.layers.gate_networks import GaussianGate
from regard.layers.polynomial import Fastmax, LogNormal
from regard.papers.catalogue import row
from regard.papers.checks import (
    averages,
    checks,
    choosing,
    executors,
    heads,
    programmable,
    recurrent,
    rules,
    scores,
    sequences,
)
from regard.papers.evidence_files import load
from regard.papers.runner import measure
from regard.papers.standing import discover

discover()
QUICK = [key for key, one in checks().items() if not one.long]
GROUND = ("core", "run")
# Checks that measure another thing than what the claimed layer gives: where it stands.
ELSEWHERE = {
    "lightning_attention": (recurrent, "scan"),
    "aaren": (recurrent, "prefix_softmax"),
    "titans": (averages, "scan_momentum"),
    "fixed_head_size": (heads, "attend"),
    "sigmoid_attention": (scores, "attend"),
    "landmark_attention": (choosing, "attend"),
    "convbert": (SpanConvolution, "convolved"),
    "gaam": (GaussianGate, "gate"),
    "flow_attention": (FlowAttention, "look"),
    "fastmax": (Fastmax, "look"),
    "lln_attention": (LogNormal, "look"),
    "agent_attention": (AgentAttention, "look"),
}
# Checks of whole numbers, of where a trained decoder looks, and of kinds among themselves.
COARSE = {"kdgqa", "monotonic_location_attention", "dca_gmm_attention", "luong_attention"}


def layers_of(key):
    """Give the classes of layers that claim a row."""
    kinds = [claim.obj for claim in claims_of(key)]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Layer)]


@pytest.mark.parametrize("key", QUICK)
def test_the_verdict_is_the_committed_one(key):
    """A claim that holds holds here too; one that was reported not to hold is not dressed up."""
    committed = load(key)
    assert committed is not None, f"run: regard papers check {key}"
    found = measure(key)
    assert found.held == committed.held, found.numbers


def off(out):
    """Errors that grow along the sequence, so that no ratio of outputs hides them."""
    slant = torch.linspace(0.99, 1.01, out.shape[-2], dtype=out.dtype)
    return out * slant[:, None]


@pytest.mark.parametrize("key", [key for key in QUICK if claims_of(key)[0].place in GROUND])
def test_the_check_fails_when_core_or_run_are_one_percent_off(key, monkeypatch):
    for module in (executors, rules, sequences, programmable):
        true = module.attend
        monkeypatch.setattr(module, "attend", lambda *a, _t=true, **k: off(_t(*a, **k)))
    scan = sequences.scan

    def scanned(*args, form=None, **options):
        out, state = scan(*args, form=form, **options)
        return (off(out) if form == "chunked" else out), state

    monkeypatch.setattr(sequences, "scan", scanned)
    torch.manual_seed(0)
    assert not checks()[key].function().held


def slanted(true):
    """Give a function whose tensor, or whose first tensor, is off."""

    def wrong(*args, **options):
        made = true(*args, **options)
        return (off(made[0]), *made[1:]) if isinstance(made, tuple) else off(made)

    return wrong


@pytest.mark.parametrize("key", [k for k in QUICK if layers_of(k) and k not in COARSE])
def test_the_check_fails_when_the_layer_is_one_percent_off(key, monkeypatch):
    places = [(kind, "forward") for kind in layers_of(key)]
    for home, name in [ELSEWHERE[key]] if key in ELSEWHERE else places:
        monkeypatch.setattr(home, name, slanted(getattr(home, name)))
    torch.manual_seed(0)
    assert not checks()[key].function().held


def test_checks_are_of_rows_that_could_run():
    assert all(not row(key).reading for key in checks())
