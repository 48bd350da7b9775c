"""Weight on parts of a prompt equals the sums of the whole matrix."""

import itertools

import pytest
import torch

import regard
from regard.core.errors import CapabilityError, ValueRangeError
from regard.probes import Reading, Scores
from regard.probes.prompt_parts import (
    Focus,
    Lookback,
    SpanShare,
    focus_score,
    important_heads,
    parts,
    spans_mass,
)  # fmt: skip
from regard.probes.rhythm import Rhythm, amplified, marked
from tests.naive import CAUSAL, looked, pointing, random_call, site, weights

N = 24
SPANS = {"instruction": slice(1, 5), "context": slice(5, 12), "data": slice(12, 18),
         "answer": slice(18, 24)}  # fmt: skip
READING = Reading({"input_ids": torch.zeros(1, N).long()}, spans=SPANS)


@pytest.mark.parametrize("rows", [slice(0, N), slice(20, 21), slice(-4, None)])
def test_mass_on_spans_is_that_of_the_matrix(rows):
    sink = regard.Softmax(sink=torch.randn(4, dtype=torch.float64))
    for rule in (CAUSAL, CAUSAL.replace(weigh=sink), regard.Rule(regard.Window(6))):
        call = random_call(rule)
        found = spans_mass(call, SPANS, rows)
        for name, span in SPANS.items():
            wanted = weights(call)[:, :, rows, span].sum(-1)
            assert torch.allclose(found[name], wanted, atol=1e-6), name


def test_focus_is_the_last_row_on_the_instruction():
    call = random_call()
    last = weights(call)[:, :, -1]
    on = {name: last[..., span].sum(-1) for name, span in SPANS.items()}
    share = on["instruction"] / (on["instruction"] + on["data"] + 1e-8)
    assert torch.allclose(looked(Focus(), call, READING), share.mean(0), atol=1e-6)
    plain = looked(Focus(definition="mass"), call, READING)
    assert torch.allclose(plain, on["instruction"].mean(0), atol=1e-6)


def test_lookback_ratio_by_means_and_by_sums():
    call = random_call()
    every, means, sums = weights(call), [], []
    for row in range(18, N):
        c, n = every[:, :, row, 5:12], every[:, :, row, 18 : row + 1]
        means.append(c.mean(-1) / (c.mean(-1) + n.mean(-1)))
        sums.append(c.sum(-1) / (c.sum(-1) + n.sum(-1)))
    for definition, wanted in (("means", means), ("sums", sums)):
        found = looked(Lookback(definition=definition), call, READING)
        assert torch.allclose(found, torch.stack(wanted).mean((0, 1)), atol=1e-6)


def test_shares_of_a_partition_sum_to_one_and_uniform_is_no_preference():
    spans = {"start": slice(0, 1), **{k: v for k, v in SPANS.items() if k != "answer"}}
    reading = Reading({}, spans={**spans, "rest": slice(18, N)})
    probe = SpanShare("context")
    looked(probe, random_call(), reading)
    shares = probe.told().details["shares"]
    total = sum(next(iter(x.values())) for x in shares.values())
    assert torch.allclose(total, torch.ones(4, dtype=torch.float64), atol=1e-6)
    even = random_call()
    even = even.replace(q=torch.zeros_like(even.q))
    relative = looked(SpanShare("context", definition="relative"), even, READING)
    assert torch.allclose(relative, torch.ones_like(relative), atol=1e-6)


def test_a_hidden_span_has_no_share():
    hidden = regard.Rule(regard.Causal() & regard.Window(7))
    found = looked(SpanShare("instruction"), random_call(hidden), READING)
    assert float(found.max()) == 0.0


def test_heads_that_tell_an_attack_are_chosen():
    torch.manual_seed(0)
    place = site(6)

    def prompts(attacked: bool) -> list[Scores]:
        made = []
        for _ in range(30):
            mass = 0.5 + 0.05 * torch.randn(6)
            mass[[1, 4]] = (0.1 if attacked else 0.6) + 0.01 * torch.randn(2)
            made.append(Scores("focus", "", {place: mass}))
        return made

    normal, attacked = prompts(False), prompts(True)
    chosen = important_heads(normal, attacked)
    assert (chosen.values[place] > 0).nonzero().flatten().tolist() == [1, 4]
    more = [important_heads(normal, attacked, k=k).values[place] > 0 for k in (1.0, 4.0, 8.0)]
    assert all(bool((b <= a).all()) for a, b in itertools.pairwise(more))
    scores = [[focus_score(x, chosen) for x in many] for many in (normal, attacked)]
    assert min(scores[0]) > max(scores[1])
    with pytest.raises(ValueRangeError, match="at least 2"):
        important_heads(normal[:1], attacked)
    with pytest.raises(ValueRangeError, match="no head"):
        focus_score(normal[0], important_heads(attacked, normal))


