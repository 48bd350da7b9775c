"""Sparse attention in videos: each frame attends to itself and to a few reference frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.method import method
from regard.core.result import Result
from regard.models.stage import Stage
from regard.policies.calibration import run_texts
from regard.policies.grids import Image, OnGrid, image_of, with_rest
from regard.policies.kinds import Calibrated
from regard.policies.registry import register
from regard.run.runner import run


@method(
    "efficient_vdit_tile",
    call='from regard.policies import policy; policy("efficient_vdit_tile")',
)
@register("efficient_vdit_tile", "attention_tile")
@dataclass
class AttentionTile(OnGrid, Calibrated):
    """Let each frame attend to itself and to `k` reference frames, and these to all frames.

    Of F frames every (F / k)-th is a reference: F + 2 k (F - k) + k (k - 1) tiles of frames are
    computed, linear in F. Each layer takes the smallest k at which the squared difference of
    its output from the dense one is, in the mean, within `error` of the squared output itself:
    `regard.policies.calibrate(model, "efficient_vdit_tile", inputs, to=...)` with the arguments of
    forwards at some timesteps. Without a calibration every layer takes the largest k that computes
    at most `keep` of the tiles. `regard.policies.distilling.distill` fine-tunes the
    model to reduce the rest of the difference. (Efficient-vDiT, Ding et al. 2025)
    """

    needed: ClassVar[bool] = False
    error: float = 0.01
    references: dict[int, int] = field(default_factory=dict, init=False)

    def key(self, image: Image, call: Call) -> Any:
        """Return the image and the layer's k."""
        return image, self.count(image, call)

    def count(self, image: Image, call: Call) -> int:
        """Return the number of reference frames of a layer."""
        frames = _frames(image)
        layer = getattr(call.site, "layer", None)
        if layer in self.references:
            return min(self.references[layer], frames)
        share = 1.0 if self.budget.share is None else self.budget.share
        within = [k for k in range(1, frames + 1) if tiles(frames, k) <= share * frames**2]
        return max(within, default=1)

    def groups(self, image: Image, call: Call) -> tuple[Tensor, Tensor]:
        """Return the frame of each token, and which frames attend to each other."""
        frames = _frames(image)
        return image.coordinates()[0], frame_pairs(frames, self.count(image, call))

    # Calibration

    def found(self) -> dict[str, Any]:
        """Return the k of each layer."""
        return {"references": self.references}

    def take(self, found: dict[str, Any]) -> None:
        """Load the k of each layer."""
        self.references = {int(layer): int(k) for layer, k in found["references"].items()}

    def learn(
        self, model: Any, inputs: Sequence[Mapping[str, Any]], state: dict[str, Any],
        keep: Callable[[dict[str, Any]], None],
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        """Try every k at every layer on one forward after another; yield progress after each."""
        if not self.error > 0:
            fail(ValueRangeError, "error", self.error, "more than 0", "pass error=0.01, say")
        errors = {int(layer): list(x) for layer, x in state.get("errors", {}).items()}
        search = _FrameErrors(errors)
        yield from run_texts(model, inputs, state, search, keep, lambda: {"errors": errors})
        self.references = {
            layer: next((k for k, e in enumerate(x, 1) if e / len(inputs) <= self.error), len(x))
            for layer, x in errors.items()
        }


def _frames(image: Image) -> int:
    if len(image.grid) != 3:
        fail(
            CapabilityError, "grid", f"{image.grid}, an image", "a video of several frames",
            'use "grat" for images',
        )  # fmt: skip
    return image.grid[0]


def tiles(frames: int, k: int) -> int:
    """Return the number of tiles of frames that k reference frames compute.

    >>> [tiles(8, k) for k in (1, 8)], int(frame_pairs(8, 3).sum()) == tiles(8, 3)
    ([22, 64], True)
    """
    return frames + 2 * k * (frames - k) + k * (k - 1)


def frame_pairs(frames: int, k: int) -> Tensor:
    """Return which frames attend to each other, bool [frames, frames].

    >>> frame_pairs(4, 1).int().tolist()
    [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    """
    reference = torch.zeros(frames, dtype=torch.bool)
    reference[torch.arange(k) * frames // k] = True
    return torch.eye(frames, dtype=torch.bool) | reference | reference[:, None]


def tile_errors(call: Call, image: Image) -> list[float]:
    """Return the squared error relative to the squared dense output, for k = 1, ..., F."""
    dense = run(call).out
    size = float(dense.square().mean())
    frame, found = image.coordinates()[0], []
    for k in range(1, _frames(image) + 1):
        support, _ = with_rest(image, frame, frame_pairs(image.grid[0], k))
        rule = call.rule.replace(support=call.rule.support & support)
        off = run(call.replace(rule=rule)).out - dense
        found.append(float(off.square().mean()) / max(size, 1e-30))
    return found


class _FrameErrors(Stage):
    """Sum the errors of every k at every layer."""

    def __init__(self, errors: dict[int, list[float]]) -> None:
        super().__init__()
        self.errors = errors

    def see(self, call: Call, result: Result) -> None:
        """Try every k."""
        image = image_of(call)
        if image is None:
            return
        new = tile_errors(call, image)
        before = self.errors.get(call.site.layer, [0.0] * len(new))
        self.errors[call.site.layer] = [a + b for a, b in zip(before, new, strict=True)]
