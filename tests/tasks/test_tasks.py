"""Every task has an oracle that is perfect, chance that is chance, and batches that repeat."""

import collections
import importlib.util
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard.tasks as tasks
from regard.core.errors import RegardError, RuleError, ShapeError
from regard.tasks.base import Numbers, Tokens
from regard.tasks.copying import GO, Copy, Lookup, SelectiveCopy, pattern_distance
from regard.tasks.crossing import Denoise, StreamingCross, Translation
from regard.tasks.hops import Hops, seen_by_window
from regard.tasks.missing import Missing
from regard.tasks.parity import ParityInterleaved, ParityMnemonics, ParityScratchpad
from regard.tasks.programs import Dyck, ListOps, Navigate, Tracking
from regard.tasks.recall import Induction, Mqar, MultiKey, Needle
from regard.tasks.scenes import HELD_OUT, SHAPE, Scenes
from regard.tasks.text import Characters, _ambiguous, _codes
from regard.tasks.verbatim import Verbatim
from tests.scripts import script

LACKING = () if importlib.util.find_spec("sklearn") else ("pixel_digits", "patch_digits")
NAMES = [name for name in tasks.names() if name not in LACKING]
every_task = pytest.mark.parametrize("name", NAMES)


@every_task
def test_a_solution_by_hand_is_perfect(name, seed):
    for task in tasks.task(name).tests().values():
        batch = task.batch(40, seed)
        assert task.score(task.oracle(batch), batch) > 1 - 1e-5


@every_task
def test_the_oracle_sees_no_answers(name, seed):
    task = tasks.task(name)
    batch = task.batch(8, seed)
    hidden = replace(batch, y=torch.full_like(batch.y, -7))
    answers = task.oracle(batch)
    told = torch.where(_wide(batch.asked, answers), answers, 0)
    again = torch.where(_wide(batch.asked, answers), task.oracle(hidden), 0)
    assert torch.equal(told, again)


@every_task
def test_guesses_score_chance(name, seed):
    task, random = tasks.task(name), torch.Generator().manual_seed(seed)
    scores = torch.tensor(
        [task.score(task.guess(b, random), b) for b in (task.batch(50, random) for _ in range(60))]
    )
    error = float(scores.std()) / len(scores) ** 0.5
    # Four standard errors, and what answers of one text have in common with one another.
    assert abs(float(scores.mean()) - task.chance) < 4 * error + 0.004


@every_task
def test_batches_repeat_by_their_seed_and_no_other(name, seed):
    task = tasks.task(name)
    one, same, other = (task.batch(6, s) for s in (seed, seed, seed + 1))
    assert torch.equal(one.x, same.x)
    assert torch.equal(one.y[one.asked], same.y[same.asked])
    moved = one.x.shape != other.x.shape or not torch.equal(one.x, other.x)
    if one.context is not None:
        assert torch.equal(one.context, same.context)
        moved = moved or not torch.equal(one.context, other.context)
    assert moved


@every_task
def test_a_batch_holds_what_the_task_says(name, seed):
    task = tasks.task(name)
    batch = task.batch(5, seed)
    for held, kind in ((batch.x, task.inputs), (batch.context, task.contexts)):
        if kind is None:
            assert held is None
        elif isinstance(kind, Tokens):
            assert held.dtype == torch.long
            assert int(held.min()) >= 0
            assert int(held.max()) < kind.count
        else:
            assert held.is_floating_point()
            assert held.shape[2] == kind.width
        assert held is None or held.shape[1] <= task.longest
    answers = batch.y[batch.asked]
    assert batch.asked.shape == batch.x.shape[:2]
    assert bool(batch.asked.any(1).all())
    if isinstance(task.outputs, Tokens):
        assert int(answers.min()) >= 0
        assert int(answers.max()) < task.outputs.count
    else:
        assert answers.shape[1] == task.outputs.width


@every_task
def test_losses_know_right_from_wrong(name, seed):
    task = tasks.task(name)
    batch = task.batch(20, seed)
    if isinstance(task.outputs, Numbers):
        right, wrong = batch.y, torch.zeros_like(batch.y)
    else:
        said = torch.nn.functional.one_hot(batch.y.clamp_min(0), task.outputs.count + 0).float()
        right, wrong = 20 * said, -20 * said
    assert float(task.loss(right, batch)) < 1e-3 < float(task.loss(wrong, batch))
    assert task.score(task.answers(right), batch) > 1 - 1e-5


@every_task
def test_what_a_task_says_makes_it_again(name):
    from regard.bench.specs import task_of

    task = tasks.task(name)
    assert task_of(task.spec()) == task
    assert set(task.patterns) <= set(tasks.PATTERNS)
    assert next(iter(task.tests())) == name


def _wide(asked, like):
    return asked[..., None].expand_as(like) if like.dim() == 3 else asked


# Laws of single tasks ------------------


