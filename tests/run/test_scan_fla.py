"""The adapter to flash-linear-attention: layout and arguments, against kernels that are faked.

The real kernels need a GPU; `test_kernels_equal_chunks` runs where both are there.
"""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from regard.core.errors import ExecutorError
from regard.core.scan import chunked, prepare
from regard.run import scan_fla
from regard.run.scanning import scan

B, H, N, D, E = 2, 3, 12, 4, 5
calls = []


def run(name, q, k, v, g=None, beta=None, scale=None, initial_state=None, output_final_state=False):
    """Do what a kernel does, by our chunks: layout [b, n, h, d], float32 state."""
    calls.append(name)
    assert output_final_state
    assert initial_state.shape == (B, H, D, E)
    assert all(x.is_contiguous() for x in (q, k, v, initial_state))
    assert q.shape == k.shape == (B, N, H, D)
    swap = {key: None if x is None else x.transpose(1, 2) for key, x in (("g", g), ("beta", beta))}
    tokens = prepare(
        *(x.transpose(1, 2) for x in (q, k, v)), log_decay=swap["g"], beta=swap["beta"], scale=scale
    )
    out, last = chunked(tokens, initial_state)
    return out.transpose(1, 2), last


def simple_gla(
    q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False
):
    assert g_gamma is None
    return run("simple_gla", q, k, v, g, None, scale, initial_state, output_final_state)


def gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    assert g.shape == q.shape == k.shape
    assert initial_state.dtype == torch.float32
    return run("gla", q, k, v, g, None, scale, initial_state, output_final_state)


def delta_rule(q, k, v, beta, scale=None, initial_state=None, output_final_state=False):
    assert beta.shape == (B, N, H)
    return run("delta_rule", q, k, v, None, beta, scale, initial_state, output_final_state)


def gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
    assert g.shape == beta.shape == (B, N, H)
    return run("gated_delta_rule", q, k, v, g, beta, scale, initial_state, output_final_state)


@pytest.fixture
def faked(monkeypatch):
    calls.clear()
    for kernel in (simple_gla, gla, delta_rule, gated_delta_rule):
        package = ModuleType(f"fla.ops.{kernel.__name__}")
        setattr(package, f"chunk_{kernel.__name__}", kernel)
        monkeypatch.setitem(sys.modules, package.__name__, package)


@pytest.mark.parametrize(
    ("kernel", "rate", "delta"),
    [
        ("simple_gla", None, False),
        ("simple_gla", (H,), False),
        ("simple_gla", (B, H, N), False),
        ("gla", (H, D), False),
        ("gla", (B, H, N, D), False),
        ("delta_rule", None, True),
        ("gated_delta_rule", (H,), True),
        ("gated_delta_rule", (B, H, N), True),
    ],
)
def test_each_kind_of_scan_reaches_its_kernel_in_its_layout(seed, faked, kernel, rate, delta):
    q, k, v = torch.randn(B, H, N, D), torch.randn(B, H, N, D) / 2, torch.randn(B, H, N, E)
    tokens = prepare(
        q, k, v,
        log_decay=None if rate is None else -torch.rand(rate),
        beta=torch.rand(B, H, N) if delta else None,
    )  # fmt: skip
    start = torch.randn(B, H, D, E)
    got, want = scan_fla.scan(tokens, start), chunked(tokens, start)
    assert calls == [kernel]
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_a_forced_kernel_that_cannot_run_says_why():
    x = torch.ones(1, 1, 4, 2)
    with pytest.raises(ExecutorError, match="the tensors are on cpu"):
        scan(x, x, x, form="fla")


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("fla") is None,
    reason="needs a GPU and flash-linear-attention",
)
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("rate", [None, (4,), (2, 4, 300), (2, 4, 300, 64)])
def test_kernels_equal_chunks(seed, rate, delta):
    q, k, v = torch.randn(3, 2, 4, 300, 64, device="cuda", dtype=torch.bfloat16)
    k = torch.nn.functional.normalize(k, dim=-1)
    kinds = {
        "log_decay": None if rate is None else -torch.rand(rate, device="cuda"),
        "beta": torch.rand(2, 4, 300, device="cuda") if delta else None,
    }
    if scan_fla.why_not(prepare(q, k, v, **kinds)) is not None:
        pytest.skip("not wired")
    got, state = scan(q, k, v, form="fla", **kinds)
    want, last = scan(q, k, v, **kinds)
    for x, y in ((got, want), (state.memory, last.memory)):
        error = (x.float() - y.float()).norm() / y.float().norm()
        assert error < 4 * torch.finfo(torch.bfloat16).eps
