"""Recurrent layers see what flash-linear-attention's plain functions see, on the same projections.

Those functions are read from their files: importing the package asks for a GPU's tools. The result
of a run is kept in benchmarks/equality/equal-to-fla.json.
"""

import importlib.util
import sys
import warnings
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

import regard
from regard.core.features import unit
from regard.core.parts import pooled
from regard.layers.inputs import LayerInput

HOME = next(
    (path for path in (Path(x) / "fla" / "ops" for x in sys.path if x) if path.is_dir()), None
)
pytestmark = pytest.mark.skipif(
    HOME is None or importlib.util.find_spec("einops") is None,
    reason="pip install flash-linear-attention einops",
)
N, D = 24, 8


def plain(folder: str, name: str):
    """A function of a `naive.py`, without importing the package around it."""
    place = HOME / folder / "naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_{folder.replace('/', '_')}", place)
    module = importlib.util.module_from_spec(spec)
    # What a file imports of the package and of GPUs' tools serves functions that are not called.
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for needed in ("fla", "fla.ops", "fla.ops.utils", "fla.ops.utils.pooling"):
            patch.setitem(sys.modules, needed, MagicMock())
        spec.loader.exec_module(module)
    return getattr(module, name)


def projected(name: str):
    """A layer, the input, and its q, k, v [b, h, n, d]."""
    torch.manual_seed(0)
    layer = regard.layer(name, dim=32, heads=4, causal=True)
    x = torch.randn(2, N, 32)
    input = LayerInput(x, x, False, torch.arange(N))
    return layer, input, (layer.queries(x), *layer.keys(x))


def flipped(*tensors):
    """From [b, h, n, ...] to their [b, n, h, ...]."""
    return [x.transpose(1, 2) for x in tensors]


