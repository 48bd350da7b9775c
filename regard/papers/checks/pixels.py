"""Checks of rows that show everything as pixels."""

from __future__ import annotations

import time
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
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.training import fit
from regard.papers.seeding import restart, seeds
from regard.policies.blank_patches import BlankPatches, blank_patches
from regard.tasks.typeset import shares_of
from regard.tasks.written import PATCH, WrittenPixels, as_tokens

STEPS = 1000


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


def _pages(task: WrittenPixels, size: int, seed: int) -> tuple[Tensor, Tensor]:
    items = task.items(size, seed)
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
    pages, digits = _pages(task, 500, 2**40)
    with torch.no_grad(), attach(net, list(stages), check=False):
        return float((net(pixel_values=pages).logits.argmax(-1) == digits).double().mean())


def _cost(net: Any, pages: Tensor, *stages: Stage) -> tuple[int, float]:
    """FLOPs and CPU seconds of a forward (the least of five)."""
    taken = []
    with torch.no_grad(), attach(net, list(stages), check=False):
        with FlopCounterMode(display=False) as counter:
            net(pixel_values=pages)
        for _ in range(5):
            began = time.process_time()
            net(pixel_values=pages)
            taken.append(time.process_time() - began)
    return counter.get_total_flops(), min(taken)


def _reader(task: WrittenPixels, steps: int) -> nn.Module:
    """A model of the same size that reads the pages as characters."""
    restart()
    text, drawn = as_tokens(task), seeds()
    net = Backbone("mha:position=rotary", text, "ns", positions="none")

    def loss() -> Tensor:
        batch = text.batch(64, next(drawn))
        return text.loss(net(batch), batch)

    fit(net.parameters(), loss, steps, 3e-3)
    return net.eval()


def _weights(
    seer: Any, reader: nn.Module, task: WrittenPixels, layers: str
) -> tuple[Tensor, Tensor]:
    """Weights of each word at the answering place, read as text and seen: both [200, words]."""
    seed = 2**41
    text, items = as_tokens(task), task.items(200, seed)
    seen, read = RowWeights(row=0), RowWeights(row=-1)
    with torch.no_grad():
        with attach(seer, seen, check=False):
            seer(pixel_values=task.images(items)[:, None])
        with attach(reader, read, check=False):
            reader(text.batch(200, seed))
    shares = torch.stack([shares_of(boxes, task.grid, PATCH) for boxes in items.boxes])
    of_text = word_weights(read.weights(layers), text.of_words)
    return of_text, word_weights(seen.weights(layers), F.pad(shares, (1, 0)))


@check("pixelworld_peap", long=True)
def peap() -> Measured:
    """Without blank patches the rest is what it was; words are weighed alike in text and pixels."""
    task = WrittenPixels(pairs=4, names=6)
    seer, reader = _trained(task, STEPS), _reader(task, 2 * STEPS)
    pages = _pages(task, 64, 1)[0].double()
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
    numbers: dict[str, Any] = {
        "tokens, all patches": 1 + dropped.shape[1], "tokens, no blank ones": packed.shape[1],
        "kept tokens, packed against hidden keys": same,
        "accuracy, all patches": _accuracy(seer, task),
        "accuracy, blank ones dropped from the same model": _accuracy(seer, task, BlankPatches()),
        "accuracy, trained and tested without blank ones": _accuracy(own, task, BlankPatches()),
    }  # fmt: skip
    # What it saves is told of a page of 16 x 16 patches, as models of pictures see.
    large = WrittenPixels(pairs=16, names=26, rows=16, columns=32, gap=1)
    page, larger = _pages(large, 8, 1)[0], _seer(large).eval()
    numbers["share of patches that are blank, 16 x 16"] = float(
        blank_patches(page, PATCH).double().mean()
    )
    (flops, seconds), (few, quick) = _cost(larger, page), _cost(larger, page, BlankPatches())
    numbers |= {"FLOPs, times fewer": flops / few, "CPU seconds, times fewer": seconds / quick}
    itself: dict[str, float] = {}
    for layers in ("last", "mean"):
        text, seen = _weights(seer, reader, task, layers)
        itself = aligned(text, text).means()
        for what, pixels in (("pixels", seen), ("another page's", seen.roll(1, 0))):
            found = aligned(text, pixels).means()
            numbers |= {f"text and {what}, {layers} layer, {k}": x for k, x in found.items()}
    batch = as_tokens(task).batch(500, 2**40)
    with torch.no_grad():
        numbers["accuracy, read as characters"] = as_tokens(task).score(
            reader(batch).argmax(-1), batch
        )
    return Measured(
        "a two-layer vision transformer trained on rendered text: with blank patches dropped, "
        "kept tokens are those of a whole run in which blank patches are hidden as keys (1e-5), "
        "with the places they had; a page without blank patches goes through unchanged, to the "
        "bit; trained and tested without them it reads over 95%, and a page of 16 x 16 patches, "
        "nine in ten blank, takes less than half the FLOPs; attention of the answer over words "
        "aligns at 1 with itself",
        same < 1e-5 and of_page == kept_places and unmoved and flops > 2 * few
        and numbers["accuracy, trained and tested without blank ones"] > 0.95
        and abs(itself["rank"] - 1) < 1e-9 and itself["overlap"] == 1,
        numbers,
        left_out="that a model trained with blank patches keeps its accuracy without them: this "
        "small one, which rests on them, does not; how far text and pixels align is told, and not "
        "asserted; large models, tables, code, and multimodal sets; models that read a prompt "
        "beside the image (their text counts on every patch) are refused by the stage",
    )  # fmt: skip
