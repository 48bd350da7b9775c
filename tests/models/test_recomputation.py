"""Activation checkpoints under stages: the same gradients within the `with`, a refusal outside."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from regard.models import Edit, attach
from regard.models.recomputation import RecomputationError


class Heads(nn.Module):
    """Attention of two heads, through PyTorch's function."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.inner = 2, nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.inner(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Written(nn.Module):
    """Two layers of a user's own model, each of them checkpointed."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second, self.reentrant = Heads(), Heads(), reentrant

    def forward(self, x):
        for layer in (self.first, self.second):
            again = self.reentrant is not None
            x = checkpoint(layer, x, use_reentrant=self.reentrant) if again else layer(x)
        return x


def written(reentrant):
    torch.manual_seed(0)
    model = Written(reentrant).double()
    x = torch.randn(2, 5, 8, dtype=torch.double, requires_grad=True)
    return model, lambda: model(x).square().sum()


def hugging_face(reentrant):
    torch.manual_seed(0)
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).double().train()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    ids = torch.arange(5, 12)[None]
    return model, lambda: model(ids, labels=ids, use_cache=False).loss


def edit():
    return Edit("out", lambda t: 2 * t.tanh())


def gradient(model):
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


MODELS = pytest.mark.parametrize("make", [written, hugging_face])
REENTRANT = pytest.mark.parametrize("reentrant", [False, True])


@MODELS
@REENTRANT
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_backward_within_meets_the_stages_again(make, reentrant):
    plain, loss = make(None)
    with attach(plain, [edit()], check=False):
        loss().backward()
    model, loss = make(reentrant)
    with attach(model, [edit()], check=False):
        loss().backward()
    assert torch.allclose(gradient(model), gradient(plain), atol=1e-12)


@MODELS
@REENTRANT
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_backward_after_detaching_is_refused(make, reentrant):
    model, loss = make(reentrant)
    with attach(model, [edit()], check=False):
        lost = loss()
    with pytest.raises(RecomputationError, match="before detach"):
        lost.backward()
    model.zero_grad()
    loss().backward()  # which has nothing to do with what was detached
    assert gradient(model).isfinite().all()


@MODELS
@REENTRANT
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_backward_of_a_forward_from_before_attaching_is_refused(make, reentrant):
    model, loss = make(reentrant)
    early = loss()
    with (
        attach(model, [edit()], check=False),
        pytest.raises(RecomputationError, match="attached after the forward"),
    ):
        early.backward()


@MODELS
def test_without_checkpoints_backward_may_come_later(make):
    model, loss = make(None)
    with attach(model, [edit()], check=False):
        loss().backward()
        wanted = gradient(model)
        later = loss()
    later.backward()
    assert torch.equal(gradient(model), wanted)


def test_a_part_without_gradients_is_no_checkpoint():
    model, loss = written(None)
    plain = model.first.forward
    model.first.forward = torch.no_grad()(lambda x: plain(x))
    with attach(model, [edit()], check=False):
        later = loss()
    later.backward()
    assert model.second.inner.weight.grad is not None
