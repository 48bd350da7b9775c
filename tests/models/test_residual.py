"""The residual stream is the sum of its parts, and logits are sums over them."""

import pytest
import torch

import regard
from regard.circuits.lenses import logit_lens, train_lenses
from regard.core.errors import CapabilityError, RuleError, ShapeError, ValueRangeError
from regard.models.attach import attach, hook_of
from regard.models.residual import FrozenNorm, Stream, watched
from regard.models.stage import Edit
from regard.probes.logits import (
    LogitAttribution,
    TokenLens,
    agreement,
    internal_consistency,
    logit_parts,
    mlp_decomposition,
    topic_scores,
    weighted_vote,
)  # fmt: skip
from tests.architectures import DECODERS, ENCODERS, build

IDS = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
# These norm or scale what a layer adds, and are refused.
OTHERWISE = {"gemma2", "gemma3_text", "olmo2", "exaone4", "falcon"}
SCALED = {"cohere": 0.0625, "cohere2": 0.0625}  # a factor on all logits
NAMES = [name for name in DECODERS if name not in OTHERWISE]


def small(name):
    torch.manual_seed(0)
    return build(name, DECODERS[name], causal=True).eval()


@pytest.mark.parametrize("name", NAMES)
def test_parts_sum_to_the_final_state_and_to_the_logits(name):
    model = small(name)
    stream = watched(model, IDS)
    total = stream.embedding
    for layer in stream.layers:
        site = layer.site
        total = total + stream.heads(site).sum(1) + stream.bias(site) + stream.rest(site)
    assert torch.allclose(total, stream.final, atol=1e-6)
    with torch.no_grad():
        logits = model(IDS).logits
    factor = SCALED.get(name, 1.0)
    for against in (None, torch.tensor([8, 9])):
        parts = logit_parts(stream, 7, against)
        wanted = logits[:, -1, 7] - (0 if against is None else logits[[0, 1], -1, against])
        assert torch.allclose(factor * parts.total, wanted, atol=1e-5)


@pytest.mark.parametrize("name", sorted(OTHERWISE))
def test_streams_that_add_otherwise_are_refused(name):
    with pytest.raises(CapabilityError, match="does not add the outputs"):
        logit_parts(watched(small(name), IDS), 7)


def test_an_encoder_has_no_logits():
    with pytest.raises(CapabilityError, match="no unembedding"):
        watched(build("bert", ENCODERS["bert"]), IDS)


@pytest.mark.parametrize("kind", [torch.nn.LayerNorm, torch.nn.RMSNorm])
@pytest.mark.parametrize("size", [16, 17])
def test_a_frozen_norm_is_the_norm_at_its_input_and_linear(kind, size):
    torch.manual_seed(0)
    norm = kind(size)
    torch.nn.init.normal_(norm.weight)
    if getattr(norm, "bias", None) is not None:
        torch.nn.init.normal_(norm.bias)
    with torch.no_grad():
        x = torch.randn(3, 5, size)
        frozen = FrozenNorm.at(norm, x)
        assert frozen.centered == (kind is torch.nn.LayerNorm)
        assert torch.allclose(frozen(x) + frozen.bias, norm(x), atol=1e-4)
        a, b = torch.randn(2, 3, 5, size)
        assert torch.allclose(frozen(a + 2 * b), frozen(a) + 2 * frozen(b), atol=1e-5)
        left, right = (frozen(a) * b).sum(-1), (a * frozen.back(b)).sum(-1)
        assert torch.allclose(left, right, atol=1e-4)


def test_the_probe_is_the_mean_over_tokens():
    model = small("llama")
    found = regard.see(model, IDS, [LogitAttribution(definition="raw")]).scores
    means = torch.zeros(2, 4)
    stream = watched(model, IDS)
    for row in range(8):
        parts = logit_parts(stream, IDS[:, row + 1], None, row)
        means += torch.stack([x.mean(0) for x in parts.heads.values()]) / 8
    assert torch.allclose(torch.tensor(found["logit_attribution"].array()), means, atol=1e-5)
    centered = regard.see(model, IDS, ["logit_attribution"]).scores["logit_attribution"]
    assert centered.definition == "centered"


