"""Every bad input gives an error that names it, says what was expected, and how to put it right."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.core import errors as e
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.core.score import (
    Additive,
    Alibi,
    Cope,
    Dot,
    Gaussian,
    General,
    GroupBias,
    KeyWeights,
    LatticeBias,
    LowRankBias,
    RelativeBias,
    ScoreStep,
    ShawBias,
    SoftCap,
    T5Bias,
    Temperature,
)
from regard.core.support import (
    Attribute,
    Blocks,
    Causal,
    ChosenKeys,
    Dilated,
    Documents,
    Everything,
    Kinds,
    Neighborhood,
    Padding,
    PerHead,
    PrefixLM,
    SharedPrefix,
    Sinks,
    Strided,
    Tiles,
    Where,
    Window,
    documents_from_lengths,
)
from regard.core.value import Value
from regard.core.weigh import Relu, Sigmoid, Softmax
from tests.errors_said import assert_named

B, H, N, D = 2, 4, 8, 16
Q = torch.randn(B, H, N, D)
K = torch.randn(B, 2, N, D)


def run(rule=None, q=Q, k=K, v=K, **more):
    return lambda: regard.attend(q, k, v, rule, **more)


def with_step(step):
    return run(Dot() >> step)


SHAPE, DTYPE, DEVICE = e.ShapeError, e.DtypeError, e.DeviceError
RANGE, RULE, RUNS = e.ValueRangeError, e.RuleError, e.ExecutorError

BAD = {
    # tensors
    "q of rank 3": (run(q=Q[0]), SHAPE, "q"),
    "k of rank 5": (run(k=K[None]), SHAPE, "k"),
    "v no tensor": (run(v=[[1.0]]), SHAPE, "v"),
    "q of whole numbers": (run(q=Q.long()), DTYPE, "q"),
    "k in another dtype": (run(k=K.double()), DTYPE, "k"),
    "v in another dtype": (run(v=K.bfloat16()), DTYPE, "v"),
    "k on another device": (run(k=K.to("meta")), DEVICE, "k"),
    "v on another device": (run(v=K.to("meta")), DEVICE, "v"),
    "k of another batch": (run(k=K[:1], v=K[:1]), SHAPE, "k"),
    "v of other heads": (run(v=K[:, :1]), SHAPE, "v"),
    "heads that do not divide": (run(q=Q[:, :3]), SHAPE, "k"),
    "more key heads than query heads": (run(q=Q[:, :1]), SHAPE, "k"),
    "no key heads": (run(k=K[:, :0], v=K[:, :0]), SHAPE, "k"),
    "keys without values": (run(v=K[:, :, :3]), SHAPE, "v"),
    "head sizes that differ": (run(k=K[..., :5]), SHAPE, "k"),
    "head size 0": (run(q=Q[..., :0], k=K[..., :0]), SHAPE, "q"),
    "dropout of 1.5": (run(dropout=1.5), RANGE, "dropout"),
    # positions
    "positions that do not increase": (
        run(q_positions=torch.tensor([0, 1, 2, 2, 3, 4, 5, 6])), RANGE, "q_positions",
    ),
    "key positions that fall": (run(k_positions=torch.arange(N).flip(0)), RANGE, "k_positions"),
    "positions as fractions": (run(q_positions=torch.rand(N)), DTYPE, "q_positions"),
    "too few positions": (run(k_positions=torch.arange(3)), SHAPE, "k_positions"),
    "a negative query position": (run(q_positions=torch.arange(-1, N - 1)), RANGE, "q_positions"),
    # rules and executors
    "a number for a rule": (run(3), RULE, "rule"),
    "a number for a support": (lambda: Rule(support=3), RULE, "support"),
    "a support for a score": (lambda: Rule(score=Causal()), RULE, "score"),
    "a negative offset": (lambda: Rule(offset=-1), RANGE, "offset"),
    "a support and a function": (lambda: Causal() & (lambda b, h, i, j: i > j), RULE, "support"),
    "an unknown executor": (run(executor="fusd"), RUNS, "did you mean 'fused'"),
    "a forced executor that cannot": (run(Sigmoid(), executor="fused"), RUNS, "not by softmax"),
    "flex forced on sigmoid": (run(Sigmoid(), executor="flex"), RUNS, "executor"),
    "grouped forced on one support": (run(Causal(), executor="grouped"), RUNS, "share"),
    # supports
    "a window of 0": (lambda: Window(0), RANGE, "left"),
    "a window of -3": (lambda: Window(-3), RANGE, "left"),
    "a window to the right of 0": (lambda: Window(2, 0), RANGE, "right"),
    "a window of 1.5": (lambda: Window(1.5), RANGE, "left"),
    "0 sinks": (lambda: Sinks(0), RANGE, "count"),
    "steps of 0": (lambda: Dilated(0), RANGE, "step"),
    "strides of 0": (lambda: Strided(0), RANGE, "step"),
    "a stride from -1": (lambda: Strided(2, -1), RANGE, "start"),
    "blocks of 0": (lambda: Blocks(0), RANGE, "size"),
    "-1 blocks back": (lambda: Blocks(2, -1), RANGE, "back"),
    "a kernel wider than the lattice": (lambda: Neighborhood(9, (8,)), RANGE, "kernel"),
    "a kernel of other axes": (lambda: Neighborhood((3, 3, 3), (8, 8)), RULE, "kernel"),
    "a lattice of 4 axes": (lambda: Neighborhood(1, (2, 2, 2, 2)), RULE, "lattice"),
    "a stride beyond the kernel": (lambda: Neighborhood(3, (8,), stride=4), RANGE, "stride"),
    "a lattice of fewer positions": (run(Neighborhood(1, (2, 2))), SHAPE, "lattice"),
    "documents of rank 3": (lambda: Documents(torch.zeros(1, 1, 4)), SHAPE, "ids"),
    "documents of too few tokens": (run(Documents([0, 1])), SHAPE, "query"),
    "documents of another batch": (
        run(Documents(torch.zeros(3, N, dtype=torch.long))), SHAPE, "support",
    ),
    "lengths below 0": (lambda: documents_from_lengths([3, -1]), RANGE, "lengths"),
    "cumulative lengths from 1": (
        lambda: documents_from_lengths([1, 3], cumulative=True), RANGE, "lengths",
    ),
    "an unknown comparison": (lambda: Attribute(torch.zeros(4), test="after"), RULE, "test"),
    "kinds beyond the table": (
        lambda: Kinds(torch.tensor([0, 5]), torch.ones(2, 2)), RANGE, "kinds",
    ),
    "a table that is not square": (
        lambda: Kinds(torch.tensor([0]), torch.ones(2, 3)), SHAPE, "table",
    ),
    "padding of too few keys": (run(Padding(torch.ones(3))), SHAPE, "valid"),
    "padding longer than the row": (lambda: Padding.from_lengths([9], 8), RANGE, "lengths"),
    "padding on the top": (lambda: Padding.from_lengths([3], 8, "top"), RULE, "side"),
    "a prefix of -1": (lambda: PrefixLM(torch.tensor(-1)), RANGE, "prefix"),
    "no continuation": (lambda: SharedPrefix(2, ()), RULE, "lengths"),
    "continuations that are too short": (run(SharedPrefix(2, (1,))), SHAPE, "lengths"),
    "chosen tiles as numbers": (lambda: Tiles(torch.ones(1, 1, 2, 2), 4), SHAPE, "chosen"),
    "chosen tiles of rank 2": (lambda: Tiles(torch.ones(2, 2).bool(), 4), SHAPE, "chosen"),
    "too few chosen tiles": (run(Tiles(torch.ones(1, 1, 1, 1).bool(), 4)), SHAPE, "chosen"),
    "chosen tiles of other heads": (run(Tiles(torch.ones(1, 3, 2, 2).bool(), 4)), SHAPE, "support"),
    "tiles of size 0": (lambda: Tiles(torch.ones(1, 1, 2, 2).bool(), 0), RANGE, "size"),
    "chosen keys as fractions": (lambda: ChosenKeys(torch.rand(1, 1, 1, 2)), SHAPE, "index"),
    "too few lists of keys": (run(ChosenKeys(torch.zeros(1, 1, 3, 2).long())), SHAPE, "index"),
    "no support per head": (lambda: PerHead(()), RULE, "supports"),
    "supports of other heads": (run(PerHead((Causal(), Causal()))), SHAPE, "support"),
    "a predicate that is none": (lambda: Where(3), RULE, "test"),
    "a predicate that counts": (run(Where(lambda b, h, i, j: i + j)), RULE, "test"),
    "parts of two batches": (
        lambda: (Padding(torch.ones(2, 8)) & Padding(torch.ones(3, 8))).extent(), SHAPE, "batch",
    ),
    # scores
    "a cap of 0": (lambda: SoftCap(0), RANGE, "cap"),
    "slopes of other heads": (with_step(Alibi.for_heads(8)), SHAPE, "slopes"),
    "a table without a middle": (lambda: RelativeBias(torch.zeros(1, 4)), SHAPE, "table"),
    "NaN in a bias": (lambda: RelativeBias(torch.tensor([[0.0, torch.nan, 0.0]])), RANGE, "table"),
    "a lattice bias of other axes": (
        lambda: LatticeBias(torch.zeros(1, 3), (4, 4)), SHAPE, "table",
    ),
    "too few buckets": (lambda: T5Bias(torch.zeros(1, 2)), SHAPE, "table"),
    "groups beyond the table": (
        lambda: GroupBias(torch.tensor([0, 3]), torch.zeros(1, 2, 2)), SHAPE, "query",
    ),
    "factors of two ranks": (
        lambda: LowRankBias(torch.zeros(1, 1, N, 2), torch.zeros(1, 1, N, 3)), SHAPE, "v",
    ),
    "factors of other lengths": (
        with_step(LowRankBias(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, N, 2))), SHAPE, "u",
    ),
    "weights of other keys": (with_step(KeyWeights(torch.zeros(1, 1, 3))), SHAPE, "log_weight"),
    "a temperature of nothing": (lambda: Temperature(), SHAPE, "query"),
    "vectors of another size": (with_step(ShawBias(torch.zeros(1, 5, 3))), SHAPE, "table"),
    "positions of another size": (with_step(Cope(torch.zeros(1, 5, 3))), SHAPE, "table"),
    "a step that is none": (lambda: Dot() >> 3, RULE, "score"),
    "a function that is none": (lambda: ScoreStep(3), RULE, "function"),
    "an infinite scale": (lambda: Dot(float("inf")), RANGE, "scale"),
    "a width of 0": (lambda: Gaussian(0), RANGE, "width"),
    "a map of another size": (run(General(torch.zeros(1, 3, 3))), SHAPE, "weight"),
    "hidden sizes that differ": (
        run(Additive(torch.zeros(1, D, 3), torch.zeros(1, D, 4), torch.zeros(1, 3))),
        SHAPE, "of_query",
    ),
    # weighs
    "plus one beside a sink": (
        lambda: Softmax(plus_one=True, sink=torch.zeros(1)), RULE, "plus_one",
    ),
    "sinks of other heads": (run(Softmax(sink=torch.zeros(3))), SHAPE, "sink"),
    "a bias that is no number": (lambda: Sigmoid(float("nan")), RANGE, "bias"),
    "a power of one half": (lambda: Relu(0.5), RANGE, "power"),
    # partials, surveys, values, pictures
    "a merge of nothing": (lambda: regard.merge(), RULE, "parts"),
    "a merge of two shapes": (
        lambda: regard.merge(Partial(Q, Q[..., 0]), Partial(K, K[..., 0])), SHAPE, "parts",
    ),
    "a merge of two kinds": (
        lambda: regard.merge(Partial(Q, Q[..., 0]), Partial(Q, None)), RULE, "parts",
    ),
    "an unknown statistic": (
        lambda: regard.survey(Q, K, None, want=("entropi",)), RULE, "did you mean 'entropy'",
    ),
    "values that were not given": (
        lambda: regard.survey(Q, K, None, want=("received_by_value",)), RULE, "v",
    ),
    "sets that were not given": (lambda: regard.survey(Q, K, None, want=("sets",)), RULE, "sets"),
    "a set beyond the keys": (
        lambda: regard.survey(Q, K, None, want=("sets",), sets={"a": [99]}), RANGE, "sets",
    ),
    "a sink beyond the keys": (
        lambda: regard.survey(Q, K, None, want=("sinks",), sinks=[99]), RANGE, "sinks",
    ),
    "report tiles of 0": (lambda: regard.survey(Q, K, None, tile=0), RANGE, "tile"),
    "a statistic not asked for": (
        lambda: regard.survey(Q, K, None, want=("lse",)).entropy, RULE, "entropy",
    ),
    "a drawing of nothing": (lambda: Rule().draw(0), RANGE, "n"),
    "a drawing too wide for text": (lambda: Rule().draw(500), RANGE, "n"),
    "a head that is not there": (lambda: Rule().draw(4, head=2), RANGE, "head"),
    "text that is no JSON": (lambda: Value.from_json("Causal()"), RULE, "text"),
    "a type nobody knows": (lambda: Value.from_json('{"type": "Causall"}'), RULE, "type"),
    "a lambda in JSON": (lambda: Where(lambda b, h, i, j: i > j).to_json(), RULE, "test"),
    "map tiles of 0": (lambda: Everything().tiles(4, 4, 0), RANGE, "size"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_the_error_names_what_is_wrong(case):
    assert_named(*BAD[case])


def test_there_are_sixty_and_more():
    assert len(BAD) >= 60


def test_a_missing_extra_is_one_sentence_with_the_command():
    with pytest.raises(e.MissingExtraError, match=r"pip install 'regard\[see\]'"):
        e.need("no_such_package", "see", "draws pictures")


@pytest.mark.parametrize("fix", ["pass 3", "pass 3.", "did you mean 'x'?", "stop!"])
def test_an_error_ends_in_one_mark(fix: str) -> None:
    said = str(e.RuleError("x", 1, "2", fix))
    assert said.endswith(fix if fix[-1] in ".?!" else f"{fix}.")
