"""Probes equal a naive computation from the whole matrix, and know perfect heads."""

import math

import pytest
import torch

import regard
from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError
from regard.models.engine import Engine
from regard.models.site import Site
from regard.models.weights import closed_weights
from regard.probes import Reading, known, make_probes
from regard.probes.roles import Delimiter, DuplicateToken, Induction, Local, Offset, Retrieval
from regard.probes.shape import Distance, Rings
from regard.probes.sinks import MassiveActivations, SinkRate, StrongestSink, sink_rates

CAUSAL = regard.Rule(regard.Causal())
N, PERIOD = 40, 13


def site(heads: int, **more) -> Site:
    return Site(0, module="attn", heads=heads, kv_heads=heads, **more)


def looked(probe, call: Call, reading: Reading | None = None, **more):
    """Score one call, and give the numbers by head."""
    if reading is not None:
        probe.show(reading)
    place = site(call.h, **more)
    Engine([probe]).run(call.replace(site=place))
    return probe.told().values[place]


def random_call(rule=CAUSAL, n: int = N, heads: int = 4, groups: int = 2, b: int = 2) -> Call:
    q, k, v = (torch.randn(b, x, n, 8, dtype=torch.float64) for x in (heads, groups, groups))
    return Call.of(2 * q, k, v, rule)


def repeated(b: int = 2) -> Reading:
    stretch = torch.randint(3, 30, (b, PERIOD))
    return Reading({"input_ids": stretch.repeat(1, 4)[:, :N]}, period=PERIOD)


def pointing(keys: list[int], rule=CAUSAL) -> Call:
    """A head whose query i looks at keys[i] alone."""
    n = len(keys)
    q = 1e4 * torch.eye(n, dtype=torch.float64)[torch.tensor(keys)][None, None]
    k = torch.eye(n, dtype=torch.float64)[None, None]
    return Call.of(q, k, k, rule)


def pairs(kind: str, reading: Reading, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """Which pairs [b, n, n] a probe is about, written out."""
    tokens, near = reading.tokens, j - i
    same = tokens[:, :, None] == tokens[:, None, :]
    shifted = torch.zeros_like(same)
    shifted[:, :, 1:] = same[:, :, :-1]
    return {
        "previous_token": (near == -1)[None],
        "offset": (near == -3)[None],
        "local": (near.abs() < 5)[None],
        "induction stripe": (near == 1 - PERIOD)[None],
        "duplicate_token stripe": (near == -PERIOD)[None],
        "induction mask": shifted & (j <= i),
        "duplicate_token mask": same & (j < i),
    }[kind].expand_as(same)


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("previous_token", lambda: known()["previous_token"]()),
        ("offset", lambda: Offset(3)),
        ("local", lambda: Local(5)),
        ("induction stripe", Induction),
        ("induction mask", lambda: Induction(definition="mask")),
        ("duplicate_token stripe", DuplicateToken),
        ("duplicate_token mask", lambda: DuplicateToken(definition="mask")),
    ],
)
def test_weight_on_pairs_is_that_of_the_matrix(kind, make, sink):
    torch.manual_seed(0)
    weigh = regard.Softmax(sink=torch.randn(4, dtype=torch.float64)) if sink else regard.Softmax()
    call, reading = random_call(CAUSAL.replace(weigh=weigh)), repeated()
    weights = closed_weights(call, "test")
    i, j = torch.arange(N)[:, None], torch.arange(N)[None, :]
    there = pairs(kind, reading, i, j) & (j <= i)
    # Of windows, only queries that could look farther away count.
    rows = (i[:, 0] >= 5)[None].expand(2, -1) if kind == "local" else there.any(-1)
    on = (weights * there[:, None]).sum(-1)
    wanted = (on * rows[:, None]).sum((0, 2)) / rows.sum()
    found = looked(make(), call, reading)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("current", [False, True])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("definition", ["share", "difference"])
@pytest.mark.parametrize("kind", ["previous_token", "induction mask", "duplicate_token mask"])
def test_scores_of_a_head_detector_are_those_of_the_matrix(kind, definition, bos, current):
    call, reading, name = random_call(), repeated(), kind.split()[0]
    settings = {"exclude_bos": bos, "exclude_current_token": current}
    found = looked(known()[name](definition=definition, **settings), call, reading)
    weights = closed_weights(call, "test")
    own = torch.arange(N)
    there = pairs(kind, reading, own[:, None], own[None])[:, None].expand_as(weights) & (
        own[:, None] >= own
    )
    kept = torch.ones(N, N, dtype=torch.bool)
    kept[:, 0] &= not bos
    kept[own, own] &= not current
    if definition == "share":
        share = (weights * (there & kept)).sum((0, 2, 3)) / (weights * kept).sum((0, 2, 3))
        assert torch.allclose(found, share, atol=1e-9)
        return
    gap = ((weights - there.double()).abs() * kept).sum((2, 3)).mean(0) / N
    assert torch.allclose(found, 1 - gap, atol=1e-9)


