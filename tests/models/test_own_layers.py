"""Stages at work on models made of Regard's own layers."""

import copy

import pytest
import torch

import regard
from regard.models import Edit, Null, Stage

SETTINGS = [
    {"layers": ["mha", "gqa", "cross_layer_attention"], "position": "rotary"},
    {"layers": ["moh", "differential", "talking_heads"]},
    {"layers": ["mla", "softmax_plus_one"], "latent": 8},
    {"layers": ["mha", "retention", "mqa"]},
]


def make(settings):
    torch.manual_seed(0)
    return regard.model(**settings, dim=32, heads=4, vocab=40).eval()


TOKENS = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s["layers"]))
def test_a_stage_that_does_nothing_changes_nothing(settings):
    model = make(settings)
    wanted, made = model(TOKENS), model.generate(TOKENS, 5)
    with regard.attach(model, Null()) as attached:
        assert len(attached.sites) == sum(name != "retention" for name in settings["layers"])
        assert torch.allclose(model(TOKENS), wanted, atol=1e-6)
        assert torch.equal(model.generate(TOKENS, 5), made)
    assert torch.equal(model(TOKENS), wanted)
    assert not any("attend" in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s["layers"]))
def test_an_edit_is_felt_at_its_layer(settings):
    model = make(settings)
    wanted = model(TOKENS)
    with regard.attach(model, Edit("out", lambda x: 0 * x, where=0), check=False):
        changed = model(TOKENS)
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent.stack.blocks[0].mixer.to_out.weight.zero_()
    assert not torch.allclose(changed, wanted, atol=1e-3)
    assert torch.allclose(changed, silent(TOKENS), atol=1e-5)


def test_surveys_see_each_layer():
    class Entropy(Stage):
        want = ("entropy",)

        def __init__(self):
            super().__init__()
            self.seen = {}

        def see(self, call, result):
            self.seen[call.site.layer] = result.survey.entropy

    model, probe = make(SETTINGS[0]), Entropy()
    with regard.attach(model, probe):
        model(TOKENS)
    assert sorted(probe.seen) == [0, 1, 2]
    # A causal row of i + 1 keys has at most log(i + 1) of entropy.
    limit = torch.arange(1, 13).log()
    assert all((entropy <= limit + 1e-4).all() for entropy in probe.seen.values())


def test_two_attachments_nest_and_come_off_in_any_order():
    model = make(SETTINGS[0])
    wanted = model(TOKENS)
    outer = regard.attach(model, Edit("out", lambda x: x + 1, where=1))
    inner = regard.attach(model, Edit("out", lambda x: 2 * x, where=1))
    both = model(TOKENS)
    outer.detach()
    assert not torch.allclose(model(TOKENS), both)
    inner.detach()
    assert torch.equal(model(TOKENS), wanted)
