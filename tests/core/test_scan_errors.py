"""Every bad input of a scan is refused, and the error names the argument."""

import math

import pytest
import torch

from regard.core.errors import (
    CapabilityError,
    DeviceError,
    DtypeError,
    ExecutorError,
    RegardError,
    ShapeError,
    ValueRangeError,
)
from regard.core.scan import MomentumState, ScanState, parallel, prepare, unordered
from regard.run.scanning import scan, scan_momentum

B, H, G, N, D, E = 2, 4, 2, 6, 3, 5


def zeros(*shape, **kinds):
    return torch.zeros(shape, **kinds)


BAD = [
    ("q", DtypeError, {"q": [[1.0]]}),
    ("q", ShapeError, {"q": zeros(H, N, D)}),
    ("q", DtypeError, {"q": zeros(B, H, N, D, dtype=torch.long)}),
    ("q", ShapeError, {name: zeros(B, 1, 0, D) for name in "qkv"}),
    ("k", DtypeError, {"k": zeros(B, G, N, D, dtype=torch.bfloat16)}),
    ("k", DeviceError, {"k": zeros(B, G, N, D, device="meta")}),
    ("k", ShapeError, {"k": zeros(B + 1, G, N, D)}),
    ("k", ShapeError, {"k": zeros(B, G, N + 1, D)}),
    ("k", ShapeError, {"k": zeros(B, G, N, D + 1)}),
    ("k", ShapeError, {"k": zeros(B, 3, N, D), "v": zeros(B, 3, N, E)}),
    ("v", ShapeError, {"v": zeros(B, H, N, E)}),
    ("v", ShapeError, {"v": zeros(B, G, N)}),
    ("v", ShapeError, {"v": zeros(B, G, N), "normalize": 1e-6}),
    ("v", DtypeError, {"v": zeros(B, G, N, E, dtype=torch.complex64)}),
    ("log_decay", ValueRangeError, {"log_decay": 0.9}),
    (
        "log_decay",
        ValueRangeError,
        {"log_decay": zeros(B, H, N).index_fill(2, torch.tensor(1), 0.1)},
    ),
    ("log_decay", ValueRangeError, {"log_decay": zeros(H) * math.nan}),
    ("log_decay", ShapeError, {"log_decay": zeros(N)}),
    ("log_decay", ShapeError, {"log_decay": zeros(B, N, H)}),
    ("log_decay", ShapeError, {"log_decay": zeros(B, H, N, E)}),
    ("log_decay", ShapeError, {"log_decay": zeros(1, B, H, N, D)}),
    ("log_decay", DtypeError, {"log_decay": zeros(H, dtype=torch.long)}),
    ("log_decay", DtypeError, {"log_decay": "fast"}),
    ("log_decay", DeviceError, {"log_decay": zeros(H, device="meta")}),
    ("beta", ShapeError, {"beta": zeros(B, H, N, 1)}),
    ("beta", ShapeError, {"beta": zeros(B, N)}),
    ("beta", DtypeError, {"beta": True}),
    ("keep", DtypeError, {"keep": torch.ones(B, N)}),
    ("keep", ShapeError, {"keep": torch.ones(N, dtype=torch.bool)}),
    ("keep", DtypeError, {"keep": [True] * N}),
    ("reset", ShapeError, {"reset": torch.ones(B, N, 1, dtype=torch.bool)}),
    ("reset", DeviceError, {"reset": torch.ones(B, N, dtype=torch.bool, device="meta")}),
    ("state", ValueRangeError, {"state": zeros(B, H, D, E)}),
    ("state", ValueRangeError, {"state": MomentumState(zeros(B, H, D, E), zeros(B, H, D, E))}),
    ("state.memory", ShapeError, {"state": ScanState(zeros(B, G, D, E))}),
    ("state.memory", ShapeError, {"state": ScanState(zeros(B, H, D, E)), "normalize": 1e-6}),
    ("state.memory", DtypeError, {"state": ScanState(zeros(B, H, D, E, dtype=torch.float64))}),
    ("state.memory", DeviceError, {"state": ScanState(zeros(B, H, D, E, device="meta"))}),
    ("scale", ValueRangeError, {"scale": math.inf}),
    ("scale", ValueRangeError, {"scale": "1"}),
    ("normalize", ValueRangeError, {"normalize": 0.0}),
    ("normalize", ValueRangeError, {"normalize": -1e-6}),
    ("chunk", ValueRangeError, {"chunk": 0}),
    ("chunk", ValueRangeError, {"chunk": 6.5}),
    ("form", ValueRangeError, {"form": "fast"}),
    ("form", ExecutorError, {"form": "fla"}),
]


@pytest.mark.parametrize(("argument", "kind", "changes"), BAD)
def test_a_bad_input_is_named(argument, kind, changes):
    good = {"q": zeros(B, H, N, D), "k": zeros(B, G, N, D), "v": zeros(B, G, N, E)}
    scan(**good)
    with pytest.raises(RegardError) as caught:
        scan(**{**good, **changes})
    assert caught.value.argument == argument
    assert type(caught.value) is kind
    assert "Fix" in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "kind", "changes"),
    [
        ("log_momentum", ValueRangeError, {"log_momentum": None}),
        ("log_momentum", ValueRangeError, {"log_momentum": 0.9}),
        ("log_momentum", ShapeError, {"log_momentum": zeros(H, D)}),
        ("log_decay", ShapeError, {"log_decay": zeros(H, D)}),
        ("state", ValueRangeError, {"state": ScanState(zeros(B, H, D, D))}),
        ("form", ValueRangeError, {"form": "fla"}),
    ],
)
def test_a_bad_input_of_a_momentum_scan_is_named(argument, kind, changes):
    x = zeros(B, H, N, D)
    with pytest.raises(kind) as caught:
        scan_momentum(x, x, x, **{"log_momentum": -1.0, **changes})
    assert caught.value.argument == argument


def test_without_order_bad_inputs_are_named_too():
    x = zeros(B, H, N, D)
    with pytest.raises(ShapeError, match="`v`"):  # keys may be others' tokens, but each has a value
        unordered(x, x[:, :, 1:], x)
    with pytest.raises(CapabilityError, match="`reset`"):
        scan_momentum(
            x, x, x, log_momentum=-1.0, beta=0.5, reset=torch.ones(B, N, dtype=torch.bool)
        )
    with pytest.raises(ValueRangeError, match="`normalize`"):
        unordered(x, x, x, normalize=0.0)


def test_a_scan_leaves_its_inputs_as_they_were():
    x = torch.ones(B, H, N, D)
    decay = torch.zeros(B, H, N)
    scan(x, x, x, log_decay=decay, reset=torch.ones(B, N, dtype=torch.bool))
    assert torch.equal(decay, torch.zeros(B, H, N))
    assert torch.equal(x, torch.ones(B, H, N, D))
    tokens = prepare(x, x, x)
    parallel(tokens, torch.zeros(B, H, D, D))
    assert torch.equal(x, torch.ones(B, H, N, D))
