"""Any module that attends through PyTorch is itself with a stage that does nothing."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from regard.models import Edit, Null, Stage, UnsupportedModelError, attach
from regard.models.forward import current_forward
from regard.models.sdpa import call_of

ROOM = 2e-6


class Plain(nn.Module):
    """The attention of a notebook: one projection, heads, a causal product."""

    def __init__(self, kind: str = "causal") -> None:
        super().__init__()
        self.n_head, self.kind = 4, kind
        self.c_attn, self.c_proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.bias = nn.Parameter(torch.randn(1, 4, 7, 7))

    def forward(self, x: Tensor, fails: bool = False) -> Tensor:
        b, n, c = x.shape
        q, k, v = (y.view(b, n, 4, 8).transpose(1, 2) for y in self.c_attn(x).chunk(3, -1))
        if self.kind == "three axes":
            q, k, v = (y.reshape(b * 4, n, 8) for y in (q, k, v))
        masks: dict[str, Any] = {
            "causal": {"is_causal": True},
            "three axes": {"scale": 0.3},
            "bias": {"attn_mask": self.bias},
            "grouped": {"enable_gqa": True},
            "padded": {
                "attn_mask": torch.arange(n).view(1, 1, 1, n)
                < torch.tensor([5, 7]).view(2, 1, 1, 1)
            },
            "mask": {"attn_mask": torch.ones(n, n).tril().bool()},
        }
        if self.kind == "grouped":
            k, v = k[:, :2], v[:, :2]
        y = F.scaled_dot_product_attention(q, k, v, **masks[self.kind])
        if fails:
            raise KeyError("told to")
        return self.c_proj(y.reshape(b, 4, n, 8).transpose(1, 2).reshape(b, n, c))


KINDS = ("causal", "three axes", "bias", "grouped", "padded", "mask")


def tokens() -> Tensor:
    return torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))


def state_of(model: nn.Module) -> list[Any]:
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
        for m in model.modules()
    ] + [torch.backends.mha.get_fastpath_enabled()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_module_is_itself(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Plain(kind), Plain(kind))
    x, before = tokens(), None
    plain, before = model(x), state_of(model)
    with attach(model) as attached:
        assert torch.equal(model(x), plain)
        assert [s.module for s in attached.sites] == ["0", "1"]
    with attach(model, [Null()]):
        torch.testing.assert_close(model(x), plain, atol=ROOM, rtol=ROOM)
    with attach(model, [Edit("out", lambda o: 0 * o, where={"layers": 1})]):
        assert not torch.allclose(model(x), plain)
    assert torch.equal(model(x), plain)
    assert state_of(model) == before


def test_a_learned_bias_gets_its_gradient() -> None:
    torch.manual_seed(0)
    model = Plain("bias")
    (plain,) = torch.autograd.grad(model(tokens()).square().sum(), [model.bias])
    with attach(model, [Null()]):
        (found,) = torch.autograd.grad(model(tokens()).square().sum(), [model.bias])
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)
    assert float(plain.abs().max()) > 0


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("masked", ["none", "padding", "causal", "both"])
def test_multihead_attention_is_itself(first: bool, weights: bool, masked: str) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(32, 4, batch_first=first)
    x = tokens() if first else tokens().transpose(0, 1)
    masks: dict[str, Any] = {}
    if masked in ("padding", "both"):
        masks["key_padding_mask"] = torch.arange(7) >= torch.tensor([[5], [7]])
    if masked in ("causal", "both"):
        masks["attn_mask"] = torch.ones(7, 7).triu(1).bool()
    plain = model(x, x, x, need_weights=weights, **masks)
    with attach(model, [Null()]):
        found = model(x, x, x, need_weights=weights, **masks)
    with attach(model, [Edit("v", lambda v: 2 * v)]):
        assert not torch.allclose(model(x, x, x, need_weights=weights, **masks)[0], plain[0])
    torch.testing.assert_close(found[0], plain[0], atol=ROOM, rtol=ROOM)
    assert (found[1] is None) == (plain[1] is None) == (not weights)
    if weights:
        torch.testing.assert_close(found[1], plain[1], atol=ROOM, rtol=ROOM)


@pytest.mark.parametrize("training", [True, False])
def test_a_transformer_is_itself(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Transformer(32, 4, 2, 2, 48, dropout=0.0, batch_first=True).train(training)
    x, y = tokens(), tokens()[:, :5]
    padding = torch.arange(7) >= torch.tensor([[5], [7]])
    told = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(5),
        "src_key_padding_mask": padding,
        "memory_key_padding_mask": padding,
        "tgt_is_causal": True,
    }
    with torch.no_grad():
        plain, before = model(x, y, **told), state_of(model)
        with attach(model, [Null()]) as attached:
            assert {s.kind for s in attached.sites} == {"self", "cross"}
            torch.testing.assert_close(model(x, y, **told), plain, atol=1e-5, rtol=1e-5)
        with attach(model, [Edit("out", lambda o: 0 * o, where="cross")]):
            assert not torch.allclose(model(x, y, **told), plain)
    assert state_of(model) == before


def test_an_exception_leaves_nothing_behind() -> None:
    model = Plain()
    before, plain = state_of(model), model(tokens())
    with pytest.raises(KeyError), attach(model, [Edit("out", lambda o: 0 * o)]):
        model(tokens(), fails=True)
    assert state_of(model) == before
    assert torch.equal(model(tokens()), plain)
    assert torch.overrides._get_current_function_mode() is None


def test_attachments_stack() -> None:
    model = Plain()
    plain = model(tokens())
    with (
        attach(model, [Edit("out", lambda o: 4 * o)]),
        attach(model, [Edit("out", lambda o: o / 4)]),
    ):
        torch.testing.assert_close(model(tokens()), plain, atol=ROOM, rtol=ROOM)


def test_causal_begins_at_the_first_key() -> None:
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8)
    call, _ = call_of(None, q, k, k, is_causal=True)
    expected = F.scaled_dot_product_attention(q, k, k, is_causal=True)
    from regard.run.runner import run

    torch.testing.assert_close(run(call).out, expected)


def test_a_module_out_of_reach_is_named() -> None:
    class OwnAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.mT).softmax(-1) @ x

    with pytest.raises(UnsupportedModelError, match="OwnAttention"):
        attach(nn.Sequential(OwnAttention()))


class Gpt(nn.Module):
    """A small GPT as one writes it by hand: embeddings, blocks, a head."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(40, 32), nn.Embedding(16, 32)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(32), "attn": Plain(), "mlp": nn.Linear(32, 32)})
            for _ in range(layers)
        )
        self.head = nn.Linear(32, 40, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = x + block["attn"](block["norm"](x))
            x = x + F.gelu(block["mlp"](x))
        logits: Tensor = self.head(x)
        return logits


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_a_gpt_written_by_hand_trains_the_same(seed: int) -> None:
    model, ids = Gpt(), torch.randint(0, 40, (2, 7))
    parameters = list(model.parameters())
    plain = torch.autograd.grad(loss_of(model, ids), parameters, allow_unused=True)
    with attach(model, [Null()]) as attached:
        assert [s.module for s in attached.sites] == ["blocks.0.attn", "blocks.1.attn"]
        found = torch.autograd.grad(loss_of(model, ids), parameters, allow_unused=True)
    for a, b in zip(found, plain, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [*KINDS, "multihead", "layer", "transformer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_loses_no_more_than_pytorch(kind: str, dtype: torch.dtype, seed: int) -> None:
    model: nn.Module
    x, more = torch.randn(2, 7, 32), 1
    if kind == "multihead":
        model, more = nn.MultiheadAttention(32, 4, batch_first=True), 3
    elif kind == "layer":
        model = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    elif kind == "transformer":
        model, more = nn.Transformer(32, 4, 1, 1, 48, batch_first=True), 2
    else:
        model = Plain(kind)
    model.eval()

    def run(dtype: torch.dtype) -> Tensor:
        with torch.no_grad():
            out = model.to(dtype)(*[x.to(dtype)] * more)
        found: Tensor = (out[0] if isinstance(out, tuple) else out).double()
        return found

    model.to(dtype)  # so that all runs have the same, rounded, weights
    x = x.to(dtype)
    truth, plain = run(torch.float64), run(dtype)
    with attach(model, [Null()]):
        found = run(dtype)
    # Twice what PyTorch itself loses, and one rounding of the largest output.
    room = 2 * (plain - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
    assert float((found - truth).abs().max()) <= float(room)


@pytest.mark.parametrize("how", ["grad", "no grad", "nested"])
def test_an_encoder_layer_is_reached_on_its_fast_path(how: str, seed: int) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True).eval()
    model: nn.Module = nn.TransformerEncoder(layer, 2) if how == "nested" else layer
    padding = torch.arange(7) >= torch.tensor([[5], [7]]) if how == "nested" else None
    x = torch.randn(2, 7, 32)
    real = torch.ones(2, 7).bool() if padding is None else ~padding
    with torch.set_grad_enabled(how == "grad"):
        plain = model(x, src_key_padding_mask=padding)
        with attach(model, [Null()]):
            found = model(x, src_key_padding_mask=padding)
        with attach(model, [Edit("out", lambda o: 0 * o)]):
            assert not torch.allclose(model(x, src_key_padding_mask=padding)[real], plain[real])
        again = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[real], plain[real], atol=1e-5, rtol=1e-5)
    assert torch.equal(again, plain)
    assert torch.backends.mha.get_fastpath_enabled()


class ByFunction(nn.Module):
    """Calls `F.multi_head_attention_forward` itself."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.MultiheadAttention(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        m = self.kept
        x = x.transpose(0, 1)
        out, _ = F.multi_head_attention_forward(
            *(x, x, x, 32, 4, m.in_proj_weight, m.in_proj_bias),
            *(m.bias_k, m.bias_v, False, 0.0, m.out_proj.weight, m.out_proj.bias),
            need_weights=False,
        )
        found: Tensor = out.transpose(0, 1)
        return found


def test_multi_head_attention_forward_is_reached(seed: int) -> None:
    model, x = ByFunction(), torch.randn(2, 7, 32)
    plain = model(x)
    with attach(model, [Null()]):
        torch.testing.assert_close(model(x), plain, atol=ROOM, rtol=ROOM)
    with attach(model, [Edit("out", lambda o: 2 * o)]):
        bias = model.kept.out_proj.bias
        torch.testing.assert_close(model(x) - bias, 2 * (plain - bias), atol=1e-5, rtol=1e-5)


class Twice(nn.Module):
    """Attends twice in one forward."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(x, x, x)
        return F.scaled_dot_product_attention(y, x, x, is_causal=True)


class Note(Stage):
    """Writes down the sites it is asked at."""

    def __init__(self, where: Any = None) -> None:
        super().__init__(where)
        self.sites: list[Any] = []

    def before(self, call: Any) -> Any:
        self.sites.append(call.site)
        return call


def test_calls_of_one_module_are_counted(seed: int) -> None:
    model, x, note = nn.Sequential(Twice(), Twice()), torch.randn(2, 4, 7, 8), Note()
    plain = model(x)
    with attach(model, [note]):
        torch.testing.assert_close(model(x), plain, atol=ROOM, rtol=ROOM)
        model(x)  # counting begins anew with each forward
    one = [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    assert [(s.module, s.index) for s in note.sites] == 2 * one
    assert len(set(note.sites)) == 4
    assert "call 1" in repr(note.sites[1])


class Maybe(nn.Module):
    """Attends by PyTorch, or by itself."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(x, x, x)
        return (x @ x.mT / 8**0.5).softmax(-1) @ x


def test_a_site_that_is_not_reached_is_named() -> None:
    model, x = nn.Sequential(Maybe(True), Maybe(False)), torch.randn(1, 2, 7, 8)
    plain = model(x)
    with attach(model, [Note()]), pytest.warns(UserWarning, match="^1 ran without"):
        model(x)
    with warnings.catch_warnings(), attach(model[:1], [Note()]):
        warnings.simplefilter("error")
        model(x)
    assert torch.equal(model(x), plain)


@pytest.mark.filterwarnings("ignore:.*ran without a call")
def test_a_model_that_is_nowhere_reached_is_an_error() -> None:
    model, x = nn.Sequential(Maybe(False), nn.Identity()), torch.randn(1, 2, 7, 8)
    before, plain = state_of(model), model(x)
    told = pytest.raises(UnsupportedModelError, match="Sequential, whose forward attends in 0")
    with told, attach(model, [Note()]):
        model(x)
    with pytest.raises(UnsupportedModelError, match="in itself"), attach(model[0], [Note()]):
        model(x)
    assert state_of(model) == before
    assert torch.equal(model(x), plain)


def test_two_threads_do_not_meet(seed: int) -> None:
    """One model is attached in its thread, another runs in another: each gives what is its own."""
    mine, other, x = Plain(), Plain(), tokens()
    plain, plain_other = mine(x), other(x)
    with attach(mine, [Edit("out", lambda o: 0 * o)]):
        silent = mine(x)
    assert not torch.allclose(silent, plain)
    wrong: list[str] = []
    begin = threading.Barrier(2)

    def attached() -> None:
        begin.wait()
        for _ in range(50):
            with attach(mine, [Edit("out", lambda o: 0 * o)]):
                if not torch.equal(mine(x), silent):
                    wrong.append("the attached model was not silent")
            if not torch.equal(mine(x), plain):
                wrong.append("the detached model was not itself")

    def alone() -> None:
        begin.wait()
        for _ in range(400):
            if not torch.equal(other(x), plain_other):
                wrong.append("the other model was touched")

    threads = [threading.Thread(target=f) for f in (attached, alone)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_attached_model_serves_two_threads(seed: int) -> None:
    model, x = Plain(), tokens()
    note = Note()
    with attach(model, [note, Edit("out", lambda o: 2 * o)]):
        expected = model(x)
        found: list[Tensor] = []
        threads = [
            threading.Thread(target=lambda: found.extend(model(x) for _ in range(50)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 100
    assert all(torch.equal(y, expected) for y in found)
    assert len(note.sites) == 101
    assert {s.index for s in note.sites} == {0}


def test_detaching_while_a_forward_runs_leaves_nothing_behind() -> None:
    model, held = Gpt(), []

    class Leaves(Stage):
        def before(self, call: Any) -> Any:
            held[0].detach()
            return call

    before = state_of(model)
    ids = torch.arange(6)[None]
    plain = model(ids)
    held.append(attach(model, [Leaves()]))
    torch.testing.assert_close(model(ids), plain, atol=1e-5, rtol=1e-5)
    assert state_of(model) == before
    assert torch.overrides._get_current_function_mode() is None
    assert current_forward() is None


def test_what_attends_by_itself_is_named_first() -> None:
    class Router(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(-1) @ x.mT

    class Mixer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul((x @ x.mT).softmax(-1), x)

    class OwnAttention(Mixer):
        pass

    with pytest.raises(UnsupportedModelError, match=r"attends in 1 \(OwnAttention\)"):
        attach(nn.Sequential(Router(), OwnAttention()))
    with pytest.raises(UnsupportedModelError, match=r"attends in 0 \(Mixer\)"):
        attach(nn.Sequential(Mixer()))
    with pytest.raises(UnsupportedModelError, match="Linear, which attends nowhere"):
        attach(nn.Linear(2, 2))


def test_a_model_compiled_within_has_its_stages_and_loses_them() -> None:
    model, x = Gpt(1), torch.arange(6)[None]
    double = Edit("out", lambda o: 2 * o)
    with torch.no_grad():
        plain = model(x)
        with attach(model, [double]):
            expected = model(x)
            compiled = torch.compile(model, backend="eager")
            torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(compiled(x), plain)
    assert not torch.allclose(plain, expected)


@pytest.mark.parametrize("how", ["wrapped", "in place", "a part"])
def test_a_model_compiled_before_is_refused(how: str) -> None:
    model: Any = Gpt(1)
    if how == "wrapped":
        model = torch.compile(model, backend="eager")
    else:
        (model if how == "in place" else model.blocks[0]["attn"]).compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match="compiled already"):
        attach(model, [Null()])
    attach(model).detach()  # with no stage there is nothing to lose


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_followed(kind: str, seed: int) -> None:
    model, x = Plain(kind), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(x)
        with attach(model, [Null()]):
            found = model(x)
    assert found.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_in_backward_meets_the_stages(reentrant: bool, seed: int) -> None:
    model, x = Plain(), tokens().requires_grad_()
    double = Edit("v", lambda v: 2 * v)
    (plain,) = torch.autograd.grad(model(x).square().sum(), [x])
    with attach(model, [double]):
        (expected,) = torch.autograd.grad(model(x).square().sum(), [x])
        y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
        y.square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert torch.overrides._get_current_function_mode() is None
