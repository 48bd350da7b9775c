"""The projection weights of each head: query, key, value and output.

Found by the usual names, in any module with one linear layer for each, or with a fused one. Grouped
keys and values are repeated for each query head that reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn

from regard.core.errors import CapabilityError, fail
from regard.core.heads import expand_heads
from regard.core.partial import wide
from regard.models.site import Site

NAMES = {
    "q": ("q_proj", "to_q", "query", "q_lin", "wq", "q"),
    "k": ("k_proj", "to_k", "key", "k_lin", "wk", "k"),
    "v": ("v_proj", "to_v", "value", "v_lin", "wv", "v"),
    "o": ("o_proj", "out_proj", "to_out", "c_proj", "out_lin", "wo", "Wo", "o", "proj", "dense"),
}
# Fused layers, and the order of their rows: q, k and v one after another, or head by head.
FUSED = {"c_attn": "parts", "qkv_proj": "parts", "qkv": "parts", "Wqkv": "parts",
         "query_key_value": "heads"}  # fmt: skip


@dataclass(frozen=True)
class HeadWeights:
    """Weights of the query heads of a site, in float32 or wider: q, k [h, D, d], v, o [h, e, D].

    A head maps x [n, D] to queries x q + q_bias, and adds (A (x v + v_bias)) o to the residual
    stream; `o_bias` is added once. Norms and rotations in between are not included.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return self.q.shape[0]

    def qk(self, head: int) -> Tensor:
        """Return W_Q W_K^T [D, D] of a head: the score of a pair of states, before scaling."""
        return self.q[head] @ self.k[head].T

    def ov(self, head: int) -> Tensor:
        """Return W_V W_O [D, D] of a head: the output for a state that it attends to."""
        return self.v[head] @ self.o[head]


def head_weights(model: nn.Module, site: Site) -> HeadWeights:
    """Return the weights of the heads of a site.

    >>> import regard
    >>> from regard.models.attach import hook_of
    >>> model = regard.model(["gqa"], dim=32, heads=4, kv_heads=2, vocab=10)
    >>> weights = head_weights(model, hook_of(model)[1][0])
    >>> weights.q.shape, weights.ov(0).shape
    (torch.Size([4, 32, 8]), torch.Size([32, 32]))
    """
    module = model.get_submodule(site.module)
    h, g = site.heads or 1, site.kv_heads or site.heads or 1
    made = _separate(module) or _fused(module, h, g)
    if made is None:
        _refuse(site, module, "layers for q, k and v")
    weights, biases = {}, {}
    for part, (weight, bias) in made.items():
        heads = h if part == "q" else g
        weights[part] = expand_heads(_by_head(weight, heads)[None], h)[0]
        biases[part] = None if bias is None else expand_heads(bias.view(1, heads, -1), h)[0]
    o, o_bias = output_weights(model, site)
    parts = (weights["q"], weights["k"], weights["v"], o)
    return HeadWeights(*parts, biases["q"], biases["k"], biases["v"], o_bias)


def output_weights(model: nn.Module, site: Site) -> tuple[Tensor, Tensor | None]:
    """Return the output projection of the heads o [h, e, D], and its bias [D]."""
    module = model.get_submodule(site.module)
    out = _child(module, NAMES["o"]) or _beside(model, site.module)
    if out is None:
        _refuse(site, module, "an output layer")
    weight, bias = _matrix(out)
    return weight.view(site.heads or 1, -1, weight.shape[1]), bias


# A matrix [D, heads * size], and a bias [heads * size].
Made = dict[str, tuple[Tensor, Tensor | None]]


def _separate(module: nn.Module) -> Made | None:
    """Return the weights of separate layers for q, k and v."""
    layers = {x: _child(module, NAMES[x]) for x in "qkv"}
    found = {x: _matrix(layer) for x, layer in layers.items() if layer is not None}
    return found if len(found) == 3 else None


def _fused(module: nn.Module, h: int, g: int) -> Made | None:
    """Return the weights of one layer for all three."""
    for name, order in FUSED.items():
        layer = _child(module, (name,))
        if layer is None:
            continue
        weight, bias = _matrix(layer)
        rows = _cut(weight, order, h, g)
        biases = [None] * 3 if bias is None else [x[0] for x in _cut(bias[None], order, h, g)]
        return {x: (w, b) for x, w, b in zip("qkv", rows, biases, strict=True)}
    return None


def _cut(x: Tensor, order: str, h: int, g: int) -> list[Tensor]:
    """Split [rows, (h + 2 g) * size] into q, k and v [rows, heads * size]."""
    size = x.shape[1] // (h + 2 * g)
    if order == "parts":
        return list(x.split([h * size, g * size, g * size], 1))
    # Head by head: the queries of a group, then its key and its value.
    each = x.view(len(x), g, h // g + 2, size)
    return [each[:, :, :-2].flatten(1), each[:, :, -2].flatten(1), each[:, :, -1].flatten(1)]


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """Return a linear layer by one of its usual names."""
    for name in names:
        found = getattr(module, name, None)
        if isinstance(found, nn.ModuleList | nn.Sequential) and len(found):
            found = found[0]  # diffusers keeps dropout beside it
        if isinstance(found, nn.Module) and isinstance(getattr(found, "weight", None), Tensor):
            return found
    return None


def _beside(model: nn.Module, path: str) -> nn.Module | None:
    """Return the output layer of models that have it beside the attention (BERT, ViT)."""
    parent = model.get_submodule(path.rpartition(".")[0])
    for name in ("output", "out"):
        inside = getattr(parent, name, None)
        if isinstance(inside, nn.Module):
            return _child(inside, ("dense",))
    return None


def _matrix(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the matrix [in, out] of x @ matrix, and the bias."""
    own: Any = layer.weight
    bias: Any = getattr(layer, "bias", None)
    weight = own.detach().to(wide(own.dtype))
    if type(layer).__name__ != "Conv1D":  # transformers' own is [in, out] already
        weight = weight.T
    return weight, None if bias is None else bias.detach().to(wide(own.dtype))


def _by_head(weight: Tensor, heads: int) -> Tensor:
    """Split [D, heads * d] to [heads, D, d]."""
    return weight.view(len(weight), heads, -1).transpose(0, 1)


def _refuse(site: Site, module: nn.Module, what: str) -> NoReturn:
    children = ", ".join(name for name, _ in module.named_children()) or "nothing"
    fail(
        CapabilityError, site.module, f"a {type(module).__name__} of {children}",
        f"{what}, under a name of {', '.join(sorted({*NAMES['q'], *NAMES['o'], *FUSED}))}",
        "this module's weights cannot be read head by head",
    )  # fmt: skip


def named_sites(model: nn.Module, sites: Any) -> list[tuple[Site, HeadWeights]]:
    """Return the weights of every self-attention of a model, by site."""
    return [(site, head_weights(model, site)) for site in sites if site.kind == "self"]
