"""Wrong uses of controls of models that paint: each is told in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import regard
from regard import controls as c
from regard.controls import Region
from regard.controls import diffusion as d
from regard.core.errors import RegardError
from tests.architectures import sharp_llama
from tests.controls.painting_models import LEFT, RIGHT, inputs_of, model_of, paint

PAIR = (d.Subject((1, 2), LEFT), d.Subject(3, RIGHT))
HEAD = (torch.ones(8, 3),)
ONE = d.SubjectTokens(torch.ones(2, 3), ("nowhere",), HEAD, HEAD)
FLOW = torch.zeros(2, 4, 6), torch.ones(4, 6).bool()


def run(kind: str, control: Any, rows: int = 2, **settings: Any) -> Any:
    model = model_of(kind)
    with regard.steer(model, control, check=False, **settings):
        return paint(model, inputs_of(kind, rows))


def guided(words: Any, **settings: Any) -> Any:
    model, given = model_of("unet"), inputs_of("unet", 1)
    z = given.pop("sample")
    given["timestep"] = torch.tensor([7.0])
    return d.guide_latents(model, z, given, words, d.NeglectedWord(), **settings)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a region outside of the picture": (lambda: Region(box=(0, 0, 1, 1.2)), "inside the picture"),
    "a region without an area": (lambda: Region(box=(0.5, 0, 0.5, 1)), "with some area"),
    "an empty mask": (lambda: Region(pixels=torch.zeros(8, 8)), "an empty mask"),
    "no subjects": (lambda: d.BoundedAttention([]), "1 or more subjects"),
    "a subject without a region": (lambda: d.Subject("cat", "left"), "a region of the picture"),
    "a subject in words": (lambda: d.Subject("cat", c.Phrase("left")), "a region of the picture"),
    "regions that look sometimes": (
        lambda: d.BoundedAttention(PAIR, regions="sometimes"), "'alternate'",
    ),
    "more than all forbidden": (lambda: d.BoundedAttention(PAIR, 2.0), "0 to 1"),
    "a word that is not in the prompt": (
        lambda: run("sd3", d.BoundedAttention([d.Subject((9,), LEFT), PAIR[1]])), "tokens 0 to 4",
    ),
    "words without a tokenizer": (
        lambda: run("sd3", d.BoundedAttention([d.Subject("cat", LEFT), PAIR[1]])), "tokenizer",
    ),
    "cross-attention of a model without it": (
        lambda: run("flux", c.AddBias(d.TextPositions((1,)), 1.0), where="cross"), "no site",
    ),
    "self-attention of a model without it": (
        lambda: run("flux", d.BoundedAttention(PAIR, where="self")), "no site",
    ),
    "a region as keys of cross-attention": (
        lambda: run("unet", c.AddBias(LEFT, 1.0), where="cross"), "a site where image is key",
    ),
    "a model of language": (
        lambda: regard.steer(sharp_llama(2), d.StoryDiffusion(), check=False), "causally",
    ),
    "a layer that is not there": (lambda: run("sd3", d.StoryDiffusion(where=99)), "no site"),
    "nothing to erase": (lambda: d.AttentiveEraser(None), "a region of the picture"),
    "a softness above one": (lambda: d.AttentiveEraser(LEFT, softness=2.0), "0 to 1"),
    "steps below zero": (lambda: d.AttentiveEraser(LEFT, soft_steps=-1), "from 0"),
    "a region grown by half a cell": (lambda: d.Widened(LEFT, 0.5), "a whole number"),
    "a reference that is not there": (
        lambda: run("unet", d.ReferenceAttention((5,))), "pictures 0 to 1 of the batch",
    ),
    "no references": (lambda: d.FreeCustom(()), "rows of the batch"),
    "fewer masks than references": (lambda: d.FreeCustom((0, 1), (LEFT,)), "one for each"),
    "fewer regions than references": (lambda: d.MagicFace((0, 1), (LEFT,)), "one for each"),
    "a rate above one": (lambda: d.StoryDiffusion(rate=1.5).edits(), "0 to 1"),
    "no window": (lambda: d.StoryDiffusion(window=0).edits(), "at least 1 picture"),
    "a strength below zero": (lambda: d.StoryDiffusion(-1.0), "0 to inf"),
    "a lone picture that has nothing to read": (
        lambda: run("sd3", d.StoryDiffusion(), 1), "fired 0 times",
    ),
    "a branch that is not told": (
        lambda: run("sd3", d.StoryDiffusion(where={"branches": "conditional"})), "branch",
    ),
    "strengths of other rows": (
        lambda: run("sd3", d.StoryDiffusion(c.PerRow((0.0, 1.0, 2.0)))), "one for each of 2 rows",
    ),
    "guidance by step": (
        lambda: run("sd3", d.PerturbedAttentionGuidance(c.PerStep((3.0, 1.0)))), "a number",
    ),
    "a negative blur": (lambda: d.BlurQueries(-1.0), "from 0"),
    "a negative prompt that is not there": (
        lambda: run("sd3", "nag"), "whose text is led away from",
    ),
    "a limit below one": (lambda: d.AwayFromOtherText(1.0, limit=0.5), "1 to inf"),
    "a temperature of zero": (lambda: d.AttentionModulation(PAIR, temperature=0), "above 0"),
    "no size of training": (lambda: d.EntropyScale(0), "tokens of a picture in training"),
    "one mask of two": (lambda: d.DiTCtrl(mask=LEFT), "both, or none"),
    "a style of a picture that is not there": (
        lambda: run("sd3", d.StyleAligned(7)), "pictures 0 to 1",
    ),
    "weights of other sites": (lambda: run("sd3", d.MSDiffusion((ONE,))), "fired 0 times"),
    "weights of another size": (
        lambda: d.SubjectTokens(torch.ones(2, 3), ("a",), (torch.ones(8, 4),), HEAD),
        "weights [heads head_size, c]",
    ),
    "regions of fewer subjects": (
        lambda: d.MSDiffusion((ONE, ONE), (LEFT,)).edits(), "one for each",
    ),
    "patches that leave gaps": (
        lambda: d.StructureGuidance(torch.mul, (4, 4), times=(1, 0), stride=(5, 4)), "from 1 to",
    ),
    "a picture smaller than a patch": (
        lambda: d.StructureGuidance(torch.mul, (4, 4), times=(1, 0))(torch.zeros(1, 1, 3, 9), 1.0),
        "at least (4, 4)",
    ),
    "no time to paint": (
        lambda: d.StructureGuidance(torch.mul, (4, 4), times=(1, 1)), "the first and the last",
    ),
    "a mask without a channel": (
        lambda: d.StructureGuidance(torch.mul, (4, 4), times=(1, 0), mask=torch.zeros(4, 4)),
        "[b, 1, h, w]",
    ),
    "a source picture that is not there": (
        lambda: run("sd3", d.DiffUHaul(LEFT, RIGHT, reference=5)), "pictures 0 to 1",
    ),
    "a place in words": (
        lambda: d.DiffUHaul(LEFT, c.Phrase("right")).edits(), "a region of the picture",
    ),
    "an anchor of fewer places": (
        lambda: ONE.replace(anchor=d.grid_rotation((3, 3), 8)), "cos and sin [2, head_size]",
    ),
    "a rotation of odd size": (lambda: d.grid_rotation((2, 3), 6), "a multiple of 4"),
    "a text for each of fewer regions": (
        lambda: d.AutoStudio((ONE, ONE), (LEFT,)).edits(), "one for each",
    ),
    "images of fewer subjects": (
        lambda: d.AutoStudio((ONE, ONE), (LEFT, RIGHT), (ONE,)).edits(), "one for each",
    ),
    "no regions to paint": (lambda: d.AutoStudio((), ()).edits(), "one or more"),
    "a text by numbers": (lambda: d.AutoStudio(([1, 2],), (LEFT,)).edits(), "SubjectTokens"),
    "a prompt of a model without cross-attention": (
        lambda: d.prompt_subject(model_of("sd3"), torch.zeros(2, 3)), "cross-attention to a text",
    ),
    "no kinds of sites": (lambda: d.AtKinds(c.ScaleScores(0.5), ("text",)), "some of"),
    "words of nothing": (lambda: guided([]), "words, or subjects alone"),
    "a word beyond the prompt": (lambda: guided([7]), "tokens 0 to 4"),
    "steps by half": (lambda: guided([1], times=0.5), "a whole number"),
    "a step behind the last": (
        lambda: d.attend_and_excite(None, None, {}, [1], step=5, steps=5),  # type: ignore[arg-type]
        "0 to steps - 1",
    ),
    "a flow of another size": (
        lambda: d.warp_latent(*torch.zeros(2, 4, 5, 6), *FLOW), "resize the flow",
    ),
    "noise of another size": (
        lambda: d.tail_latent(torch.zeros(4, 6), torch.zeros(4, 5)), "as the latent",
    ),
    "segments that overlap wholly": (
        lambda: d.blend_segments([torch.zeros(1, 4, 2, 2)], 4), "0 to 3 frames",
    ),
    "sets of other sizes": (
        lambda: d.sliced_wasserstein(torch.ones(3, 2), torch.ones(4, 2)), "of one size",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_use_is_told(name: str) -> None:
    do, words = WRONG[name]
    with pytest.raises(RegardError) as told:
        do()
    said = str(told.value)
    assert words in said, said
    assert "\n" not in said
    assert "Fix" in said
