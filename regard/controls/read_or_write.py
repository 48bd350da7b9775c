"""EDAtt: simultaneous translation that writes a word only if it does not need the newest frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regard.controls.attended import attended
from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.method import method
from regard.models.attach import hook_of


@dataclass
class Simultaneous:
    """The output: ids, and how many frames had been read when each was written."""

    ids: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)

    def lag(self, frames: int) -> float:
        """Return the average lagging: how many frames writing is behind an even pace.

        >>> Simultaneous([5, 6], [2, 4]).lag(4)
        2.0
        """
        if not self.ids:
            return 0.0
        pace = len(self.ids) / frames
        # Counted up to the first word written after the whole source was read.
        until = next((i + 1 for i, n in enumerate(self.known) if n >= frames), len(self.known))
        return sum(self.known[i] - i / pace for i in range(until)) / until


def leans_on_newest(row: Tensor, newest: int, ends: int = 0) -> float:
    """Return the share of a row of weights [m] on its `newest` last frames.

    The `ends` frames at the very end, which are constant in some encoders, are left out.

    >>> leans_on_newest(torch.tensor([0.5, 0.25, 0.25]), 2)
    0.5
    """
    kept = row[: len(row) - ends] if ends else row
    return float(kept[-newest:].sum() / kept.sum().clamp(min=1e-12))


@method(
    "edatt",
    call="from regard.controls.read_or_write import simultaneous\n"
    "simultaneous(model, pieces, start=[bos], end=eos, threshold=0.3, newest=2)",
)
@torch.no_grad()
def simultaneous(
    model: Any, pieces: Iterable[Tensor], *, start: list[int], end: int, threshold: float = 0.3,
    newest: int = 2, layer: int | None = None, tokens: int = 128, ends: int = 0,
    argument: str = "input_ids",
) -> Simultaneous:  # fmt: skip
    """Translate with an encoder-decoder while the source arrives in pieces.

    After each piece [1, frames] (or [1, frames, d]) everything read so far is encoded, and greedy
    decoding continues: a token is written if less than `threshold` of its cross-attention (of
    `layer`, averaged over heads) is on the `newest` frames; otherwise it waits for the next piece.
    When the source ends, the rest is written. A threshold above 1 writes at once, 0 waits for the
    end.
    (EDAtt, Papi et al. 2023)
    """
    if newest < 1:
        fail(ValueRangeError, "newest", newest, "at least 1 frame", "pass newest=2")
    if threshold < 0:
        fail(ValueRangeError, "threshold", threshold, "a number from 0", "pass threshold=0.3")
    crossing = [site for site in hook_of(model)[1] if site.kind == "cross"]
    if not crossing:
        fail(
            CapabilityError, "model", f"{type(model).__name__}, without cross-attention",
            "an encoder-decoder", "take a model that translates",
        )  # fmt: skip
    layers = [site.layer for site in crossing]
    chosen = layers[len(layers) * 2 // 3 - 1 if len(layers) > 1 else 0] if layer is None else layer
    if chosen not in layers:
        fail(ValueRangeError, "layer", layer, f"a decoder layer among {layers}", "name one")
    made, known, waiting = Simultaneous(), [], list(pieces)
    for place, piece in enumerate(waiting):
        known.append(piece)
        source, last = torch.cat(known, 1), place == len(waiting) - 1
        while len(made.ids) < tokens:
            inputs = {argument: source, "decoder_input_ids": torch.tensor([[*start, *made.ids]])}
            out: dict[str, Any] = {}

            def run(out: dict[str, Any] = out, **given: Any) -> None:
                out["logits"] = model(**given).logits

            seen = attended(
                model, inputs, slice(-1, None), {"kinds": "cross", "layers": chosen}, run
            )
            token = int(out["logits"][0, -1].argmax())
            row = next(iter(seen.found.values()))[0].mean(0)
            if not last and (token == end or leans_on_newest(row, newest, ends) >= threshold):
                break
            if token == end:
                return made
            made.ids.append(token)
            made.known.append(source.shape[1])
    return made
