"""The laws of layers. In float64, so that equal means equal to 1e-6 of what is usual."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.conformance.cases import Case, cases_of, largest_gap
from regard.core.errors import CapabilityError, RegardError
from regard.layers.base import Layer
from regard.layers.registry import names

EQUAL = 1e-6


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


def test_the_future_changes_nothing(case: Case) -> None:
    if case.mode != "causal":
        return
    layer, inputs = case.make(), case.inputs()
    whole = layer(**inputs)
    for cut in (1, case.tokens // 2, case.tokens - 1):
        changed = {**inputs, "x": inputs["x"].clone()}
        changed["x"][:, cut:] = torch.randn_like(changed["x"][:, cut:])
        assert largest_gap(layer(**changed)[:, :cut], whole[:, :cut]) < EQUAL, f"before {cut}"
        assert not torch.equal(layer(**changed)[:, cut:], whole[:, cut:])


@pytest.mark.parametrize("pieces", ["tokens", "random"])
def test_decoding_equals_the_whole(case: Case, pieces: str) -> None:
    if not case.kind.can.decode or case.mode == "bidirectional":
        return
    layer, inputs = case.make(), case.inputs()
    sizes = [1] * case.tokens if pieces == "tokens" else cut_up(case.tokens)
    assert largest_gap(decoded(layer, inputs, sizes), layer(**inputs)) < EQUAL


def test_decoding_goes_on_after_left_padding(case: Case) -> None:
    can = case.kind.can
    if not (can.decode and can.left_padding and can.any_length) or case.mode != "causal":
        return
    layer, inputs = case.make(), case.inputs()
    short = case.tokens - 7
    real = torch.ones(2, case.tokens, dtype=torch.bool)
    real[1, : case.tokens - short] = False
    positions = (real.long().cumsum(1) - 1).clamp_min(0)
    found = decoded(layer, inputs, cut_up(case.tokens), padding=real, positions=positions)
    alone = layer(inputs["x"][1:, case.tokens - short :])
    assert largest_gap(found[1:, case.tokens - short :], alone) < EQUAL
    assert largest_gap(found[:1], layer(inputs["x"][:1])) < EQUAL


def test_memory_follows_its_rows(case: Case) -> None:
    if not case.kind.can.decode or case.mode != "causal":
        return
    layer, inputs = case.make(), case.inputs()
    rows, half = torch.tensor([1, 0]), case.tokens // 2
    memory = layer.memory()
    with torch.no_grad():
        layer(inputs["x"][:, :half], memory=memory)
    other = copy.deepcopy(memory)
    memory.reorder(rows)
    swapped = layer(inputs["x"][rows, half:], memory=memory)
    assert largest_gap(swapped[rows], layer(inputs["x"][:, half:], memory=other)) < EQUAL


def test_memory_stops_growing(case: Case) -> None:
    can = case.kind.can
    if not (can.constant_memory and can.decode) or case.mode != "causal":
        return
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


def test_padding_changes_nothing(case: Case) -> None:
    if not case.kind.can.padding:
        return
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


def test_packed_documents_do_not_meet(case: Case) -> None:
    if not case.kind.can.documents:
        return
    layer, inputs = case.make(), case.inputs(batch=1)
    cuts = {"x": (0, 9, 10, case.tokens)}
    if case.mode == "cross":
        cuts["context"] = (0, 4, 11, inputs["context"].shape[1])
    ids = {name: torch.zeros(1, c[-1], dtype=torch.long) for name, c in cuts.items()}
    for name, c in cuts.items():
        for document in range(3):
            ids[name][:, c[document] : c[document + 1]] = document
    around = {"documents": ids["x"]}
    if case.mode == "cross":
        around["context_documents"] = ids["context"]
    whole = layer(**inputs, **around)
    for document in range(3):
        span = {name: slice(c[document], c[document + 1]) for name, c in cuts.items()}
        alone = layer(**{name: inputs[name][:, span[name]] for name in cuts})
        assert largest_gap(whole[:, span["x"]], alone) < EQUAL, f"document {document}"


def test_gradients_reach_every_parameter(case: Case) -> None:
    layer = case.make().train()
    y = layer(**case.inputs())
    (y * torch.randn_like(y)).sum().backward()
    missed = [
        name
        for name, p in layer.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().max() > 0)
    ]
    assert not missed


def test_gradients_are_right(case: Case) -> None:
    layer = case.make()
    inputs = case.inputs(batch=1, tokens=6 if case.kind.can.any_length else None)
    for x in inputs.values():
        x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *given: layer(**dict(zip(inputs, given, strict=True))),
        tuple(inputs.values()),
        fast_mode=True,
        atol=1e-4,
    )


def test_bfloat16_is_close(case: Case) -> None:
    rough = case.make(torch.bfloat16)
    fine = copy.deepcopy(rough).float()
    inputs = case.inputs(dtype=torch.bfloat16)
    found, wanted = (
        rough(**inputs).float(),
        fine(**{name: x.float() for name, x in inputs.items()}),
    )
    # Choices (top-k, routing) may turn out otherwise for some tokens, never for most.
    off = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1).mean()
    assert off.median() < 0.03


def test_weights_and_copies_carry_all(case: Case) -> None:
    layer, inputs = case.make(), case.inputs()
    wanted = layer(**inputs)
    assert torch.equal(copy.deepcopy(layer)(**inputs), wanted)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    torch.manual_seed(7)
    other = case.kind(
        **{**case.kind.tiny, "causal": layer.causal,
           **({"context_dim": layer.context_dim} if case.mode == "cross" else {})}
    ).double().eval()  # fmt: skip
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(**inputs), wanted)


def test_compiled_code_says_the_same(kind: type[Layer]) -> None:
    case = next(c for name in [kind.__name__] for c in cases_of(_name_of(kind)) if name)
    layer, inputs = case.make(), case.inputs()
    wanted = layer(**inputs)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    x = inputs["x"].requires_grad_()
    found = compiled(**inputs)
    assert largest_gap(found, wanted) < EQUAL
    found.sum().backward()
    assert x.grad is not None


def test_cost_grows_with_the_length(case: Case) -> None:
    can = case.kind.can
    if not (can.linear and can.any_length):
        return
    layer, flops = case.make(torch.float32), []
    for tokens in (512, 2048):
        inputs = case.inputs(batch=1, tokens=tokens, dtype=torch.float32)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(**inputs)
        flops.append(counter.get_total_flops())
    assert flops[1] <= 4 * 1.15 * flops[0], f"FLOPs at 512 and 2,048 tokens: {flops}"


def test_what_it_cannot_do_is_refused(kind: type[Layer]) -> None:
    can, tiny = kind.can, kind.tiny
    x = torch.randn(1, kind.tiny_tokens, tiny["dim"])
    tries: dict[str, Any] = {
        "causal": lambda: kind(**{**tiny, "causal": True}),
        "bidirectional": lambda: kind(
            **{**{k: x for k, x in tiny.items() if k != "context_dim"}, "causal": False}
        ),
        "cross": lambda: kind(**{**tiny, "causal": False, "context_dim": tiny["dim"]}),
    }
    case = cases_of(_name_of(kind))[0]
    layer, inputs = case.make(torch.float32), case.inputs(batch=1, dtype=torch.float32)
    seen = inputs.get("context", x)
    ids = torch.zeros(1, x.shape[1], dtype=torch.long)
    tries["decode"] = layer.memory
    tries["padding"] = lambda: layer(
        **inputs, padding=torch.ones(1, seen.shape[1], dtype=torch.bool)
    )
    late = torch.ones(1, seen.shape[1], dtype=torch.bool)
    late[0, 0] = False
    tries["left_padding"] = lambda: layer(**inputs, padding=late)
    tries["documents"] = lambda: layer(
        **inputs, documents=ids, context_documents=ids if case.mode != "cross" else None
    )
    for ability, attempt in tries.items():
        if not getattr(can, ability):
            with pytest.raises(CapabilityError):
                attempt()


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


def test_takes_multi_head_weights(kind: type[Layer]) -> None:
    if not kind.can.multihead_weights:
        return
    from regard.layers.attention import Attention

    sizes = {name: kind.tiny[name] for name in ("dim", "heads")}
    plain = Attention(**sizes).state_dict()
    own = kind(**kind.tiny).state_dict()
    assert {name: x.shape for name, x in plain.items()}.items() <= {
        name: x.shape for name, x in own.items()
    }.items()


def _name_of(kind: type[Layer]) -> str:
    from regard.layers.registry import get

    return next(
        (name for name in names() if get(name) is kind), f"{kind.__module__}:{kind.__qualname__}"
    )