@settings(max_examples=25)
@given(st.integers(1, 8), st.integers(0, 3), st.integers(0, 2**20))
def test_mqar_asks_each_key_once_after_it_was_told(pairs, extra, seed):
    task = Mqar(length=4 * pairs + 2 * extra, pairs=pairs)
    batch = task.batch(10, seed)
    for x, y, asked in zip(batch.x, batch.y, batch.asked, strict=True):
        told = dict(x[: 2 * pairs].view(-1, 2).tolist())
        assert sorted(x[asked].tolist()) == sorted(told)
        assert all(
            told[key] == value
            for key, value in zip(x[asked].tolist(), y[asked].tolist(), strict=True)
        )


def test_the_gaps_of_mqar_follow_the_power_law(seed):
    task = Mqar(length=128, pairs=2)
    batch = task.batch(4000, seed)
    places = (batch.asked.nonzero()[:, 1] - 4) // 2
    near = float((places < 4).double().mean())
    assert near > 0.4  # evenly it would be 4 of 62


def test_a_needle_lies_at_its_depth(seed):
    for depth, place in ((0.0, 0), (1.0, 61)):
        x = Needle(length=64, depth=depth).batch(4, seed).x
        assert (x[:, place] == 1).all()
        assert ((x == 1).sum(1) == 2).all()


def test_induction_asks_for_what_followed():
    batch = Induction(vocab=10, period=3).batch(2, 0)
    assert batch.asked.tolist() == [[False] * 3 + [True, True, False]] * 2
    assert torch.equal(batch.y[:, 3:5], batch.x[:, 1:3])


def test_multi_key_asks_keys_that_stand_once_before(seed):
    batch = MultiKey(pairs=4, asks=2, length=40).batch(30, seed)
    for row in batch.x:
        for key in row[-2:]:
            assert int((row[:-2] == key).sum()) == 1


def test_copying_is_trained_up_to_a_length_and_tested_beyond(seed):
    task = Copy(length=6)
    lengths = {int((task.batch(1, s).x[0] == GO).nonzero()[0]) for s in range(80)}
    assert lengths == set(range(1, 7))
    beyond = task.tests()["12 words"].batch(2, seed)
    assert beyond.x.shape == (2, 24)


def test_lookup_and_selective_copy_ask_by_place_and_by_kind(seed):
    batch = Lookup(length=5, asks=3).batch(4, seed)
    assert torch.equal(batch.y[:, 5:], batch.x[:, :5].gather(1, batch.x[:, 5:] - 16))
    batch = SelectiveCopy(length=12, words=3).batch(4, seed)
    told = [[t for t in row[:12].tolist() if t > 1] for row in batch.x]
    assert batch.y[batch.asked].view(4, 3).tolist() == told


@pytest.mark.parametrize("kind", [ParityScratchpad, ParityInterleaved, ParityMnemonics])
def test_every_step_of_a_trace_is_the_parity_so_far(kind, seed):
    task = kind(length=9, least=9)
    batch = task.batch(20, seed)
    bits = task.bits(batch.x)
    assert bits.shape == (20, 9)
    assert torch.equal(batch.y[batch.asked].view(20, 9), bits.cumsum(1) % 2)


def test_mnemonics_name_bits_only_when_aligned(seed):
    for aligned in (True, False):
        x = ParityMnemonics(length=5, least=5, aligned=aligned).batch(10, seed).x
        before, after = x[:, :10:2], x[:, 11::2]
        assert bool((before == after).all()) is aligned


def test_whole_rows_count_for_parity(seed):
    task = ParityInterleaved(length=4, least=4)
    batch = task.batch(2, seed)
    answers = task.oracle(batch)
    answers[0, -1] = 1 - answers[0, -1]
    assert task.score(answers, batch) == 0.5


def test_any_missing_item_is_right(seed):
    task = Missing(items=12, out=3)
    batch = task.batch(50, seed)
    assert ((task.listed(batch) == 0).sum(1) == 3).all()
    answers = batch.y.clone()
    answers[:, -1] = batch.x[:, 0]
    assert task.repetition(answers, batch) == 1.0
    assert task.draws_until_new(0.75) == 4.0


def test_more_hops_need_more_steps(seed):
    task = Hops(hops=3, chains=3)
    batch = task.batch(300, seed)
    scores = [task.score(task.followed(batch, k), batch) for k in (1, 2, 3)]
    assert scores[2] == 1.0
    assert max(scores[:2]) < 0.1


def test_a_window_recalls_what_lies_in_it():
    x = torch.tensor([[5, 7, 6, 8, 5]])
    assert seen_by_window(x, 5)[0, -1] == 7
    assert seen_by_window(x, 4)[0, -1] == -1


def test_list_ops_are_worked_out_from_within():
    assert ListOps.value([13, 9, 8, 10, 3, 4, 14, 14]) == 0  # 9 + 8 + min(3, 4) = 20
    assert ListOps.value([12, 9, 1, 5, 14]) == 5


def test_brackets_close_what_was_opened_last():
    batch = Dyck(kinds=2, length=4).batch(1, 0)
    x = torch.tensor([[0, 1, 2, 2]])
    given = replace(batch, x=x)
    assert Dyck(kinds=2, length=4).oracle(given).tolist() == [[0, 0, 1, 0]]


