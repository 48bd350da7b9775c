"""Inputs of the wrong kind are told of as well as inputs of the wrong size."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.core import errors as e
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.core.score import Alibi, GroupBias, T5Bias
from regard.core.support import (
    Attribute,
    Causal,
    Documents,
    Kinds,
    Neighborhood,
    Padding,
    PerHead,
    PrefixLM,
    SharedPrefix,
    Tiles,
    Where,
    documents_from_lengths,
)
from regard.core.value import Value
from tests.errors_said import assert_named

Q = torch.randn(1, 2, 4, 8)
ROW = Q[..., 0]
CHOSEN = torch.ones(1, 1, 2, 2).bool()
SHAPE, RANGE, RULE = e.ShapeError, e.ValueRangeError, e.RuleError

BAD = {
    "dropout in words": (lambda: regard.attend(Q, Q, Q, dropout="half"), RANGE, "dropout"),
    "dropout of no number": (
        lambda: regard.attend(Q, Q, Q, dropout=float("nan")), RANGE, "dropout",
    ),
    "a merge of tensors": (lambda: regard.merge(Q, Q), RULE, "parts"),
    "a merge of a list": (lambda: regard.merge([Partial(Q, ROW)]), RULE, "parts"),
    "a merge of two dtypes": (
        lambda: regard.merge(Partial(Q, ROW), Partial(Q.double(), ROW.double())), SHAPE, "parts",
    ),
    "a merge of two devices": (
        lambda: regard.merge(Partial(Q, ROW), Partial(Q.to("meta"), ROW.to("meta"))),
        SHAPE, "one device",
    ),
    "a merge of two shapes of lse": (
        lambda: regard.merge(Partial(Q, ROW), Partial(Q, ROW[..., :2])), SHAPE, "parts",
    ),
    "a type that is a list": (lambda: Value.from_json('{"type": [1]}'), RULE, "to_json"),
    "a window without its size": (lambda: Value.from_json('{"type": "Window"}'), RULE, "left"),
    "a window of one part more": (
        lambda: Value.from_json('{"type": "Window", "left": 3, "wide": 1}'), RULE, "wide",
    ),
    "a function of no module": (
        lambda: Value.from_json('{"type": "Where", "test": {"function": "no_such:f"}}'),
        RULE, "no_such",
    ),
    "JSON that holds no value": (lambda: Value.from_json("[1, 2]"), RULE, "text"),
    "a value that is no text": (lambda: Value.from_json(3), RULE, "text"),
    "a window of 0 in JSON": (
        lambda: Value.from_json('{"type": "Window", "left": 0}'), RANGE, "left",
    ),
    "map tiles in words": (lambda: Causal().tiles(4, 4, "big"), RANGE, "size"),
    "map tiles of 2.5": (lambda: Causal().tiles(4, 4, 2.5), RANGE, "size"),
    "chosen tiles of 2.5": (lambda: Tiles(CHOSEN, 2.5), RULE, "size"),
    "one support for all heads": (lambda: PerHead(Causal()), RULE, "supports"),
    "no supports at all": (lambda: PerHead(None), RULE, "supports"),
    "one length for all continuations": (lambda: SharedPrefix(2, 3), RULE, "lengths"),
    "a prefix in words": (lambda: PrefixLM("two"), RANGE, "prefix"),
    "half a prefix": (lambda: PrefixLM(1.5), RANGE, "prefix"),
    "ragged documents": (lambda: Documents([[1, 2], [3]]), SHAPE, "ids"),
    "documents of None": (lambda: Documents([None]), SHAPE, "ids"),
    "half a document": (lambda: documents_from_lengths([1.5]), RANGE, "lengths"),
    "lengths in words": (lambda: documents_from_lengths("abc"), RANGE, "lengths"),
    "half a padded row": (lambda: Padding.from_lengths([0.5], 3), RANGE, "lengths"),
    "half a kind": (lambda: Kinds([0.5], torch.ones(1, 1)), SHAPE, "kinds"),
    "half a group": (lambda: GroupBias([0.5], torch.zeros(1, 1, 1)), SHAPE, "query"),
    "attributes of two batches": (
        lambda: Attribute(torch.zeros(2, 4), torch.zeros(3, 4)), SHAPE, "key",
    ),
    "a lattice in words": (lambda: Neighborhood(3, "abc"), RANGE, "lattice"),
    "no lattice": (lambda: Neighborhood(1, None), RULE, "lattice"),
    "a lattice of halves": (lambda: Neighborhood(1, (1.5,)), RANGE, "lattice"),
    "a function before a support": (lambda: (lambda b, h, i, j: i > j) & Causal(), RULE, "Where"),
    "slopes for no head": (lambda: Alibi.for_heads(0), RANGE, "h"),
    "distances that end before the buckets": (
        lambda: T5Bias(torch.zeros(1, 32), True, 8), RANGE, "max_distance",
    ),
    "a drawing in words": (lambda: Rule().draw("wide"), RANGE, "n"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_the_error_names_what_is_wrong(case):
    assert_named(*BAD[case])


def test_folding_refuses_a_function_of_the_head():
    by_head = Where(lambda b, h, i, j: (i + j + h) % 2 == 0)
    with pytest.raises(e.ExecutorError, match="batch row or the head"):
        regard.attend(Q, Q, Q, Causal() & by_head, executor="folded")
