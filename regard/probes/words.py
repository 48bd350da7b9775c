"""Where the words of a prompt act in an image: a map over patches for each token of text.

For an image query p and a text key t, with the softmax over all keys that p may attend to (the text
in cross-attention, text and image together in joint attention):

    map_t(p) = mean over heads of A[p, t]                 [tokens, rows, columns]

kept by step and layer at the layer's own grid, and averaged over both at the largest one. It is
what DAAM draws (Tang et al. 2022), with real grids that need not be square, and joint attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, ShapeError, ValueRangeError, fail
from regard.core.partial import wide
from regard.models.attach import attach
from regard.models.diffusers import branches as named_branches
from regard.models.pipelines import Runner, is_pipeline
from regard.models.site import Site
from regard.probes.base import Probe
from regard.probes.chance import Baselines
from regard.probes.reading import Reading
from regard.probes.regions import WordMaps
from regard.probes.registry import register
from regard.probes.scores import Scores
from regard.run.reducers import Reducer
from regard.run.row_blocks import RowBlock
from regard.run.survey import survey_call


class _Columns(Reducer):
    """Weights of image queries on text keys, of one row of the batch: summed over chosen heads.

    `total` is [image, text]; `share` [h, text] and `spread` [h] are, over image queries, the mean
    share of each token among the text and the mean entropy of that share; `mass` [h] is the weight
    that the text gets at all.
    """

    def __init__(
        self, call: Call, row: int, queries: slice, keys: slice, heads: Sequence[int]
    ) -> None:
        self.row, self.queries, self.keys, self.heads = row, queries, keys, set(heads)
        n, t = queries.stop - queries.start, keys.stop - keys.start
        dtype, device = wide(call.q.dtype), call.q.device
        self.total = torch.zeros(n, t, dtype=dtype, device=device)
        self.share = torch.zeros(call.h, t, dtype=dtype, device=device)
        self.spread = torch.zeros(call.h, dtype=dtype, device=device)
        self.mass = torch.zeros(call.h, dtype=dtype, device=device)

    def take(self, block: RowBlock) -> None:
        """Read the text columns of one block."""
        rows, cols = _shared(block.rows, self.queries), _shared(block.cols, self.keys)
        if block.b != self.row or rows is None or cols is None:
            return
        (from_rows, to_rows), (from_cols, to_cols) = rows, cols
        weights = block.weights[from_rows, from_cols]
        if block.h in self.heads:
            self.total[to_rows, to_cols] += weights
        n = self.total.shape[0]
        mass = weights.sum(1)
        p = weights / mass.clamp(min=1e-30)[:, None]
        self.share[block.h, to_cols] += p.sum(0) / n
        self.spread[block.h] += torch.special.entr(p).sum() / n
        self.mass[block.h] += mass.sum() / n


def _shared(block: slice, wanted: slice) -> tuple[slice, slice] | None:
    """Return the intersection of two ranges, as slices of the first and of the second."""
    low, high = max(block.start, wanted.start), min(block.stop, wanted.stop)
    if low >= high:
        return None
    return (
        slice(low - block.start, high - block.start),
        slice(low - wanted.start, high - wanted.start),
    )


@register("words")
class Words(Probe):
    """Maps of text tokens over the image, and how much each head lets words tell patches apart.

    `maps()` gives the `WordMaps`; `words` names the text tokens in order (an empty name is padding
    and is left out). Of a batch with guidance, `branch` is read if the branches are named (see
    `regard.models.diffusers.branches`); if they are not, `row` must name the row.
    `where` chooses layers, steps and heads. The maps of a video are means over its frames.
    """

    key, title = "words", "words tell patches apart"
    kinds: ClassVar = ("cross", "joint")
    high: ClassVar = None
    definitions: ClassVar = {
        "apart": "mutual information of patch and word, in nats: H(mean p) - mean H(p)",
        "mass": "mean weight of image tokens on the text (1 in cross-attention)",
    }

    def __init__(
        self,
        where: Any = None,
        *,
        words: Sequence[str] = (),
        branch: str = "conditional",
        row: int | None = None,
        definition: str | None = None,
    ) -> None:
        super().__init__(where, definition=definition)
        self.names, self.branch, self.row = list(words), branch, row
        self.sums: dict[tuple[int, Site], Tensor] = {}
        self.counts: dict[tuple[int, Site], int] = {}

    def show(self, reading: Reading, idle: Baselines | None = None) -> None:
        """Take the words of what is shown, unless they were named."""
        super().show(reading, idle)
        self.names = self.names or list(reading.words)

    def look(self, site: Site, call: Call, _: Any) -> None:
        """Read the text columns of one call."""
        row = self._row(site, call)
        if row is None:
            return
        queries, keys, grid = _layout(site, call)
        chosen = self.where.heads or range(call.h)
        if not call.rule.tensors() and not call.placed:  # one row's rule is that of all
            call = call.replace(**{x: getattr(call, x)[row : row + 1] for x in "qkv"})
            row = 0
        columns = _Columns(call, row, queries, keys, chosen)
        survey_call(call, reducers=[columns])
        found = (columns.total / len(chosen)).T.float().cpu()  # [text, image]
        found = found[self._kept(site, len(found))]
        found = found.unflatten(1, (-1, *grid[-2:])).mean(1)  # over the frames of a video
        step = 0 if call.forward is None else call.forward.step
        self.sums[step, site] = self.sums.get((step, site), 0) + found
        self.counts[step, site] = self.counts.get((step, site), 0) + 1
        told = columns.mass if self.definition == "mass" else (
            torch.special.entr(columns.share).sum(1) - columns.spread
        ).clamp(min=0)  # fmt: skip
        self.tally.add(site, told[None, :, None])

    def _row(self, site: Site, call: Call) -> int | None:
        """Which row of the batch holds the image that is meant; None if it is not in this batch."""
        now = call.forward
        branches = None if now is None else now.branches
        if branches and self.branch not in branches:
            return None
        rows = range(call.b)
        if branches and now is not None:
            rows = rows[now.rows(self.branch, call.b)]
        elif call.b > 1 and self.row is None:
            fail(
                RuleError, "branches", f"a batch of {call.b} rows that does not say what they are",
                "named guidance branches, or one row",
                "run within regard.models.diffusers.branches('unconditional', 'conditional'), in "
                "the order of the batch, or pass Words(row=...)",
            )  # fmt: skip
        at = self.row or 0
        if not 0 <= at < len(rows):
            fail(
                ValueRangeError, "row", at, f"0 to {len(rows) - 1}",
                "count the images of the branch from 0",
            )  # fmt: skip
        return rows[at]

    def _kept(self, site: Site, count: int) -> list[int]:
        """Return which text tokens have a name; all, where none was given."""
        if len(self.names) > count:
            fail(
                ShapeError, "words", f"{len(self.names)} words", f"at most {count}, the text "
                f"tokens at {site.module}", "name each token, padding with ''",
            )  # fmt: skip
        kept = [t for t, word in enumerate(self.names) if word] if self.names else range(count)
        before = next(iter(self.sums.values()), None)
        if before is not None and len(before) != len(kept):
            fail(
                CapabilityError, f"probes: {self.name}", f"{count} text tokens at {site.module}",
                f"{len(before)}, as elsewhere", "choose sites with where=, or name the words",
            )  # fmt: skip
        return list(kept)

    def maps(self) -> WordMaps:
        """Return the maps of everything that was seen."""
        if not self.sums:
            if self.refusal is not None:
                raise self.refusal
            fail(
                CapabilityError, f"probes: {self.name}", f"no forward of the {self.branch} branch",
                "one or more", "name the branch with Words(branch=...)",
            )  # fmt: skip
        found = {place: total / self.counts[place] for place, total in self.sums.items()}
        count = len(next(iter(found.values())))
        words = [w for w in self.names if w] or [f"token {t}" for t in range(count)]
        return WordMaps(tuple(words), found, self.branch)

    def result(self) -> Scores:
        """One number for each head; the maps are in `details`."""
        return self.scores(self.tally.means(), **({"maps": self.maps()} if self.sums else {}))


def _layout(site: Site, call: Call) -> tuple[slice, slice, tuple[int, ...]]:
    """Return where image queries and text keys stand, and the grid of the former."""
    if site.kind == "cross":
        queries: slice | None = slice(0, call.n)
        keys: slice | None = slice(0, call.m)
    else:
        queries = site.span("image", call.n, call.forward)
        keys = site.span("text", call.m, call.forward)
    grid = None
    if call.forward is not None and queries is not None:
        grid = call.forward.grid_of(queries.stop - queries.start)
    if queries is None or keys is None or grid is None:
        fail(
            CapabilityError, "probes: words",
            f"{site.module}, which does not tell where text and image stand",
            "text and an image on a grid, as in models of diffusers",
            "leave it out for this model",
        )  # fmt: skip
    return queries, keys, grid


def word_maps(
    model: Any,
    inputs: Any,
    *,
    words: Sequence[str] = (),
    branch: str = "conditional",
    branches: Sequence[str] = (),
    row: int | None = None,
    where: Any = None,
) -> WordMaps:
    """Run a pipeline on a prompt, or a model on a dict of inputs, and give the maps of the words.

    `inputs` of a pipeline are a prompt, or a dict of its arguments. `branches` names the guidance
    branches in the batch, in order; a pipeline whose text is known tells them by itself, since the
    rows of the conditional branch are those that hold the prompt.

        maps = word_maps(pipe, {"prompt": "a red fox", "num_inference_steps": 20})
        maps.of("fox")               # [rows, columns]
        maps.words_at(3, 5)          # [("fox", 0.31), ...]
    """
    probe = Words(where, words=words, branch=branch, row=row)
    naming = named_branches(*branches) if branches else nullcontext()
    with naming, torch.no_grad():
        if is_pipeline(model):
            runner = Runner(model)
            reading = Reading(runner.arguments(inputs), words=runner.words(inputs))
            probe.show(reading)
            with attach(runner.model, probe, check=False):
                runner(reading.inputs)
            return probe.maps()
        if not isinstance(model, nn.Module) or not isinstance(inputs, Mapping):
            fail(
                RuleError, "model, inputs", f"{type(model).__name__}, {type(inputs).__name__}",
                "a pipeline and a prompt, or a model and a dict of its inputs", "pass these",
            )  # fmt: skip
        with attach(model, probe, check=False):
            model(**inputs)
    return probe.maps()


__all__ = ["WordMaps", "Words", "word_maps"]
