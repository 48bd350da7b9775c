"""Sinks among patches: found where they are planted, registers and class tokens told apart."""

import pytest
import torch

import regard
from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError
from regard.models.engine import Engine
from regard.models.site import Site
from regard.models.stage import Stage
from regard.probes.vision import ImageSink

transformers = pytest.importorskip("transformers")

VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 24, "patch_size": 4,
}  # fmt: skip


def planted(sharp=9.0, token=1 + 2 * 6 + 3):
    """Two heads over a class token and 4 x 6 patches; the second rests on one patch."""
    n = 25
    keys = torch.zeros(1, 2, n, 4)
    keys[0, 1, token, 0] = sharp
    queries = torch.zeros(1, 2, n, 4)
    queries[..., 0] = 1.0
    site = Site(0, module="attn", heads=2, kv_heads=2, grid=(4, 6))
    return Call.of(2 * queries, keys, torch.randn(1, 2, n, 4), regard.Rule(), site=site)


def test_a_planted_sink_is_found_where_it_stands():
    probe, call = ImageSink(), planted()
    Engine([probe]).run(call)
    (sink,) = probe.sinks()
    assert (sink.place, sink.token, sink.heads) == ((2, 3), 16, (1,))
    weights = torch.softmax(call.q[0, 1] @ call.k[0, 1].T / 2, -1)
    assert sink.alpha == pytest.approx(float(weights[:, 16].mean()), abs=1e-5)
    scores = probe.told()
    assert scores[0, 0] == pytest.approx(1 / 25, abs=1e-5)
    assert scores.details["keys"][sink.site][1] == 16
    shares = probe.shares()[sink.site]
    assert shares["class"][0] == pytest.approx(1 / 25, abs=1e-5)
    assert sum(float(x[1]) for x in shares.values()) == pytest.approx(1, abs=1e-5)


def test_uniform_attention_has_no_sink():
    probe = ImageSink()
    Engine([probe]).run(planted(sharp=0.0))
    assert probe.sinks() == []


class Whole(Stage):
    """Keeps every matrix."""

    want = ("weights",)

    def __init__(self):
        super().__init__()
        self.found = {}

    def see(self, call, result):
        self.found[call.site] = result.weights


@pytest.mark.parametrize("registers", [0, 3])
def test_registers_are_told_from_class_token_and_patches(registers, seed):
    config = transformers.Dinov2WithRegistersConfig(**VISION, num_register_tokens=registers)
    model = transformers.Dinov2WithRegistersModel(config).eval()
    probe, whole = ImageSink(times=1.5), Whole()
    with torch.no_grad(), regard.attach(model, [probe, whole], check=False):
        model(pixel_values=torch.randn(2, 3, 24, 24))
    kinds = ["class"] + ["register"] * registers + ["patch"] * 36
    for site, weights in whole.found.items():
        assert probe.marks[site] == kinds
        received = weights.double().mean(2)  # [b, h, m]
        for kind, share in probe.shares()[site].items():
            there = [i for i, x in enumerate(kinds) if x == kind]
            assert share.double().allclose(received[..., there].sum(-1).mean(0), atol=1e-5)
        best = received[..., 1 + registers :].amax(-1).mean(0)
        assert probe.told().values[site].double().allclose(best, atol=1e-5)


def test_image_tokens_of_a_prompt_are_patches(seed):
    text = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 48,
    }  # fmt: skip
    vision = {**VISION, "model_type": "clip_vision_model", "image_size": 8}
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=60, image_token_id=60
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, *[60] * 4, 5, 6, 7]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 8, 8)}
    seen = regard.see(model, inputs, ["image_sink"], heads=0)
    probe_keys = seen.scores["image_sink"].details["keys"]
    language = [s for s in probe_keys if "vision" not in s.module]
    towers = [s for s in probe_keys if "vision" in s.module]
    assert language
    assert towers
    assert all(1 <= key <= 4 for s in language for key in probe_keys[s])
    shares = seen.scores["image_sink"].details["shares"]
    assert all(set(shares[s]) == {"patch", "text"} for s in language)
    assert all(set(shares[s]) == {"patch", "class"} for s in towers)


def test_a_model_of_text_has_no_patches():
    model = regard.model(["mha"], dim=16, heads=2, vocab=20)
    with pytest.raises(CapabilityError, match="no patches"):
        regard.see(model, torch.randint(0, 20, (1, 6)), ["image_sink"])
    with pytest.raises(ValueRangeError, match="more than 1"):
        ImageSink(times=1)