def test_missing_and_wrong_spans_are_errors():
    with pytest.raises(CapabilityError, match="instruction"):
        looked(Focus(), random_call(), Reading({}))
    with pytest.raises(ValueRangeError, match="keys 20 to 39"):
        looked(Focus({"instruction": slice(20, 40)}, definition="mass"), random_call())
    with pytest.raises(CapabilityError, match="data"):
        looked(Focus({"instruction": slice(0, 2)}), random_call())
    with pytest.raises(CapabilityError, match="nowhere"):
        looked(SpanShare("nowhere"), random_call(), READING)


def test_a_prompt_of_parts_knows_its_spans():
    class Letters:
        bos_token_id = 0

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [ord(c) for c in text]}

        def decode(self, ids):
            return "".join(map(chr, ids))

    reading = parts(Letters(), context="abc", answer="de")
    assert reading.spans == {"context": slice(1, 4), "answer": slice(4, 6)}
    assert "".join(reading.words[1:]) == "abcde"


def test_rhythm_of_known_heads():
    uniform = random_call(heads=2, groups=2)
    uniform = uniform.replace(q=torch.zeros_like(uniform.q))
    probe = Rhythm(width=5, near=2, far=6, share=0.5)
    looked(probe, uniform)
    wanted = [sum(min(t - s, 5) for s in range(t + 1)) / (t + 1) for t in range(N)]
    assert torch.allclose(probe.lookback(), torch.tensor(wanted, dtype=torch.float64))
    own = Rhythm()
    looked(own, pointing(list(range(N))))
    assert float(own.lookback().abs().max()) == 0.0
    anchor = Rhythm(near=4, far=50)
    looked(anchor, pointing([min(i, 3) for i in range(N)]))
    assert float(anchor.influence()[3]) == pytest.approx(1.0)
    assert float(anchor.influence()[8]) == 0.0


def test_rhythm_equals_the_matrix():
    call = random_call()
    probe = Rhythm(width=4, near=3, far=9)
    looked(probe, call)
    every = weights(call).mean(0)
    i, j = torch.arange(N)[:, None], torch.arange(N)
    back = (every * (i - j).clamp(0, 4)).sum(-1)
    band = ((i - j >= 3) & (i - j <= 9)).double()
    later = (every * band).sum(1) / band.sum(0).clamp(min=1)
    assert torch.allclose(probe.back[call.site], back, atol=1e-6)
    assert torch.allclose(probe.later[call.site], later, atol=1e-6)


def test_rhythm_counts_no_padding():
    call, real = random_call(), torch.ones(2, N, dtype=torch.bool)
    real[1, -10:] = False
    found = looked(Rhythm(), call, Reading({"attention_mask": real}))
    i, j = torch.arange(N)[:, None], torch.arange(N)
    apart = (weights(call) * (i - j)).sum(-1)  # [b, h, n]
    wanted = (apart * real[:, None]).sum((0, 2)) / real.sum()
    assert torch.allclose(found, wanted, atol=1e-6)


def test_advantages_are_amplified_where_marked():
    advantage = torch.tensor([1.0, 2.0, -1.0, 0.5])
    tokens = marked(torch.tensor([0.1, 0.9, 0.8, 0.0]), share=0.5)
    assert tokens.tolist() == [False, True, True, False]
    assert amplified(advantage, tokens, 1.0).tolist() == advantage.tolist()
    assert amplified(advantage, tokens, 1.5).tolist() == [1.0, 3.0, -1.0, 0.5]
    moved = amplified(advantage, tokens, 1.5, back_to=torch.tensor([0, 0, 2, 3]))
    assert moved.tolist() == [1.5, 2.5, -1.0, 0.5]
