"""Terms sum to the score, sources to the signal; without it the head looks away."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.circuits.tracing import Silenced, signal, sources, watch
from regard.models.attach import attach, hook_of
from regard.models.loading import load
from regard.models.projections import output_weights
from regard.models.site import Site
from regard.models.weights import closed_weights
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.seeding import seed
from regard.probes.roles import Induction
from regard.probes.scores import Head
from regard.probes.stimuli import repeated


class _At:
    """The reader's weight on one key, with directions taken out of what a writer says."""

    def __init__(
        self, model: nn.Module, ids: Tensor, reader: Head, writer: tuple[Site, int], query: int,
        key: int,
    ) -> None:  # fmt: skip
        self.model, self.ids, self.reader, self.writer = model, ids, reader, writer
        self.place = (0, reader.head, query, key)

    def weight(self, directions: Tensor | None) -> float:
        stages = []
        if directions is not None:
            written = output_weights(self.model, self.writer[0])[0]
            stages = [Silenced(*self.writer, written, directions)]
        with attach(self.model, stages, check=False):
            call = watch(self.model, self.ids).calls[self.reader.site]
        return float(closed_weights(call, "check")[self.place])


@check(
    "sparse_attention_decomposition",
    narrowed={
        "In float64": "1e-5, as rotations are float32",
        "on a 2-layer induction": (
            "the model that ships, and the head that wrote most of the signal"
        ),
    },
    beyond="GPT-2 small on indirect objects",
)
def signals() -> Claims:
    """Terms sum to the score, sources to the signal; without it the head looks away."""
    model = load(None)[0].double()
    sites = hook_of(model)[1]
    reading = repeated(2048, first=0, period=40, rows=1, seed=seed())
    ids = reading.tokens
    assert ids is not None
    probe = Induction()
    probe.show(reading)
    with attach(model, probe, check=False), torch.no_grad():
        model(ids)
    reader = probe.told().top(1)[0]
    totals, parts, drops, chances = [], [], [], []
    for query in range(52, 78, 5):  # of the second copy
        key = query - 40 + 1
        seen = watch(model, ids)
        found = signal(model, seen, reader.site, reader.head, query, key)
        traced = sources(seen, found)
        totals.append(abs(float(found.terms.sum()) - found.score))
        kept = float(found.terms[: found.kept].sum())
        parts.append(abs(sum(x for _, x in traced) - kept) / abs(kept))
        name = next(name for name, _ in traced if "H" in name)
        layer, head = name[1:].split("H")
        at = _At(model, ids, reader, (sites[int(layer)], int(head)), query, key)
        directions = found.v[:, : min(found.kept, 5)]
        plain = at.weight(None)
        drops.append(plain - at.weight(directions))
        chances.append(sum(plain - at.weight(torch.randn_like(directions)) for _ in range(5)) / 5)
    drop, chance = (sum(x) / len(x) for x in (drops, chances))
    yield claim("In float64", "largest difference of the sum of terms", max(totals)).within(
        1e-5,
        "the raw score",
        because=(
            "scores near 100, and rotations of the model are float32: the catalogue's 1e-8 is "
            "below their rounding"
        ),
    )
    yield claim(
        "contributions of all", "largest relative difference of sources", max(parts)
    ).within(1e-3, "the kept part", because="the norm's scale is held, rotations are float32")
    yield claim("on a 2-layer induction", "weight lost without the signal", drop).above(
        chance,
        "without random directions of equal rank",
        times=2,
        because="more, and not by a draw of five",
    )
