"""Terms sum to the score, sources to the signal; without it the head looks away."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.circuits.tracing import Silenced, signal, sources, watch
from regard.layers.building import model as stack
from regard.models.attach import attach, hook_of
from regard.models.projections import output_weights
from regard.models.site import Site
from regard.models.weights import closed_weights
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.seeding import seed
from regard.papers.shared.copier_models import copier
from regard.probes.roles import Induction, PreviousToken
from regard.probes.scores import Head
from regard.probes.stimuli import repeated

PERIOD, DRAWS = 16, 20


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


def _difference(model: nn.Module, ids: Tensor) -> float:
    """Largest difference of the sum of terms from the raw score, in units of the score."""
    seen, found = watch(model, ids), []
    for site in hook_of(model)[1]:
        for head in range(4):
            one = signal(model, seen, site, head, ids.shape[1] - 2, ids.shape[1] // 2)
            found.append(abs(float(one.terms.sum()) - one.score))
    return max(found)


@check("sparse_attention_decomposition", beyond="GPT-2 small on indirect objects")
def signals() -> Claims:
    """Terms sum to the score, sources to the signal; without it the head looks away."""
    sizes = {"dim": 64, "heads": 4, "vocab": 40}
    flat = stack(["mha", "mha"], **sizes).double()  # no rotations, whose tables are float32
    in_float64 = _difference(flat, torch.randint(0, 40, (1, 24)))
    model = copier(2)[0].double()
    reading = repeated(40, first=0, period=PERIOD, rows=1, seed=seed())
    ids = reading.tokens
    assert ids is not None
    probes = [Induction(), PreviousToken()]
    for probe in probes:
        probe.show(reading)
    with attach(model, probes, check=False), torch.no_grad():
        model(ids)
    reader, previous = (probe.told().top(1)[0] for probe in probes)
    parts, drops, chances = [], [], []
    for query in range(PERIOD + 4, 2 * PERIOD - 2, 2):  # of the second copy
        key = query - PERIOD + 1
        seen = watch(model, ids)
        found = signal(model, seen, reader.site, reader.head, query, key)
        kept = float(found.terms[: found.kept].sum())
        parts.append(abs(sum(x for _, x in sources(seen, found)) - kept) / abs(kept))
        at = _At(model, ids, reader, (previous.site, previous.head), query, key)
        directions = found.v[:, : min(found.kept, 5)]
        plain = at.weight(None)
        drops.append(plain - at.weight(directions))
        chances.append(
            sum(plain - at.weight(torch.randn_like(directions)) for _ in range(DRAWS)) / DRAWS
        )
    drop, chance = (sum(x) / len(x) for x in (drops, chances))
    yield claim("In float64", "largest difference of the sum of terms", in_float64).within(
        1e-8, "the raw score", because=CATALOGUE
    )
    rotary = _difference(model, ids)
    yield claim("In float64", "the same of a model with rotary positions", rotary).within(
        1e-5, "the raw score", because="its rotations are float32, and scores are near 100"
    )
    yield claim(
        "contributions of all", "largest relative difference of sources", max(parts)
    ).within(1e-8, "the kept part", because=FLOAT64)
    yield claim("on a 2-layer induction", "layer of the head that looks one token back",
                int(previous.site.layer or 0)).equals(
        int(reader.site.layer or 0) - 1, "below that of the induction head"
    )  # fmt: skip
    yield claim("on a 2-layer induction", "weight lost without the signal", drop).above(
        chance,
        "without random directions of equal rank",
        times=2,
        because="more, and not by a draw of five",
    )
