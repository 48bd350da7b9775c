"""The closed form is exact; tracing finds a planted path, and the layer that can be edited."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.circuits.quickfix import QuickFix, corrupting, rewritten, trace
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.painting import COLORS, SHAPES, Figure, color_of, painter, tokens

STEPS = 400
FIGURES = 1  # which stream of the runner's seed figures are painted from


KINDS = [(color, shape) for color in COLORS for shape in SHAPES]


# Tokens of "<start> COLOR SHAPE and COLOR SHAPE <end>": the attribute, and the last of the subject.
COLOR, SUBJECT, AND = 1, 2, 3


def _closed_form() -> tuple[float, float]:
    """Largest change on orthogonal inputs, and distance from W at a great strength."""
    w, k, v = (torch.randn(*shape).double() for shape in ((12, 16), (4, 16), (4, 12)))
    new = rewritten(w, k, v, 1e-10)
    assert (k @ new.T).allclose(v, atol=1e-6)
    apart = torch.linalg.svd(k).Vh[4:]
    change = float((apart @ (new - w).T).abs().max())
    return change, float((rewritten(w, k, v, 1e12) - w).abs().max())


def _planted() -> str:
    """Three paths of one kind, of which one reaches the output: the one that tracing finds."""
    embedding = nn.Embedding(6, 8)
    paths = [nn.Linear(8, 8) for _ in range(3)]
    ids = torch.tensor([[0, 3, 5]])

    def run() -> Tensor:
        outs = [path(embedding(ids)) for path in paths]
        return outs[1].sum(-1)

    def broken() -> Tensor:
        with corrupting(embedding, [1], 3.0):
            return run()

    with torch.no_grad():
        wanted = run()
        parts: dict[str, nn.Module] = {f"path {i}": path for i, path in enumerate(paths)}
        found = trace(parts, run, broken, lambda y: -(y - wanted).abs().sum())
    return found.top(1)[0][0]


def _runs(model: nn.Module, color: str) -> list[tuple[object, int]]:
    """Encode every prompt whose left figure has a color; the token is the last of the subject."""
    every = [tokens((color, shape), other)[None] for shape in SHAPES for other in KINDS]
    # A Module types its parts as Tensor or Module.
    return [(lambda ids=ids: model.encode(ids), SUBJECT) for ids in every]  # type: ignore[operator]


def _left(model: nn.Module, color: str) -> dict[str, float]:
    """Colors of the left figure, where the prompt names one."""
    pairs: list[tuple[Figure, Figure]] = [((color, s), other) for s in SHAPES for other in KINDS]
    ids = torch.stack([tokens(*pair) for pair in pairs])
    # A Module types its parts as Tensor or Module.
    images = model.paint(model.encode(ids), seed=FIGURES)  # type: ignore[operator]
    return {c: sum(color_of(x, "left", c) for x in images) / len(images) for c in COLORS}


@check("diff_quickfix", long=True, beyond="Stable Diffusion, CLIPScore, and the UNet's own parts")
def quickfix() -> Claims:
    """The closed form is exact; tracing finds a planted path, and the layer that can be edited."""
    apart, limit = _closed_form()
    planted = _planted()
    model, _ = painter(STEPS)
    model.requires_grad_(False)
    # Get_submodule returns Module.
    layers: nn.ModuleList = model.text.get_submodule("encoder.layers")  # type: ignore[assignment]
    embeddings = model.text.get_submodule("embeddings")
    pairs = [(a, b) for i, a in enumerate(KINDS) for j, b in enumerate(KINDS) if (i + j) % 2]
    ids = torch.stack([tokens(*pair) for pair in pairs])

    def clean() -> Tensor:
        return model.paint(model.encode(ids))

    def corrupted() -> Tensor:
        with corrupting(embeddings, [COLOR], size):
            return clean()

    def right(images: Tensor) -> float:
        """The color of the left figure, on average over prompts."""
        each = [color_of(x, "left", a[0]) for x, (a, _) in zip(images, pairs, strict=True)]
        return sum(each) / len(each)

    # A Module types its parts as Tensor or Module.
    weight: Tensor = embeddings.get_submodule("token_embedding").weight  # type: ignore[assignment]
    size = 5 * float(weight.std())
    parts = {f"layer {i} attention": x.get_submodule("self_attn") for i, x in enumerate(layers)}
    parts |= {f"layer {i} MLP": x.get_submodule("mlp") for i, x in enumerate(layers)}
    effects = [trace(parts, clean, corrupted, right, positions=[p]) for p in (COLOR, SUBJECT, AND)]
    best = {name: max(e.indirect()[name] for e in effects) for name in parts}
    first = max(best, key=lambda name: best[name])

    # Get_submodule returns Module.
    layer: nn.Linear = layers[0].get_submodule("self_attn.out_proj")  # type: ignore[assignment]
    fix = QuickFix(layer, *(_runs(model, color) for color in ("red", "blue")))
    green_before = _left(model, "green")
    with fix:
        red, green = _left(model, "red"), _left(model, "green")
    yield claim("After the edit", "change on inputs orthogonal to every k_c", apart).within(
        1e-10, "none", because=FLOAT64
    )
    yield claim("After the edit", "red figures painted blue, edited", red["blue"]).above(
        0.9, "before: red", because="the edit is to be seen: nine of ten"
    )
    yield claim("After the edit", "green figures still green", green["green"]).above(
        green_before["green"],
        "before the edit",
        times=0.6,
        because="the edit is not to spread: most are kept",
    )
    yield claim("lambda to infinity", "distance from W at a strength of 1e12", limit).within(
        1e-5, "W", because="k k^T / 1e12 of entries near 1"
    )
    yield claim("On a toy network", "first component of tracing", planted).equals(
        "path 1", "the planted path"
    )
    yield claim("On a toy network", "first of six parts, trained model", first).equals(
        "layer 0 attention", "the first self-attention of the text encoder, as in the paper"
    )
