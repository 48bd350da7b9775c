"""Heads that cannot see are never chosen, one that was made to see is first."""

from __future__ import annotations

import torch

from regard.controls.base import Edits
from regard.controls.score_edits import Forbid
from regard.controls.steering import Steering
from regard.controls.token_sets import TokenPositions
from regard.controls.vision_heads import VisionHeadReinforcement, vision_heads
from regard.models.attach import attach
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama

IMAGE, TEXT = 5, 9


def _divergences(found: object) -> dict[tuple[int, int], float]:
    return {
        (layer, h): float(x)
        # The result is typed object.
        for layer, row in found.divergence.items()  # type: ignore[attr-defined]
        for h, x in enumerate(row)
    }


@check(
    "vhd_vhr",
    beyond="LLaVA-1.5, CHAIR and POPE",
)
@torch.no_grad()
def vhr() -> Claims:
    """Heads that cannot see are never chosen, one that was made to see is first."""
    model = llama(2)
    image, text = torch.randint(3, 60, (1, IMAGE)), torch.randint(3, 60, (1, TEXT))
    inputs = {"input_ids": torch.cat((image, text), 1)}
    # The text stands where it stands behind the image, which is hidden from all.
    hidden = torch.ones(1, IMAGE + TEXT, dtype=torch.long)
    hidden[:, :IMAGE] = 0
    without = {**inputs, "attention_mask": hidden}
    blind = Edits(Forbid(TokenPositions(range(IMAGE))), where={"heads": [(0, 1)]})
    with attach(model, Steering(blind, must_move=False), check=False):
        masked = vision_heads(model, inputs, without)
    plain = model(**inputs).logits
    loud = VisionHeadReinforcement(strength=1.0, where={"heads": [(1, 2)]})
    with attach(model, Steering(loud), check=False):
        same = model(**inputs).logits
    twice = VisionHeadReinforcement(strength=2.0, where={"heads": [(1, 2)]})
    with attach(model, Steering(twice), check=False):
        scaled = model(**inputs).logits
    # A Module types its parts as Tensor or Module.
    weight = model.model.layers[1].self_attn.o_proj.weight  # type: ignore[union-attr,index]
    size = weight.shape[1] // 4
    kept = weight[:, 2 * size : 3 * size].clone()
    weight[:, 2 * size : 3 * size] = 2 * kept
    columns = model(**inputs).logits
    weight[:, 2 * size : 3 * size] = kept
    # Only one head of the model may look at the image: all others are kept from it. It is one of
    # the last layer, as what a head reads is read of it by those above.
    head = (1, int(torch.randint(0, 4, ())))
    rest = [(layer, h) for layer in range(2) for h in range(4) if (layer, h) != head]
    planted = Edits(Forbid(TokenPositions(range(IMAGE))), where={"heads": rest})
    with attach(model, Steering(planted, must_move=False), check=False):
        reads = _divergences(vision_heads(model, inputs, without))
    yield claim(
        "A head whose image keys are masked", "its divergence", _divergences(masked)[0, 1]
    ).within(1e-6, "0", because=FLOAT32)
    yield claim(
        "A head whose image keys are masked", "whether it is scaled", (0, 1) in masked.heads
    ).equals(False, "never")
    yield claim("alpha=1 gives", "difference of logits", gap(same, plain)).equals(
        0.0, "bit for bit"
    )
    yield claim("scaling head outputs", "difference of logits", gap(scaled, columns)).within(
        1e-5, "columns of W_O scaled", because=FLOAT32
    )
    first = max(reads, key=lambda pair: reads[pair])
    yield claim("Planted image-reading head", "the first head of 8", str(first)).equals(
        str(head), "the planted one"
    )
