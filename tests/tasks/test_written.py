"""Pages say the same as pixels and as characters; weights on patches add up by word."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.analysis.pixel_words import RowWeights, aligned, word_weights
from regard.bench.backbone import Backbone
from regard.core.errors import RegardError
from regard.models.attach import attach
from regard.models.stage import Stage
from regard.tasks import task
from regard.tasks.typeset import CHARACTERS, HIGH, WIDE, patches_of, read, shares_of, typeset
from regard.tasks.written import PATCH, as_tokens

KNOBS = st.fixed_dictionaries({
    "pairs": st.integers(1, 5), "letters": st.integers(1, 3), "gap": st.integers(1, 3),
    "names": st.integers(5, 26), "columns": st.sampled_from([16, 20]), "rows": st.integers(3, 5),
})  # fmt: skip


@given(knobs=KNOBS, noise=st.sampled_from([0.0, 0.05]), seed=st.integers(0, 99))
def test_pixels_and_characters_hold_the_same_items(knobs, noise, seed):
    pixels = task("written_pixels", noise=noise, **knobs)
    characters = as_tokens(pixels)
    a, b = pixels.batch(6, seed), characters.batch(6, seed)
    assert torch.equal(a.y[:, -1], b.y[:, -1])
    for posed, batch in ((pixels, a), (characters, b)):
        assert posed.score(posed.oracle(batch), batch) == 1.0
    assert a.x.shape[1] == pixels.longest
    assert b.x.shape[1] == characters.longest


@given(knobs=KNOBS, seed=st.integers(0, 99))
def test_ink_stands_in_the_boxes_and_nowhere_else(knobs, seed):
    job = task("written_pixels", **knobs)
    items = job.items(4, seed)
    for image, boxes in zip(job.images(items), items.boxes.tolist(), strict=True):
        ink = float(image.sum())
        inside = sum(float(image[top:low, left:right].sum()) for left, top, right, low in boxes)
        assert inside == pytest.approx(ink, rel=1e-5)
        for a, b in itertools.combinations(boxes, 2):
            assert a[1] != b[1] or a[2] <= b[0] or b[2] <= a[0]


def test_a_page_is_read_back_and_wraps():
    words = ["seen", "7", "times", "and", "more", "than", "that"]
    page = typeset(words, columns=12, rows=4, noise=0.1)
    cells = read(page.image[None])[0]
    for word, (left, top, right, _) in zip(words, page.boxes.tolist(), strict=True):
        row = cells[top // HIGH, left // WIDE : right // WIDE]
        assert "".join(CHARACTERS[c] for c in row) == word
    again = typeset(words, columns=12, rows=4, noise=0.1, seed=1)
    assert not torch.equal(page.image, again.image)


@given(seed=st.integers(0, 99), patch=st.sampled_from([8, 16]))
def test_shares_are_those_of_counted_pixels(seed, patch):
    random = torch.Generator().manual_seed(seed)
    starts = torch.randperm(6, generator=random)[:3].sort().values * 11
    boxes = torch.tensor([[s, 0, s + 10, 16] for s in starts.tolist()])
    owner = torch.zeros(3, 32, 80)
    for word, (left, top, right, low) in enumerate(boxes.tolist()):
        owner[word, top:low, left:right] = 1
    counted = patches_of(owner, patch).sum(2)
    wanted = counted / counted.sum(0).clamp_min(1)
    assert torch.allclose(shares_of(boxes, (32 // patch, 80 // patch), patch), wanted, atol=1e-6)


class Whole(Stage):
    """Keeps every matrix."""

    want = ("weights",)

    def __init__(self):
        super().__init__()
        self.found = []

    def see(self, call, result):
        self.found.append(result.weights)


@pytest.mark.parametrize("pattern", ["ns", "cs"])
def test_the_row_of_the_answer_is_that_of_the_matrix(pattern):
    job = task("written_tokens")
    model, row, whole = Backbone("gqa:kv_heads=2", job, pattern, dim=16), RowWeights(), Whole()
    batch = job.batch(3)
    with attach(model, [row, whole], check=False):
        model(batch)
    last = [weights[:, :, -1].mean(1) for weights in whole.found]
    assert torch.allclose(row.weights(), last[-1], atol=1e-6)
    assert torch.allclose(row.weights("mean"), torch.stack(last).mean(0), atol=1e-6)
    by_word = word_weights(row.weights(), job.of_words)
    assert by_word.shape == (3, 5)
    assert torch.allclose(by_word.sum(1), 1 - row.weights()[:, -1], atol=1e-6)


def test_alignment_of_equal_and_of_reversed_weights():
    a = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    same, other = aligned(a, a, k=2), aligned(a, a.flip(1), k=2)
    assert same.means() == pytest.approx({"cosine": 1, "rank": 1, "overlap": 1, "drawn": 1})
    assert (float(other.rank), float(other.overlap)) == (pytest.approx(-1), 0)


@pytest.mark.parametrize(
    ("attempt", "argument"),
    [
        (lambda: typeset(["Ä"]), "words"),
        (lambda: typeset(["toolong"], columns=4), "words"),
        (lambda: typeset(["a"] * 9, columns=4, rows=2), "words"),
        (lambda: task("written_pixels", pairs=40), "pairs"),
        (lambda: task("written_pixels", rows=1, columns=4), "rows, columns"),
        (lambda: task("written_pixels", columns=15), "columns"),
        (lambda: word_weights(torch.ones(1, 3), torch.ones(2, 4)), "words"),
        (lambda: aligned(torch.ones(1, 3), torch.ones(1, 4)), "pixels"),
        (lambda: aligned(torch.ones(1, 3), torch.ones(1, 3), k=4), "k"),
        (lambda: RowWeights().weights(), "layers"),
    ],
)
def test_wrong_input_is_named(attempt, argument):
    with pytest.raises(RegardError) as raised:
        attempt()
    assert raised.value.argument == argument


def test_patches_of_the_task_are_those_of_its_images():
    job = task("written_pixels")
    cut = patches_of(job.images(job.items(3, 5)), PATCH)
    assert torch.equal(job.batch(3, 5).x[:, :-1, :-1], cut)