def test_options_of_a_head_detector_are_for_its_measures():
    with pytest.raises(RuleError, match="exclude_bos"):
        Induction(exclude_bos=True)
    with pytest.raises(RuleError, match="exclude_current_token"):
        DuplicateToken(definition="mask", exclude_current_token=True)


def test_perfect_heads_score_one_and_others_nothing():
    reading = repeated(1)
    # Where there is nothing so far back, a head looks at the token itself.
    previous, induction, duplicate, own = (
        [i - back if i >= back else i for i in range(N)] for back in (1, PERIOD - 1, PERIOD, 0)
    )
    for name, keys in (
        ("previous_token", previous),
        ("induction", induction),
        ("duplicate_token", duplicate),
    ):
        for other in (previous, induction, duplicate, own):
            score = float(looked(known()[name](), pointing(other), reading)[0])
            assert score == pytest.approx(1.0 if other is keys else 0.0, abs=1e-6)


def test_entropy_of_uniform_heads_is_the_log_of_their_keys():
    call = Call.of(*(torch.zeros(1, 2, 16, 4),) * 3, regard.Rule(regard.Everything()))
    assert torch.allclose(looked(known()["entropy"](), call).float(), torch.tensor(math.log(16.0)))
    relative = known()["entropy"](definition="relative")
    causal = call.replace(rule=CAUSAL)
    assert torch.allclose(looked(relative, causal).float(), torch.ones(2), atol=1e-5)
    focused = known()["entropy"]()
    looked(focused, pointing([0] * 8))
    assert focused.result().details["collapsed"] == ["L0H0"]


def test_sinks_of_known_maps():
    uniform = Call.of(*(torch.zeros(3, 2, 64, 4),) * 3, CAUSAL)
    wanted = sum(1 / i for i in range(1, 65)) / 64  # 0.074
    probe = SinkRate()
    assert torch.allclose(looked(probe, uniform).double(), torch.tensor(wanted).double())
    assert probe.result().details["rate"] == 0.0
    resting = SinkRate()
    assert float(looked(resting, pointing([0] * 64))[0]) == pytest.approx(1.0)
    assert resting.result().details["rate"] == 1.0
    assert resting.result().details["by_position"] == [1.0] + 7 * [0.0]
    assert sink_rates(resting, [0, 1]) == [1.0, 0.0]
    strongest = StrongestSink(least=4)
    looked(strongest, pointing([min(i, 5) for i in range(64)]))
    assert strongest.result().details["keys"] == {site(1): [5]}


def test_distances_are_those_of_the_matrix():
    torch.manual_seed(1)
    call = random_call()
    weights = closed_weights(call, "test")
    i, j = torch.arange(N)[:, None], torch.arange(N)[None, :]
    wanted = (weights * (i - j).abs()).sum(-1).mean((0, 2))
    assert torch.allclose(looked(Distance(), call), wanted, atol=1e-6)
    assert float(looked(Distance(), pointing(list(range(9))))[0]) == pytest.approx(0.0)


def test_distances_and_rings_on_a_grid():
    torch.manual_seed(2)
    rows, columns, special = 3, 4, 1
    n = special + rows * columns
    call = random_call(regard.Rule(), n=n)
    weights = closed_weights(call, "test")[:, :, special:]
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    hop = (place[:, None] - place).abs().amax(-1)
    apart = torch.cdist(place, place)
    patches = weights[..., special:]
    mean = ((patches * apart).sum(-1) / patches.sum(-1)).mean((0, 2))
    found = looked(Distance(definition="euclidean"), call, grid=(rows, columns))
    assert torch.allclose(found, mean, atol=1e-6)
    probe = Rings()
    looked(probe, call, grid=(rows, columns))
    rings = next(iter(probe.result().details["rings"].values()))
    assert torch.allclose(rings.sum(1), torch.ones(4, dtype=torch.float64), atol=1e-6)
    for k in range(4):
        wanted = (patches * (hop == k)).sum(-1).mean((0, 2))
        assert torch.allclose(rings[:, k], wanted, atol=1e-6)
    assert torch.allclose(rings[:, -1], weights[..., 0].mean((0, 2)), atol=1e-6)


