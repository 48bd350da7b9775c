"""Anchored answers: equal weights for answer options, and edits of MLP vectors that favor one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from regard.controls.base import Control, checked
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, strength_of
from regard.controls.text_tokens import token_set
from regard.controls.token_sets import FromLastToken, TokenSet
from regard.controls.weight_edits import EvenOut
from regard.core.errors import ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.value import value
from regard.models.attach import hook_of
from regard.models.residual import layers_of, unembedding_of


@register("anchored_options")
@method(
    "anchored_bias_edit",
    call="from regard.controls.anchored_options import AnchoredOptions\n"
    'options = AnchoredOptions(("A", "B", "C"))\n'
    'regard.steer(model, options, where={"heads": found}, tokenizer=tokenizer)',
)
@value
class AnchoredOptions(Control):
    """Give the options of a question equal weight at the last token, in heads with a position bias.

    `options` are the tokens of each; `strength` 1 gives each the mean of their weights, 0 changes
    nothing. `edited_vectors` edits value vectors of MLPs. (Anchored answers, Li and Gao 2024)

    >>> AnchoredOptions(options=("A", "B")).edits()[0].point
    'weights'
    """

    options: tuple[TokenSet, ...]
    strength: Strength = 1.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    neutral: ClassVar[float | None] = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(token_set(x) for x in self.options))
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0, 1.0))
        EvenOut(self.options)
        checked(self)

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Equalize the weights of the newest token."""
        return (EvenOut(self.options, self.strength, FromLastToken()),)


def _rows(model: nn.Module) -> Tensor:
    """Return the rows of the unembedding, [vocabulary, d]."""
    weight = unembedding_of(model).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _down(model: nn.Module, layer: int) -> nn.Linear:
    """Return the matrix of an MLP whose columns are its value vectors."""
    found = [x for x in layers_of(model, hook_of(model)[1]) if x.site.layer == layer]
    if not found:
        fail(ValueRangeError, "layer", layer, "a layer of the model", "count layers from 0")
    size = _rows(model).shape[1]
    for rest in found[0].rest:
        for module in reversed(list(rest.modules())):
            if isinstance(module, nn.Linear) and module.out_features == size:
                return module
    return fail(
        ValueRangeError, "layer", layer, "a layer with an MLP of linear maps", "take another layer"
    )


def option_scores(model: nn.Module, layer: int, option: int, others: Sequence[int]) -> Tensor:
    """Return what each value vector of a layer adds to the logit of an option, [units].

    Against the mean of the options, for an activation of 1: v . (W_U[option] - mean W_U).
    """
    rows = _rows(model)
    way = rows[option] - rows[[option, *others]].mean(0)
    return _down(model, layer).weight.detach().T @ way


@contextmanager
def edited_vectors(
    model: nn.Module, units: Sequence[tuple[int, int]], option: int, others: Sequence[int],
    strength: float = 1.0,
) -> Iterator[None]:  # fmt: skip
    """Remove from value vectors (layer, unit) what raises an option above the mean of all.

    `strength` 1 removes it all, 0 changes nothing; the weights are restored at the end, also after
    an exception.
    """
    strength_of(strength)
    if not others:
        fail(ValueRangeError, "others", shape_of(others), "the other options", "name their ids")
    rows = _rows(model).clone()
    way = rows[option] - rows[[option, *others]].mean(0)
    way = way / way.norm()
    kept: list[tuple[nn.Linear, int, Tensor]] = []
    try:
        with torch.no_grad():
            for layer, unit in units:
                down = _down(model, layer)
                if not 0 <= unit < down.in_features:
                    fail(
                        ValueRangeError, "units", unit, f"units 0 to {down.in_features - 1}",
                        "count the units of the MLP from 0",
                    )  # fmt: skip
                old = down.weight[:, unit].clone()
                kept.append((down, unit, old))
                down.weight[:, unit] = old - strength * (old @ way) * way
        yield
    finally:
        with torch.no_grad():
            for down, unit, old in reversed(kept):
                down.weight[:, unit] = old
