"""Recurrent layers see what flash-linear-attention's plain functions see, on the same projections.

Those functions are read from their files: importing the package asks for a GPU's tools. The result
of a run is kept in benchmarks/equality/equal-to-fla.json.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import regard
from regard.core.features import unit
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
    spec = importlib.util.spec_from_file_location(f"fla_{folder}", place)
    module = importlib.util.module_from_spec(spec)
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