def test_swaps_are_followed_and_walks_come_back():
    x = torch.tensor([[2, 0, 1, 3, 4, 3]])  # things of 0, 1, 2; people 0 and 1 swap; what has 0?
    batch = replace(Tracking(people=3, swaps=1).batch(1, 0), x=x)
    assert Tracking(people=3, swaps=1).oracle(batch)[0, -1] == 0
    there = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 2, 3, 4]])
    batch = replace(Navigate(steps=4).batch(2, 0), x=there)
    assert Navigate(steps=4).oracle(batch)[:, -1].tolist() == [1, 0]


def test_pairs_held_out_are_never_asked_in_training(seed):
    for held_out in (False, True):
        task = Scenes(held_out=held_out, side=6)
        for text in task.batch(200, seed).x.tolist():
            kind, shape, color = text[-4:-1]
            named = color - 7 - task.shapes if kind == SHAPE else shape - 7
            assert ((kind + named) % HELD_OUT == 0) is held_out


def test_holes_can_be_filled_from_the_mirror(seed):
    batch = Denoise(length=12).batch(50, seed)
    assert not (batch.asked & batch.asked.flip(1)).any()


def test_a_stream_tells_another_value_later(seed):
    task = StreamingCross(keys=6, values=4)
    batch = task.batch(400, seed)
    last = (batch.x[:, :, None] == (batch.context // 4)[:, None]).to(torch.uint8).flip(2).argmax(2)
    late = batch.context.gather(1, batch.x.shape[1] - 1 - last) % 4
    assert task.score(late, batch) < 0.5


def test_the_dictionary_of_a_translation_is_the_same_everywhere():
    task = Translation(vocab=5, length=40)
    batch = task.batch(3, 0)
    pairs = torch.stack((batch.context.flip(1), batch.y), -1).flatten(0, 1).tolist()
    words = {tuple(pair) for pair in pairs}
    assert len(words) == 5


def test_second_lists_are_what_the_condition_says(seed):
    for condition in ("repeat", "permuted", "novel"):
        task = Verbatim(nouns=5, condition=condition)
        batch = task.batch(60, seed)
        first, second = batch.x[:, 1:6], batch.y[batch.asked].view(60, 5)
        same = (first.sort(1).values == second.sort(1).values).all(1)
        assert same.all() if condition != "novel" else not same.any()
        if condition == "repeat":
            assert torch.equal(first, second)


def test_patterns_are_near_their_own_heads_in_any_order():
    maps = torch.rand(2, 4, 6, 6).softmax(-1)
    assert pattern_distance([maps], [maps[:, torch.tensor([2, 0, 3, 1])]]) < 1e-12
    assert 0 < pattern_distance([maps], [torch.rand(2, 4, 6, 6).softmax(-1)]) <= 1


# What goes wrong, said so that it can be put right ---------------------------------


def test_an_unknown_task_suggests_near_ones():
    with pytest.raises(RuleError, match="near: mqar"):
        tasks.task("mqra")


def test_an_unknown_knob_suggests_a_near_one():
    with pytest.raises(RuleError, match="did you mean 'length'"):
        tasks.task("mqar", lenght=3)


@pytest.mark.parametrize(
    ("name", "knobs", "word"),
    [
        ("mqar", {"pairs": 40}, "pairs"),
        ("mqar", {"length": 63}, "length"),
        ("needle", {"depth": 2.0}, "depth"),
        ("copy", {"least": 30}, "least"),
        ("recall", {"length": 12}, "length"),
        ("scenes", {"depth": 2}, "depth"),
        ("conflict", {"swap": "all"}, "swap"),
        ("verbatim", {"condition": "other"}, "condition"),
        ("characters", {"part": "test"}, "part"),
        ("icl_regression", {"noise": -1.0}, "noise"),
        ("parity_mnemonics", {"words": 10}, "words"),
    ],
)
def test_a_knob_out_of_range_is_named(name, knobs, word):
    with pytest.raises(RegardError, match=f"`{word}`"):
        tasks.task(name, **knobs)


def test_answers_of_another_shape_are_refused():
    batch = Copy().batch(2)
    with pytest.raises(ShapeError, match="answers"):
        Copy().score(batch.y[:, :-1], batch)


def test_the_page_of_tasks_is_in_step():
    page = script("scripts/tasks_page.py")
    assert page.page() == page.PAGE.read_text(encoding="utf-8"), "run scripts/tasks_page.py"


def test_characters_that_the_text_continues_in_two_ways_do_not_count():
    """Found by a generated seed: a row of the standard library that stands there twice."""
    length = 32
    text = bytes(_codes("held out").tolist())
    after = collections.defaultdict(set)
    for i in range(len(text) - length):
        after[text[i : i + length]].add(text[i + length])
    expected = [len(after[text[i : i + length]]) > 1 for i in range(len(text) - length)]
    assert any(expected)
    assert _ambiguous("held out", length).tolist() == expected
    batch = Characters(length=length, part="held out").batch(4096, 1)
    assert 0 < int((~batch.asked).sum()) < 100