@pytest.mark.parametrize(("definition", "wanted"), [("set", 1.0), ("counts", 1.0)])
def test_a_perfect_retrieval_head(definition, wanted):
    tokens = list(range(10, 40))
    needle = slice(6, 9)
    tokens[25:28] = tokens[6:9]  # the answer says the needle again
    keys = list(range(30))
    for step, row in enumerate(range(24, 27)):
        keys[row] = 6 + step
    reading = Reading(
        {"input_ids": torch.tensor([tokens])}, spans={"needle": needle, "answer": slice(25, 28)}
    )
    perfect = looked(Retrieval(definition=definition), pointing(keys), reading)
    assert float(perfect[0]) == pytest.approx(wanted)
    elsewhere = looked(Retrieval(definition=definition), pointing(list(range(30))), reading)
    assert float(elsewhere[0]) == 0.0


def test_delimiters_by_word_and_by_id():
    words = ["the", ".", "cat", ",", "\n", "sat"]
    ids = torch.tensor([[5, 1, 6, 2, 3, 7]])
    keys = [0, 1, 1, 3, 4, 1]
    reading = Reading({"input_ids": ids}, words=words)
    assert float(looked(Delimiter(), pointing(keys), reading)[0]) == pytest.approx(1.0)
    only = looked(Delimiter(ids=[1]), pointing(keys), Reading({"input_ids": ids}))
    assert float(only[0]) == pytest.approx(3 / 5)  # the first query can meet no delimiter


def test_the_words_of_one_text_mark_no_delimiters_of_another():
    ids = torch.tensor([[5, 1, 6], [5, 7, 6]])
    reading = Reading({"input_ids": ids}, words=["the", ".", "cat"])
    with pytest.raises(CapabilityError, match=r"Delimiter\(ids="):
        looked(Delimiter(), random_call(n=3), reading)
    same = Reading({"input_ids": ids[:1].expand(2, -1)}, words=["the", ".", "cat"])
    assert looked(Delimiter(), random_call(n=3), same).isfinite().all()


def test_padding_is_not_counted():
    torch.manual_seed(3)
    call = random_call(b=1)
    real = torch.ones(1, N, dtype=torch.long)
    real[:, :7] = 0
    part = Reading({"input_ids": torch.zeros(1, N).long(), "attention_mask": real})
    weights = closed_weights(call, "test")
    wanted = weights.diagonal(-1, -2, -1)[..., 6:].mean((0, 2))
    assert torch.allclose(looked(known()["previous_token"](), call, part), wanted, atol=1e-6)


def test_massive_states_are_found_where_they_were_planted():
    class Plant(torch.nn.Module):
        def forward(self, x):
            y = x.clone()
            y[0, 3, 5] = 1e4
            return y

    blocks = torch.nn.ModuleList([torch.nn.Identity(), Plant()])
    x = torch.randn(1, 8, 16)
    with MassiveActivations.of(blocks) as watch:
        for block in blocks:
            x = block(x)
    assert watch.found == [("layer 1", 3, 5, 1e4)]
    blocks[1](x)
    assert len(watch.found) == 1  # no longer watched


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda: make_probes(["inducton"]), RuleError, "did you mean 'induction'"),
        (lambda: make_probes([3]), RuleError, "names, groups"),
        (lambda: Induction(definition="stripes"), RuleError, "stripe"),
        (lambda: looked(Induction(), random_call(regard.Rule()), repeated()), CapabilityError,
         "attends to the future"),
        (lambda: looked(Induction(), random_call(), Reading({})), CapabilityError, "period"),
        (lambda: looked(Induction(definition="mask"), random_call(), Reading({})),
         CapabilityError, "no token ids"),
        (lambda: looked(Retrieval(), random_call(), repeated()), CapabilityError, "needle"),
        (lambda: looked(Rings(), random_call()), CapabilityError, "grid"),
        (lambda: looked(Delimiter(), random_call(), repeated()), CapabilityError, "ids of delim"),
        (lambda: SinkRate(epsilon=2), regard.ValueRangeError, "0.3"),
    ],
)  # fmt: skip
def test_bad_questions_are_answered_clearly(ask, error, says):
    with pytest.raises(error, match=says):
        ask()
