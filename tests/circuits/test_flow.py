"""Rollout, flow and relevance equal their definitions written out with whole matrices."""

import pytest
import torch

import regard
from regard.circuits.flow import (
    BY,
    RecordedCalls,
    by_gradient,
    flow,
    last_attention,
    relevance,
    rollout,
    value_norm,
)  # fmt: skip
from regard.core.errors import CapabilityError, RuleError, ValueRangeError
from tests.architectures import DECODERS, ENCODERS, PAIRS, build
from tests.naive import CAUSAL, pointing, random_call, weights

IDS = torch.randint(5, 60, (1, 12), generator=torch.Generator().manual_seed(0))


def layers(rule=CAUSAL, n=12, count=3):
    return [random_call(rule, n=n, b=1, seed=seed, layer=seed) for seed in range(count)]


def mixed(call, residual=0.5):
    a = weights(call).mean(1)[0]
    made = (1 - residual) * a + residual * torch.eye(len(a), dtype=a.dtype)
    return made / made.sum(1, keepdim=True)


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("residual", [0.5, 0.2])
def test_rollout_is_a_row_of_the_product(sink, residual):
    weigh = regard.Softmax(sink=torch.zeros(4, dtype=torch.float64)) if sink else regard.Softmax()
    calls = layers(CAUSAL.replace(weigh=weigh))
    product = torch.eye(12, dtype=torch.float64)
    for call in calls:
        product = mixed(call, residual) @ product
    for position in (-1, 5):
        found = rollout(calls, position, residual)[0]
        assert torch.allclose(found, product[position], atol=1e-6)
        assert float(found.sum()) == pytest.approx(1.0)
        assert float(found[position % 12 + 1 :].abs().sum()) == 0.0


def test_rollout_of_an_identity_and_of_uniform_attention():
    own = [pointing(list(range(8))) for _ in range(3)]
    assert torch.allclose(rollout(own, 5)[0], torch.eye(8, dtype=torch.float64)[5])
    call = random_call(regard.Rule(), n=8, b=1)
    even = call.replace(q=torch.zeros_like(call.q))
    found = rollout([even, even], 3)[0]
    wanted = torch.full((8,), 0.75 / 8, dtype=torch.float64)  # two steps, a quarter stays
    wanted[3] += 0.25
    assert torch.allclose(found, wanted, atol=1e-9)


def test_flow_lies_between_one_path_and_all_capacity():
    calls = layers(n=6, count=2)
    found = flow(calls)[0]
    assert float(found.sum()) == pytest.approx(1.0)
    # Of one layer the flow is what the edges can carry: the mixed weights themselves.
    one = flow(calls[:1])[0]
    assert torch.allclose(one, mixed(calls[0])[-1], atol=1e-9)
    with pytest.raises(ValueRangeError, match="one maximal flow each"):
        flow(layers(n=12), limit=8)


def test_flow_of_two_layers_is_the_maximal_flow_by_hand():
    # At the top position 2 looks at 1 and itself; below, 1 looks at 0.
    top = pointing([0, 1, 1])
    low = pointing([0, 0, 2])
    # Capacities: (2 -> 2) 1/2, (2 -> 1) 1/2; below (2 -> 2) 1, (1 -> 0) 1/2, (1 -> 1) 1/2.
    found = flow([low, top])[0]
    assert torch.allclose(found, torch.tensor([0.5, 0.5, 0.5]).double() / 1.5, atol=1e-6)


def test_relevance_by_gradient_is_that_of_the_matrices():
    calls = layers()
    grads = [torch.randn(1, 4, 12, 8, dtype=torch.float64) for _ in calls]
    whole = torch.eye(12, dtype=torch.float64)
    for call, grad in zip(calls, grads, strict=True):
        v = call.v.repeat_interleave(2, 1)
        slope = grad @ v.transpose(-1, -2)
        whole = whole + (weights(call) * slope).clamp(min=0).mean(1)[0] @ whole
    assert torch.allclose(by_gradient(calls, grads)[0], whole[-1], atol=1e-6)


def test_the_last_layer_alone_and_by_the_length_of_values():
    calls = layers()
    a = weights(calls[-1])
    assert torch.allclose(last_attention(calls)[0], a.mean(1)[0, -1], atol=1e-6)
    lengths = calls[-1].v.repeat_interleave(2, 1).norm(dim=-1)
    moved = (a[:, :, -1] * lengths).mean(1)[0]
    assert torch.allclose(value_norm(calls)[0], moved / moved.sum(), atol=1e-6)


@pytest.mark.parametrize("by", BY)
def test_relevance_of_models(by):
    for kind, conf, causal in (("llama", DECODERS, True), ("bert", ENCODERS, False)):
        if by == "gradient" and kind == "bert":
            continue
        model = build(kind, conf[kind], **({"causal": True} if causal else {})).eval()
        before = {name: x.clone() for name, x in model.state_dict().items()}
        found = relevance(model, IDS, by, position=7)
        assert found.position == 7
        assert len(found.values) == 12
        assert bool((found.values >= 0).all())
        if causal:
            assert float(found.values[8:].sum()) == 0.0
        assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
        assert len(found.top(3)) == 3
        assert found.table().row_count == 10


def test_gradients_of_the_outputs_are_those_of_the_model():
    """R of one layer: A times its gradient, both taken from the model with its matrix."""
    model = build("llama", {**DECODERS["llama"], "num_hidden_layers": 1}, causal=True).eval()
    found = relevance(model, IDS, "gradient", target=9)
    kept = {}

    class Whole(regard.models.Stage):
        def after(self, call, partial):
            a = weights(call).float().requires_grad_()
            kept["a"] = a
            out = a @ call.v.repeat_interleave(2, 1)
            return partial._replace(out=out.to(partial.out.dtype))

    with regard.attach(model, Whole(), check=False):
        logit = model(IDS).logits[0, -1, 9]
    (grad,) = torch.autograd.grad(logit, kept["a"])
    wanted = (kept["a"] * grad).clamp(min=0).mean(1)[0, -1].detach()
    wanted[-1] += 1
    assert torch.allclose(found.values.float(), wanted, atol=1e-5)


def test_what_cannot_be_followed_is_said():
    model = build("llama", DECODERS["llama"], causal=True)
    with pytest.raises(RuleError, match="did you mean 'rollout'"):
        relevance(model, IDS, "rolout")
    with pytest.raises(ValueRangeError, match="12 tokens"):
        relevance(model, IDS, position=12)
    with pytest.raises(CapabilityError, match="self-attention alone"):
        relevance(build("t5", PAIRS["t5"]), {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]})
    with pytest.raises(CapabilityError, match="logits"):
        relevance(build("bert", ENCODERS["bert"]), IDS, "gradient")
    with pytest.raises(RuleError, match="none"):
        rollout([])
    with pytest.raises(ValueRangeError, match="residual"):
        rollout(layers(), residual=1.0)
    assert RecordedCalls().calls == []
