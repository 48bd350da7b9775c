"""A model of ours, exported, scores and writes as it did; what has no counterpart is named."""

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.conversions import export
from regard.core.errors import CapabilityError

IDS = torch.randint(0, 60, (2, 20), generator=torch.Generator().manual_seed(1))
COMMON = {"dim": 48, "heads": 4, "vocab": 60, "position": "rotary"}


@pytest.mark.parametrize(
    ("kind", "names", "settings"),
    [
        ("LlamaForCausalLM", ["mha"] * 2, {}),
        ("LlamaForCausalLM", ["gqa"] * 2, {"kv_heads": 2, "tied": False}),
        ("LlamaForCausalLM", ["mqa"] * 2, {"width": 100}),
        ("LlamaForCausalLM", ["mha"] * 2, {"position": regard.layers.positions.Rotary(base=500.0)}),
        ("Qwen3ForCausalLM", ["gqa"] * 2, {"kv_heads": 2, "qk_norm": torch.nn.RMSNorm}),
        ("MistralForCausalLM", ["mha"] * 2, {"support": regard.Window(5)}),
    ],
)
def test_what_is_exported_says_the_same(kind, names, settings, tmp_path):
    torch.manual_seed(0)
    ours = regard.model(names, **{**COMMON, **settings}).eval()
    with torch.no_grad():
        for p in ours.parameters():  # norms of one would hide that they were left out
            p.add_(0.1 * torch.randn_like(p))
        theirs = export(ours)
        assert type(theirs).__name__ == kind
        assert torch.allclose(theirs(input_ids=IDS).logits, ours(IDS), atol=2e-5)
        wanted = ours.generate(IDS, 8)
        assert torch.equal(theirs.generate(IDS, max_new_tokens=8, do_sample=False), wanted)
    theirs.save_pretrained(tmp_path)
    back = type(theirs).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(back(input_ids=IDS).logits, ours(IDS), atol=2e-5)


@pytest.mark.parametrize(
    ("names", "settings", "says"),
    [
        (["retention"], {"position": None}, "Retention"),
        (["mha", "mqa"], {}, "2 kinds of attention"),
        (["mha"], {"position": "alibi"}, "rotary"),
        (["mha"], {"bias": True}, "biases"),
        (["mha"], {"support": regard.Sinks(2)}, "Window"),
        (["mha"], {"weigh": regard.Sigmoid()}, "softmax"),
        (["mha"], {"score": regard.Dot(1.0)}, "scaled dot product"),
        (["cross_layer_attention"] * 2, {"sources": [0, 0]}, "mha, gqa or mqa"),
        (["mha"], {"absolute": "learned"}, "rotary positions alone"),
    ],
)
def test_what_has_no_counterpart_is_named(names, settings, says):
    given = {**COMMON, **settings}
    given = {k: x for k, x in given.items() if x is not None}
    with pytest.raises(CapabilityError, match=says):
        export(regard.model(names, **given))


def test_only_models_of_ours_are_exported():
    with pytest.raises(CapabilityError, match=r"regard\.model"):
        export(torch.nn.Linear(2, 2))
