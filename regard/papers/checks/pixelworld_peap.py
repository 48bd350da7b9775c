"""Without blank patches the rest is what it was; words are weighed alike in text and pixels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regard.analysis.pixel_words import RowWeights, aligned, word_weights
from regard.bench.backbone import Backbone
from regard.core.call import Call
from regard.core.errors import need
from regard.core.support import Padding
from regard.models.attach import attach
from regard.models.stage import Stage
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.seeding import restart, seed, seeds
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit
from regard.policies.blank_patches import BlankPatches, blank_patches
from regard.tasks.typeset import shares_of
from regard.tasks.written import PATCH, WrittenPixels, as_tokens

STEPS = 800


class _Hidden(Stage):
    """Hides keys, and leaves every token in."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.kept = kept

    def before(self, call: Call) -> Call:
        support = call.rule.support & Padding(self.kept)
        return call.replace(rule=call.rule.replace(support=support))


def _seer(task: WrittenPixels) -> Any:
    """A vision transformer of two layers for pages of a task."""
    transformers = need("transformers", "hf", "has vision transformers")
    rows, columns = task.grid
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            image_size=(rows * PATCH, columns * PATCH), patch_size=PATCH, num_channels=1,
            num_labels=10,
        )
    )  # fmt: skip


def _pages(task: WrittenPixels, size: int, drawn: int) -> tuple[Tensor, Tensor]:
    items = task.items(size, drawn)
    return task.images(items)[:, None], items.answer


def _trained(task: WrittenPixels, steps: int, *stages: Stage) -> Any:
    restart()
    net, drawn = _seer(task), seeds()

    def loss() -> Tensor:
        pages, digits = _pages(task, 64, next(drawn))
        return F.cross_entropy(net(pixel_values=pages).logits, digits)

    with attach(net, list(stages), check=False):
        fit(net.parameters(), loss, steps, 2e-3)
    return net.eval()


def _accuracy(net: Any, task: WrittenPixels, *stages: Stage) -> float:
    pages, digits = _pages(task, 500, seed())
    with torch.no_grad(), attach(net, list(stages), check=False):
        return float((net(pixel_values=pages).logits.argmax(-1) == digits).double().mean())


def _cost(net: Any, pages: Tensor, *stages: Stage) -> int:
    """FLOPs of a forward."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), attach(net, list(stages), check=False), counter:
        net(pixel_values=pages)
    return counter.get_total_flops()


def _weights(
    seer: Any, reader: nn.Module, task: WrittenPixels, layers: str
) -> tuple[Tensor, Tensor]:
    """Weights of each word at the answering place, read as text and seen: both [50, words]."""
    drawn = seed()
    text, items = as_tokens(task), task.items(50, drawn)
    seen, read = RowWeights(row=0), RowWeights(row=-1)
    with torch.no_grad():
        with attach(seer, seen, check=False):
            seer(pixel_values=task.images(items)[:, None])
        with attach(reader, read, check=False):
            reader(text.batch(50, drawn))
    shares = torch.stack([shares_of(boxes, task.grid, PATCH) for boxes in items.boxes])
    of_text = word_weights(read.weights(layers), text.of_words)
    return of_text, word_weights(seen.weights(layers), F.pad(shares, (1, 0)))


@check(
    "pixelworld_peap",
    beyond=(
        "how far text and pixels align, which is told by `regard.analysis.pixel_words` and "
        "not asserted; large models"
    ),
)
def peap() -> Claims:
    """Without blank patches the rest is what it was; words are weighed alike in text and pixels."""
    task = WrittenPixels(pairs=3, names=4, rows=2)
    seer = _trained(task, STEPS)
    # What is aligned with itself need not be trained.
    reader = Backbone("mha:position=rotary", as_tokens(task), "ns", positions="none").eval()
    pages = _pages(task, 64, seed())[0].double()
    blank = BlankPatches()
    seer.double()
    dropped = blank_patches(pages, PATCH)
    with torch.no_grad():
        with attach(seer, blank, check=False):
            packed = seer.vit(pixel_values=pages).last_hidden_state
        with attach(seer, _Hidden(F.pad(~dropped, (1, 0), value=True)), check=False):
            dense = seer.vit(pixel_values=pages).last_hidden_state
        noisy = pages + 0.1 * torch.randn(pages.shape)
        whole = seer(pixel_values=noisy).logits
        with attach(seer, BlankPatches(), check=False):
            unmoved = bool(torch.equal(seer(pixel_values=noisy).logits, whole))
    assert blank.places is not None
    index = (blank.places + 1).clamp_min(0)[..., None].expand_as(packed)
    same = gap(packed, dense.gather(1, index))
    of_page = [(~row).nonzero()[:, 0].tolist() for row in dropped]
    kept_places = [row[row >= 0].tolist() for row in blank.places]

    seer.float()
    own = _trained(task, STEPS, BlankPatches())
    whole_accuracy = _accuracy(seer, task)
    untrained, ours = (_accuracy(net, task, BlankPatches()) for net in (seer, own))
    # What it saves is told of a page of 16 x 16 patches, as models of pictures see.
    large = WrittenPixels(pairs=16, names=26, rows=16, columns=32, gap=1)
    page, larger = _pages(large, 8, seed())[0], _seer(large).eval()
    flops, few = _cost(larger, page), _cost(larger, page, BlankPatches())
    text, _ = _weights(seer, reader, task, "last")
    itself = aligned(text, text).means()
    yield claim("With removed patches", "difference of kept tokens", same).within(
        1e-5, "a dense run with removed patches masked", because=CATALOGUE
    )
    yield claim(
        "With removed patches", "accuracy, trained and tested without blank patches", ours
    ).above(0.95, "a task that is learned", because="or nothing would be kept")
    yield claim(
        "With removed patches", "accuracy, trained and tested with all patches", whole_accuracy
    ).above(0.95, "a task that is learned", because="or there would be nothing to lose")
    yield claim(
        "With removed patches", "accuracy of a model trained with them, tested without", untrained
    ).above(
        whole_accuracy, "tested with them", plus=-0.05, because="training-free: within five points"
    )
    yield claim(
        "position ids preserved", "places kept are those of the page", of_page == kept_places
    ).equals(True, "all")
    yield claim("no blank patches means", "equal bit for bit", unmoved).equals(True, "the model")
    yield claim("Alignment of identical maps", "rank correlation", itself["rank"]).within(
        1e-9, "1", value=1, because=FLOAT64
    )
    yield claim("Alignment of identical maps", "overlap", itself["overlap"]).equals(1.0, "1")
    yield claim("With removed patches", "FLOPs of a page of 16 x 16 patches", few).below(
        flops, "with all patches", times=0.5, because="nine in ten are blank"
    )