def same(layer, ours, theirs):
    """Equal outputs, and equal gradients of a random sum of them by every parameter."""
    assert torch.allclose(ours, theirs, atol=1e-5)
    probe, names = torch.randn_like(ours), [x for x, _ in layer.named_parameters()]
    found = [
        torch.autograd.grad(
            (y * probe).sum(), list(layer.parameters()), retain_graph=True, allow_unused=True
        )
        for y in (ours, theirs)
    ]
    assert sum(a is not None for a in found[0]) > 3
    for name, a, b in zip(names, *found, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert torch.allclose(a, b, atol=2e-5 * float(b.abs().max().clamp(min=1))), name


def test_linear():
    layer, input, (q, k, v) = projected("linear")
    theirs, _ = plain("linear_attn", "naive_recurrent_linear_attn")(
        *flipped(q, k, v), scale=1.0, normalize=True
    )
    assert torch.allclose(layer.look(q, k, v, input), theirs.transpose(1, 2), atol=1e-5)


def test_retention():
    layer, input, (q, k, v) = projected("retention")
    # Their heads forget by 1 - 2^(-5 - h); ours spread the same range over any number of heads.
    layer.log_decay = torch.log1p(-(2.0 ** -(5 + torch.arange(4.0))))
    theirs = plain("retention", "naive_retention")(q, k * D**0.5, v)
    assert torch.allclose(layer.look(q, k, v, input), theirs, atol=1e-5)


def test_gated_linear():
    layer, input, (q, k, v) = projected("gla")
    decay = layer.rates(input)["log_decay"]
    theirs = plain("gla", "naive_recurrent_gla")(*flipped(q, k * D**0.5, v, decay))
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    theirs = theirs if theirs.shape[1] == 4 else theirs.transpose(1, 2)
    assert torch.allclose(layer.look(q, k, v, input), theirs, atol=1e-5)


def test_delta():
    layer, input, (q, k, v) = projected("delta")
    beta = layer.rates(input)["beta"]
    theirs, _ = plain("delta_rule", "delta_rule_recurrence")(q * D**0.5, k, v, beta)
    assert torch.allclose(layer.look(q, k, v, input), theirs, atol=1e-5)


def test_scans_with_decay_and_strength():
    torch.manual_seed(1)
    q, v = torch.randn(2, 2, 3, N, D)
    k, beta = unit(torch.randn(2, 3, N, D)), torch.rand(2, 3, N)
    g = torch.nn.functional.logsigmoid(torch.randn(2, 3, N))
    ours, _ = regard.scan(q, k, v, log_decay=g, beta=beta)
    theirs = plain("gated_delta_rule", "naive_recurrent_gated_delta_rule")(
        *flipped(q, k, v, beta, g), scale=1.0
    )
    assert torch.allclose(ours, theirs[0].transpose(1, 2), atol=1e-5)
    ours, _ = regard.scan(q, k, v, log_decay=g)
    theirs = plain("simple_gla", "naive_recurrent_simple_gla")(*flipped(q, k, v, g), scale=1.0)
    assert torch.allclose(ours, theirs[0].transpose(1, 2), atol=1e-5)


def test_mamba2():
    """Attention's form: (L * C B^T) x, all pairs at once."""
    torch.manual_seed(0)
    layer = regard.layer("mamba2", dim=32, heads=4, states=D)
    x = torch.randn(2, N, 32)
    input = LayerInput(x, x, False, torch.arange(N))
    _, values, k, q, step = layer.parts(input)
    both = flipped(q, k, values * step[..., None], -layer.rate.exp()[:, None] * step)
    for form in ("naive_recurrent_simple_gla", "naive_parallel_simple_gla"):
        theirs = plain("simple_gla", form)(*both, scale=1.0)[0].transpose(1, 2)
        same(layer, layer.dual(values, k, q, step, input), theirs)


def test_rwkv7():
    torch.manual_seed(0)
    layer = regard.layer("rwkv7", dim=32, heads=4)
    x = torch.randn(2, N, 32)
    input = LayerInput(x, x, False, torch.arange(N))
    own, _ = layer.tokens(input)
    theirs, _ = plain("generalized_delta_rule/dplr", "dplr_recurrence")(
        own.r * D**0.5, own.k, own.v, -own.erased, own.erased * own.rate, own.log_decay
    )
    same(layer, layer.scanned(own, input), theirs)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_forgetting_attention(kv_heads):
    torch.manual_seed(0)
    layer = regard.layer("forgetting_attention", dim=32, heads=4, kv_heads=kv_heads)
    x = torch.randn(2, N, 32)
    input = LayerInput(x, x, False, torch.arange(N))
    call = layer.call(input)
    theirs = plain("forgetting_attn", "naive_forgetting_attn")(
        *flipped(call.q, call.k, call.v, layer.log_gates(input))
    )
    same(layer, layer.look(call, input), theirs.transpose(1, 2))


def test_native_sparse_attention():
    """Two branches are theirs; the window, which asks for a GPU there, is a masked softmax."""
    torch.manual_seed(0)
    block, count, window, n = 4, 4, 6, 42
    layer = regard.layer(
        "native_sparse_attention",
        dim=32,
        heads=4,
        kv_heads=2,
        block=block,
        blocks=count,
        window=window,
    )
    x = torch.randn(2, n, 32)
    input = LayerInput(x, x, False, torch.arange(n))
    call = layer.call(input)
    q, k, v = flipped(call.q, call.k, call.v)
    pools = [pooled(t, block).transpose(1, 2) for t in (call.k, call.v)]
    how = {"block_size": block, "scale": D**-0.5}
    compressed, _ = plain("nsa", "naive_nsa_compression")(q, *pools, **how)
    chosen = plain("nsa", "naive_nsa_topk")(q, pools[0], block_counts=count, **how)
    selected = plain("nsa", "naive_nsa_selection")(q, k, v, chosen, **how)
    at = torch.arange(n)
    near = (at <= at[:, None]) & (at > at[:, None] - window)
    k_all, v_all = (t.repeat_interleave(2, 1) for t in (call.k, call.v))
    scores = (call.q @ k_all.mT * D**-0.5).masked_fill(~near, -torch.inf)
    outs = (compressed.transpose(1, 2), selected.transpose(1, 2), scores.softmax(-1) @ v_all)
    gates = layer.to_gates(x).sigmoid().transpose(1, 2).chunk(3, 1)
    same(
        layer,
        layer.look(call, input),
        sum(g[..., None] * y for g, y in zip(gates, outs, strict=True)),
    )
