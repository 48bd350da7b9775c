"""Sinks among the tokens of an image: which patches, registers or class tokens draw the weight.

alpha_k is the mean weight on key k of the queries that may attend to it. A patch is a sink of a
head where alpha_k is over `times` the mean alpha of the patches: such patches rarely show the
subject (Darcet et al. 2023 give them registers to rest in; Kang et al. 2025 find them in the image
tokens that language models read).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.models.site import Site
from regard.probes.base import Probe
from regard.probes.maps import patches_of
from regard.probes.registry import register
from regard.probes.scores import Scores, head_name

KINDS = ("patch", "class", "register", "special", "text")


class Sink(NamedTuple):
    """A patch that draws the weight of some heads at a site; `place` is its row and column."""

    site: Site
    token: int
    place: tuple[int, int] | None
    alpha: float
    heads: tuple[int, ...]


@register("image_sink", groups=("vision",))
class ImageSink(Probe):
    """Largest mean weight on one patch; and where the weight of each head goes by kind of token.

    `sinks()` lists the patches that are sinks, the strongest first; `shares()` says how much weight
    goes to patches, class token, registers and text. Patches are found by the grid of a vision
    model, or by the image token ids in a prompt. Inputs are read one by one; lists of
    sinks are those of the first.
    """

    key, title = "image_sink", "strongest image sink"
    definitions: ClassVar = {
        "alpha": "largest mean weight on a patch, over the queries that see it"
    }
    kinds: ClassVar = ("self", "joint")
    want = ("received",)

    def __init__(self, where: Any = None, *, times: float = 10.0) -> None:
        super().__init__(where)
        if not times > 1:
            fail(ValueRangeError, "times", times, "more than 1", "take 10")
        self.times = times
        self.registers: int | None = None
        self.alpha: dict[Site, list[Tensor]] = {}
        self.marks: dict[Site, list[str]] = {}
        self.grids: dict[Site, tuple[int, int]] = {}
        self.taken: dict[Site, list[Tensor]] = {}

    def begin(self, model: Any, sites: Any) -> None:
        """Ask the model how many registers it has."""
        super().begin(model, sites)
        config = getattr(model, "config", None)
        found = getattr(config, "num_register_tokens", getattr(model, "num_reg_tokens", None))
        vision = getattr(config, "vision_config", None)
        self.registers = (
            found if found is not None else getattr(vision, "num_register_tokens", None)
        )

    def look(self, site: Site, call: Call, report: Any) -> None:
        """Keep the mean weight of every key [b, h, m], and what each key is."""
        if call.n == 1:  # skip decoding steps
            return
        marks = self._marks(site, call)
        if "patch" not in marks:
            fail(
                CapabilityError, f"probes: {self.name}", f"{site.module}, which holds no patches",
                "tokens of an image", "leave it out for this model",
            )  # fmt: skip
        self.marks.setdefault(site, marks)
        alpha = report.received / report.seen.clamp(min=1)
        total = report.received.sum(-1).clamp(min=1e-30)
        by_kind = torch.stack(
            [report.received[..., _which(marks, kind)].sum(-1) / total for kind in KINDS], -1
        )
        self.alpha.setdefault(site, []).append(alpha.float().cpu())
        self.taken.setdefault(site, []).append(by_kind.float().cpu())

    def _marks(self, site: Site, call: Call) -> list[str]:
        """Return what each key is; of the first row of the batch."""
        now = call.forward
        if now is not None and now.image_tokens is not None and site.grid is None:
            image = now.image_tokens[0].tolist()
            return ["patch" if x else "text" for x in image] if len(image) == call.m else []
        patches = patches_of(site, call.n, call.m, now)
        if patches is None or patches.keys is None:
            return []
        self.grids.setdefault(site, patches.grid)
        first, many = patches.keys, patches.grid[0] * patches.grid[1]
        if site.kind == "joint":
            before, after = ["text"] * first, ["text"] * (call.m - first - many)
        else:
            before = ["class"] * min(1, first) + ["special"] * (first - 1)
            if self.registers is not None and self.registers <= first:
                others = first - self.registers
                before = ["class"] * min(1, others) + ["special"] * (others - 1)
                before += ["register"] * self.registers
            after = ["special"] * (call.m - first - many)
        return [*before, *["patch"] * many, *after]

    def result(self) -> Scores:
        """Return the weight of the strongest patch of each head, and which it is."""
        values, keys = {}, {}
        for site, each in self.alpha.items():
            there = _which(self.marks[site], "patch")
            best = [x[..., there].max(-1) for x in each]
            values[site] = torch.cat([x.values for x in best]).mean(0)
            keys[site] = there[best[0].indices[0]].tolist()
        return self.scores(
            values, keys=keys, sinks=self.sinks(), shares=self.shares(), said=self.said()
        )

    def said(self) -> list[str]:
        """Return the main things in words."""
        sinks, shares, said = self.sinks(), self.shares(), []
        if sinks:
            top = sinks[0]
            place = f"token {top.token}" if top.place is None else f"patch {top.place}"
            head = head_name(top.site, top.heads[0])
            more = f"; {len(sinks) - 1} more patches and layers" if len(sinks) > 1 else ""
            said = [f"strongest image sink: {place}, {top.alpha:.2f} of {head}{more}"]
        for kind in ("class", "register"):
            found = [x[kind] for x in shares.values() if kind in x]
            if found:
                share = 100 * float(torch.cat(found).mean())
                said.append(f"{share:.0f}% of weight goes to {kind} tokens")
        return said

    def sinks(self) -> list[Sink]:
        """Patches that are sinks of some head, the strongest first."""
        found = []
        for site, each in self.alpha.items():
            there = _which(self.marks[site], "patch")
            alpha = each[0][0][:, there]  # [h, patches]
            over = alpha > self.times * alpha.mean(-1, keepdim=True)
            for p in over.any(0).nonzero().flatten().tolist():
                heads = tuple(over[:, p].nonzero().flatten().tolist())
                grid = self.grids.get(site)
                place = None if grid is None else (p // grid[1], p % grid[1])
                strongest = float(alpha[list(heads), p].max())
                found.append(Sink(site, int(there[p]), place, strongest, heads))
        return sorted(found, key=lambda sink: -sink.alpha)

    def shares(self) -> dict[Site, dict[str, Tensor]]:
        """Share of the weight of each head [h] by kind of token, those that there are."""
        return {
            site: {
                kind: torch.cat(each).mean(0)[:, i]
                for i, kind in enumerate(KINDS)
                if kind in self.marks[site]
            }
            for site, each in self.taken.items()
        }


def _which(marks: list[str], kind: str) -> Tensor:
    return torch.tensor([i for i, x in enumerate(marks) if x == kind], dtype=torch.long)
