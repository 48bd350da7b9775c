"""Roles of heads in a circuit that names something: movers, and who feeds them (Wang 2022, IOI)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from regard.circuits.patching import Head, Metric, path_patching
from regard.core.errors import ValueRangeError, fail
from regard.probes.scores import Scores


@dataclass(frozen=True)
class Circuit:
    """Heads by role, each with the scores that gave it one.

    `movers` write the answer straight to the logits, `negative` against it; `feeds["q"]` change
    where movers look (in the paper: S-inhibition heads), `feeds["k"]` what they are found by
    (previous-token heads), `feeds["v"]` what they carry.
    """

    movers: list[Head]
    negative: list[Head]
    feeds: dict[str, list[Head]]
    scores: dict[str, Scores]

    def table(self) -> list[tuple[str, str, float]]:
        """Return rows of (role, head, share of the answer that goes with it)."""
        rows = []
        for role, heads in (
            ("mover", self.movers), ("negative mover", self.negative),
            *((f"feeds movers' {part}", heads) for part, heads in self.feeds.items()),
        ):  # fmt: skip
            scores = self.scores[role[-1] if role.startswith("feeds") else "direct"]
            rows += [(role, f"L{s.layer}H{h}", -float(scores.values[s][h])) for s, h in heads]
        return rows


def naming_circuit(
    model: nn.Module, clean: Any, corrupt: Any, metric: Metric, *, share: float = 0.1,
    parts: Sequence[str] = ("q", "k", "v"), freeze_mlp: bool = True,
) -> Circuit:  # fmt: skip
    """Find the roles of an answer's heads by path patching, from the logits backwards.

    A head has a role where at least `share` of the metric's span goes with its direct path. Two
    forwards for each head, and as many again for each of `parts`.
    """
    if not 0 < share < 1:
        fail(ValueRangeError, "share", share, "a share between 0 and 1", "take 0.1")
    direct = path_patching(model, clean, corrupt, metric, freeze_mlp=freeze_mlp).scores
    movers = _beyond(direct, -share)
    scores, feeds = {"direct": direct}, {}
    for part in parts if movers else ():
        found = path_patching(
            model, clean, corrupt, metric, receivers=movers, part=part, freeze_mlp=freeze_mlp
        )
        scores[part] = found.scores
        feeds[part] = _beyond(found.scores, -share)
    return Circuit(movers, _beyond(direct, share), feeds, scores)


def _beyond(scores: Scores, bound: float) -> list[Head]:
    """Return heads whose score is past a bound, the strongest first."""
    sign = 1 if bound > 0 else -1
    heads = [x for x in scores.heads() if sign * x.value >= sign * bound]
    return [(x.site, x.head) for x in sorted(heads, key=lambda x: -sign * x.value)]
