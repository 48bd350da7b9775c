"""The laws of layers. In float64, so that equal means equal to 1e-6 of what is usual."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.conformance.cases import EQUAL, Case, largest_gap, needs
from regard.conformance.refusals import REFUSALS
from regard.core.errors import CapabilityError, RegardError
from regard.layers.attention import Attention
from regard.layers.base import Layer


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def decoded(layer: Layer, inputs: dict[str, Tensor], pieces: list[int], **around: Any) -> Tensor:
    """Run x piece by piece through a memory; `around` is cut as x is."""
    memory = layer.memory()
    found, start = [], 0
    for size in pieces:
        part = slice(start, start + size)
        cut = {name: x[:, part] for name, x in around.items()}
        context = {"context": inputs["context"]} if "context" in inputs and not start else {}
        with torch.no_grad():
            found.append(layer(inputs["x"][:, part], memory=memory, **context, **cut))
        start += size
    return torch.cat(found, dim=1)


def cut_up(n: int) -> list[int]:
    """Cut n tokens into pieces of random sizes."""
    pieces, left = [], n
    while left:
        pieces.append(min(left, random.Random(n * left).randint(1, 6)))
        left -= pieces[-1]
    return pieces


def test_shape_and_dtype_stay(case: Case) -> None:
    inputs = case.inputs()
    y = case.make()(**inputs)
    assert y.shape == inputs["x"].shape
    assert y.dtype == torch.float64
    assert y.isfinite().all()


@needs(modes=("causal",))
def test_the_future_changes_nothing(case: Case) -> None:
    layer, inputs = case.make(), case.inputs()
    whole = layer(**inputs)
    for cut in (1, case.tokens // 2, case.tokens - 1):
        changed = {**inputs, "x": inputs["x"].clone()}
        changed["x"][:, cut:] = torch.randn_like(changed["x"][:, cut:])
        assert largest_gap(layer(**changed)[:, :cut], whole[:, :cut]) < EQUAL, f"before {cut}"
        assert not torch.equal(layer(**changed)[:, cut:], whole[:, cut:])


@pytest.mark.parametrize("pieces", ["tokens", "random"])
@needs("decode", modes=("causal", "cross"))
def test_decoding_equals_the_whole(case: Case, pieces: str) -> None:
    layer, inputs = case.make(), case.inputs()
    sizes = [1] * case.tokens if pieces == "tokens" else cut_up(case.tokens)
    assert largest_gap(decoded(layer, inputs, sizes), layer(**inputs)) < EQUAL


@needs("decode", "left_padding", "any_length", modes=("causal",))
def test_decoding_goes_on_after_left_padding(case: Case) -> None:
    layer, inputs = case.make(), case.inputs()
    short = case.tokens - 7
    real = torch.ones(2, case.tokens, dtype=torch.bool)
    real[1, : case.tokens - short] = False
    positions = (real.long().cumsum(1) - 1).clamp_min(0)
    found = decoded(layer, inputs, cut_up(case.tokens), padding=real, positions=positions)
    alone = layer(inputs["x"][1:, case.tokens - short :])
    assert largest_gap(found[1:, case.tokens - short :], alone) < EQUAL
    assert largest_gap(found[:1], layer(inputs["x"][:1])) < EQUAL


@needs("decode", modes=("causal",))
def test_memory_follows_its_rows(case: Case) -> None:
    layer, inputs = case.make(), case.inputs()
    rows, half = torch.tensor([1, 0]), case.tokens // 2
    memory = layer.memory()
    with torch.no_grad():
        layer(inputs["x"][:, :half], memory=memory)
    other = copy.deepcopy(memory)
    memory.reorder(rows)
    swapped = layer(inputs["x"][rows, half:], memory=memory)
    assert largest_gap(swapped[rows], layer(inputs["x"][:, half:], memory=other)) < EQUAL


@needs("constant_memory", "decode", modes=("causal",))
def test_memory_stops_growing(case: Case) -> None:
    layer = case.make()
    memory, sizes = layer.memory(), []
    for _ in range(3):
        for _ in range(case.tokens):
            with torch.no_grad():
                layer(case.inputs(tokens=1)["x"], memory=memory)
        sizes.append(memory.nbytes)
    assert sizes[2] <= max(sizes[:2]), f"bytes after each {case.tokens} tokens: {sizes}"


def test_rows_of_a_batch_do_not_meet(case: Case) -> None:
    layer, inputs = case.make(), case.inputs(batch=3)
    alone = layer(**{name: x[1:2] for name, x in inputs.items()})
    assert largest_gap(layer(**inputs)[1:2], alone) < EQUAL


@needs("padding")
def test_padding_changes_nothing(case: Case) -> None:
    layer, inputs = case.make(), case.inputs()
    padded = "context" if case.mode == "cross" else "x"
    m = inputs[padded].shape[1]
    real = torch.ones(2, m, dtype=torch.bool)
    real[0, m - 6 :] = False
    short = {**inputs, padded: inputs[padded][:, : m - 6]}
    keep = m - 6 if padded == "x" else inputs["x"].shape[1]
    found = layer(**inputs, padding=real)
    assert largest_gap(found[:1, :keep], layer(**short)[:1]) < EQUAL
    assert largest_gap(found[1:], layer(**inputs)[1:]) < EQUAL


@needs("documents")
def test_packed_documents_do_not_attend_to_each_other(case: Case) -> None:
    layer, inputs = case.make(), case.inputs(batch=1)
    cuts = {"x": (0, 9, 10, case.tokens)}
    if case.mode == "cross":
        cuts["context"] = (0, 4, 11, inputs["context"].shape[1])
    ids = {name: torch.zeros(1, c[-1], dtype=torch.long) for name, c in cuts.items()}
    for name, c in cuts.items():
        for document in range(3):
            ids[name][:, c[document] : c[document + 1]] = (7, -3, 1 << 40)[document]  # any id
    around = {"documents": ids["x"]}
    if case.mode == "cross":
        around["context_documents"] = ids["context"]
    whole = layer(**inputs, **around)
    for document in range(3):
        span = {name: slice(c[document], c[document + 1]) for name, c in cuts.items()}
        alone = layer(**{name: inputs[name][:, span[name]] for name in cuts})
        assert largest_gap(whole[:, span["x"]], alone) < EQUAL, f"document {document}"


def test_what_it_cannot_do_is_refused(denied: tuple[str, str]) -> None:
    name, ability = denied
    with pytest.raises(CapabilityError):
        REFUSALS[ability](name)


def test_bad_inputs_are_named(case: Case) -> None:
    layer, inputs = case.make(torch.float32), case.inputs(dtype=torch.float32)
    x, context = inputs["x"], {k: v for k, v in inputs.items() if k != "x"}
    dim = x.shape[2]
    bad: list[tuple[str, Any]] = [
        ("x", lambda: layer(x[0], **context)),
        ("x", lambda: layer(torch.randn(2, 4, dim + 1), **context)),
        ("x", lambda: layer(x.double(), **context)),
        ("x", lambda: layer(x.long(), **context)),
        ("positions", lambda: layer(x, **context, positions=torch.arange(3))),
        ("positions", lambda: layer(x, **context, positions=torch.rand(x.shape[1]))),
        ("padding", lambda: layer(x, **context, padding=torch.ones(2, 3, dtype=torch.bool))),
        ("memory", lambda: layer(x, **context, memory={})),
    ]
    if case.mode == "cross":
        bad.append(("context", lambda: layer(x)))
        bad.append(("context", lambda: layer(x, context["context"][:1])))
    if case.mode == "causal" and case.kind.can.cross:
        bad.append(("context", lambda: layer(x, x)))
    for argument, attempt in bad:
        with pytest.raises(RegardError) as raised:
            attempt()
        assert argument in raised.value.argument


@needs("multihead_weights")
def test_takes_multi_head_weights(kind: type[Layer]) -> None:
    sizes = {name: kind.tiny[name] for name in ("dim", "heads")}
    plain = Attention(**sizes).state_dict()
    own = kind(**kind.tiny).state_dict()
    assert {name: x.shape for name, x in plain.items()}.items() <= {
        name: x.shape for name, x in own.items()
    }.items()