def test_a_silenced_head_takes_its_part_of_the_logit_with_it():
    """In the last layer, where nothing comes after but the norm, whose scale moves little."""
    model = small("gpt_neox")  # attention and MLP side by side: no MLP reads this head
    stream = watched(model, IDS)
    site = stream.layers[-1].site
    parts = logit_parts(stream, 7, 8)
    quiet = Edit("out", lambda out: 0.999 * out, where={"layers": site.layer, "heads": [2]})
    with torch.no_grad():
        plain = model(IDS).logits[:, -1]
        with attach(model, quiet, check=False):
            less = model(IDS).logits[:, -1]
    change = ((plain - less)[:, 7] - (plain - less)[:, 8]) / 1e-3
    scale_moves = (parts.total - parts.constant).abs() * 0.1
    assert bool(((change - parts.heads[site][:, 2]).abs() <= scale_moves + 1e-2).all())


@pytest.mark.parametrize("row", [-1, 4])
def test_token_lenses_over_a_partition_sum_to_the_layer(row):
    model = small("llama")
    at = range(9)[row]
    lenses = [TokenLens(some, row) for some in ([0], [1, 2, 3], list(range(4, 9)))]
    with attach(model, lenses, check=False), torch.no_grad():
        model(IDS)
    stream = watched(model, IDS)
    for layer in stream.layers:
        total = sum(lens.said[layer.site] for lens in lenses)
        assert torch.allclose(total, stream.heads(layer.site)[:, :, at], atol=1e-6)
    site, (weight, _) = stream.layers[0].site, stream.unembedding
    brought = lenses[1].said[site].sum(1)
    own = model.model.norm(brought) @ weight.T
    assert torch.allclose(lenses[1].logits(site, "own"), own, atol=1e-5)
    assert lenses[1].logits(site).shape == own.shape
    with pytest.raises(RuleError, match="'frozen' or 'own'"):
        lenses[0].logits(site, "mine")


def test_answers_are_read_layer_by_layer():
    model = small("llama")
    found = internal_consistency(watched(model, IDS), [5, 6, 7])
    with torch.no_grad():
        logits = model(IDS).logits[:, -1, [5, 6, 7]]
    assert torch.allclose(found.logits[:, -1], logits, atol=1e-5)
    assert found.logits.shape == (2, 2, 3)
    # Every layer adds to one answer: all agree; a last layer that turns: none does.
    steady = torch.arange(1, 7.0)[None, :, None] * torch.tensor([1.0, -1.0])
    assert float(agreement(steady).agreement) == 1.0
    turned = steady.clone()
    turned[:, -1] *= -1
    assert float(agreement(turned).agreement) == 0.0
    assert weighted_vote([0, 1, 1], [0.5, 0.5, 0.5]) == 1  # equal: a plain majority
    assert weighted_vote([0, 1, 1], [0.9, 0.3, 0.4]) == 0


def test_mlps_are_taken_apart_by_least_squares():
    torch.manual_seed(0)
    one, two = torch.randn(2, 40, 16)
    found = mlp_decomposition(2 * one - two, {"one": one, "two": two})
    assert found == pytest.approx({"one": 2.0, "two": -1.0})
    stream = watched(small("llama"), IDS)
    assert set(topic_scores(stream, 7).values) == {layer.site for layer in stream.layers}


def test_wrong_tokens_and_rows_are_errors():
    stream = watched(small("llama"), IDS)
    with pytest.raises(ValueRangeError, match="row"):
        logit_parts(stream, 7, row=20)
    with pytest.raises(ShapeError, match="one id"):
        logit_parts(stream, torch.tensor([1, 2, 3]))
    with pytest.raises(RuleError, match="no forward"):
        Stream().frozen()


def test_lenses_start_as_the_unembedding_and_come_nearer():
    model = small("llama")
    ids = torch.randint(5, 60, (8, 16), generator=torch.Generator().manual_seed(1))
    site = hook_of(model)[1][1]
    few = train_lenses(model, ids, [(site, 0), (site, 3)], steps=1, rate=1e-9)
    many = train_lenses(model, ids, [(site, 0), (site, 3)], steps=80, rate=1e-2)
    stream = watched(model, ids)
    for head in ((site, 0), (site, 3)):
        assert few.read(stream, head) == logit_lens(stream, head)
        assert many.loss[head] < few.loss[head]
    with pytest.raises(ValueRangeError, match="some texts"):
        train_lenses(model, [], [(site, 0)])
