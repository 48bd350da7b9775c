"""EL-attention: attend to hidden states in place of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ShapeError, fail
from regard.core.keys import Dense
from regard.core.method import method
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.core.support import Everything, Support
from regard.memories.base import KeyMemory
from regard.memories.kept import Kept
from regard.models.masks import Mask
from regard.models.projections import HeadWeights, head_weights
from regard.models.site import Site, Sites
from regard.policies.base import Step
from regard.policies.kinds import ModulePatch, Select, Store
from regard.policies.registry import register
from regard.run.api import attend
from regard.run.executor import Answer, No, Yes

# Models of transformers with plain attention: projections, scores, projection.
DECODERS = ("gpt2", "opt", "biogpt")
PAIRS = ("bart", "mbart", "marian", "pegasus")


def expand(weights: HeadWeights, x: Tensor) -> Tensor:
    """Return queries [b, h, n, D] of states x [b, n, D] for states as keys: (x W_Q + b_Q) W_K^T.

    The bias of keys adds the same to all scores of a query, which softmax ignores.
    """
    q = torch.einsum("bnD,hDd->bhnd", x, weights.q)
    if weights.q_bias is not None:
        q = q + weights.q_bias[:, None]
    return torch.einsum("bhnd,hDd->bhnD", q, weights.k)


def contract(weights: HeadWeights, mixed: Tensor) -> Tensor:
    """Return the output [b, n, D] of heads that averaged states to [b, h, n, D].

    Weights sum to one, so the bias of values is added once.
    """
    v = torch.einsum("bhnD,hDe->bhne", mixed, weights.v)
    if weights.v_bias is not None:
        v = v + weights.v_bias[:, None]
    y = torch.einsum("bhne,heD->bnD", v, weights.o)
    return y if weights.o_bias is None else y + weights.o_bias


def fold(x: Tensor, beams: int) -> Tensor:
    """Put the beams of a row among its queries: [b beams, h, n, D] as [b, h, beams n, D].

    >>> unfold(fold(torch.arange(24.0).view(6, 2, 2, 1), 3), 3).flatten().equal(torch.arange(24.0))
    True
    """
    if beams == 1:
        return x
    h, n, d = x.shape[1:]
    return x.reshape(-1, beams, h, n, d).transpose(1, 2).reshape(-1, h, beams * n, d)


def unfold(x: Tensor, beams: int) -> Tensor:
    """Undo `fold`."""
    if beams == 1:
        return x
    b, h, _, d = x.shape
    return x.reshape(b, h, beams, -1, d).transpose(1, 2).reshape(b * beams, h, -1, d)


def expanded_attention(
    weights: HeadWeights, x: Tensor, hidden: Tensor, support: Support | None = None
) -> Tensor:
    """Attend from states x [b beams, n, D] to states [b, m, D]; a cache keeps only these.

    Equal to multi-head attention whose keys and values are projected from `hidden`. Rows of x that
    share a row of `hidden` are adjacent; a support that depends on the query allows one beam only.

    >>> from regard.models.projections import HeadWeights
    >>> q, k, v = torch.randn(3, 2, 8, 4)
    >>> weights = HeadWeights(q, k, v, torch.randn(2, 4, 8))
    >>> expanded_attention(weights, torch.randn(6, 1, 8), torch.randn(2, 5, 8)).shape
    torch.Size([6, 1, 8])
    """
    beams = beams_of(x, hidden)
    score = Dot(weights.q.shape[-1] ** -0.5)
    rule = Rule(Everything() if support is None else support, score)
    h = hidden[:, None]
    return contract(weights, unfold(attend(fold(expand(weights, x), beams), h, h, rule), beams))


def beams_of(x: Tensor, hidden: Tensor) -> int:
    """Return how many rows of x share a row of the states."""
    if not len(hidden) or len(x) % len(hidden) or x.shape[-1] != hidden.shape[-1]:
        fail(
            ShapeError, "hidden", list(hidden.shape),
            f"rows that divide the {len(x)} of x, of width {x.shape[-1]}",
            "pass one row of states for all beams of a text",
        )  # fmt: skip
    return len(x) // len(hidden)


class States(Kept):
    """Hidden states [b, 1, m, D], kept once and read as keys and as values."""

    def keys(self) -> Dense:
        """Return the states as keys and as values."""
        found = super().keys().dense()
        return found.replace(v=found.k)


@method("el_attention", call='from regard.policies import policy; policy("el_attention")')
@register("el_attention")
@dataclass
class ExpandedQueries(Store, Select, ModulePatch):
    """Keep the hidden states of a layer in place of its keys and values, without loss.

        q_i . (h_j W_K + b_K) = (q_i W_K^T) . h_j + const;  out = (a H) W_V + b_V

    One tensor [b, t, D] in place of two; in cross-attention the output of the encoder serves all
    layers and all beams of a text, and nothing else is kept. A pair costs D channels instead of d,
    so a prompt runs as in the model, and decoding trades compute for memory.

    For decoders without positions in their keys (GPT-2, OPT, BioGPT), and encoder-decoder models
    (BART, mBART, Marian, Pegasus). There is no dropout where a cache is used. Weights of fewer than
    32 bits are copied, by head. `keep` has no effect: everything is kept.
    (EL-Attention, Yan et al. 2021)
    """

    what: ClassVar[str] = "stores"
    needs_cache: ClassVar[bool] = False
    patches: ClassVar[tuple[str, ...]] = ("self", "cross")

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether the model's keys are a linear map of states, without positions."""
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind in PAIRS or (kind in DECODERS and all(s.kind == "self" for s in sites)):
            return Yes()
        if any("rotary" in type(m).__name__.lower() for m in model.modules()):
            return No(
                "whose keys are rotated by position (RoPE): no single map of queries replaces them"
            )
        return No(f"whose attention is not known to be plain, as in {', '.join(DECODERS + PAIRS)}")

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Read the weights of heads, and share the encoder's output among beams."""
        super().begin(model, sites, budget)
        dtype = next(model.parameters()).dtype
        self._weights = {s.module: _in(head_weights(model, s), dtype) for s in sites}
        if model.config.model_type in PAIRS and hasattr(model, "_expand_inputs_for_generation"):
            model.__dict__["_expand_inputs_for_generation"] = _sharing(model)

    def end(self) -> None:
        """Release the model."""
        if getattr(self, "model", None) is not None:
            self.model.__dict__.pop("_expand_inputs_for_generation", None)
        self._weights = {}
        super().end()

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Build a memory of states."""
        return States()

    def select(self, step: Step) -> Call:
        """Count the dense cost with the heads' own keys."""
        call, size = step.call, step.site.head_size
        if size and call.d != size:
            n, m = call.n, call.m
            pairs = n * m if step.site.kind == "cross" else n * (m - n) + n * (n + 1) / 2
            step.dense = pairs * size / call.d
        return call

    def patch(
        self, site: Site | None, run: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Attend to states where there is a cache; otherwise run the module."""
        assert site is not None
        x = args[0] if args else kwargs["hidden_states"]
        cache, across = kwargs.get("past_key_values"), kwargs.get("key_value_states")
        if len(args) > 1 or (cache is None and (across is None or len(across) == len(x))):
            return run(*args, **kwargs)
        if across is not None:
            return self._attended(site, x, across[:, None], across[:, None], kwargs)
        own: Any = getattr(cache, "self_attention_cache", cache)
        layer, states = self.model.get_submodule(site.module).layer_idx, x[:, None]
        if x.shape[1] > 1 and own.get_seq_length(layer) == 0:
            out = run(*args, **{**kwargs, "past_key_values": None})
            own.update(states, states[..., :0], layer)
            held = own.layers[layer]
            if hasattr(held, "unread"):  # the prompt has been attended to
                held.unread = False
                held.memory.settle()
            return out
        k, _ = own.update(states, states[..., :0], layer)
        return self._attended(site, x, k, k, kwargs)

    def _attended(
        self, site: Site, x: Tensor, k: Tensor, v: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Call the attention of transformers, as the module would."""
        from regard.models.attention_interface import attention

        module: Any = self.model.get_submodule(site.module)
        weights, beams = self._weights[site.module], beams_of(x, k)
        mask = kwargs.get("attention_mask")
        if beams > 1:
            mask = _of_texts(mask, beams, beams * x.shape[1])
        rest = {"output_attentions": kwargs.get("output_attentions")}
        q = fold(expand(weights, x), beams)
        mixed, seen = attention(module, q, k, v, mask, scaling=module.scaling, **cast(Any, rest))
        if seen is not None:
            seen = unfold(seen, beams)
        return contract(weights, unfold(mixed.transpose(1, 2), beams)), seen


def _in(weights: HeadWeights, dtype: torch.dtype) -> HeadWeights:
    """Cast weights to the dtype of the model."""
    parts = {f.name: getattr(weights, f.name) for f in fields(weights)}
    held: dict[str, Any] = {k: None if x is None else x.to(dtype) for k, x in parts.items()}
    return HeadWeights(**held)


def _of_texts(mask: Any, beams: int, n: int) -> Any:
    """Return the mask of a batch without its beams, for n queries; beams share one mask."""
    if not isinstance(mask, Mask):
        return None if mask is None else mask[::beams]
    valid = mask.pieces.get("attention_mask")
    valid = None if valid is None else valid[::beams]
    sizes = {"batch_size": mask.b // beams, "q_length": n, "attention_mask": valid}
    return Mask({**mask.pieces, **sizes})


def _sharing(model: Any) -> Callable[..., Any]:
    """Expand inputs for beams, all but the output of the encoder."""
    plain = model._expand_inputs_for_generation

    def expanded(*args: Any, **kwargs: Any) -> Any:
        found = kwargs.get("encoder_outputs")
        # Pass an empty placeholder, since the key must be there.
        given = {**kwargs, "encoder_outputs": {}} if found is not None else kwargs
        ids, kept = plain(*args, **given)
        return ids, kept if found is None else {**kept, "encoder_outputs": found}

    return expanded
