"""Text and pixels side by side: does a model attend to the same words as text and as pixels?

The same item is read as tokens and as an image. In both, the weights of one query (the place that
answers) are averaged over heads, and summed over what belongs to each word:

    text_w = sum_t A[answer, t] [t spells w]         pixel_w = sum_p A[answer, p] share(w, p)

with share(w, p) the part of patch p that the box of word w covers, of all that words cover there.
The two rows of numbers are then compared (PixelWorld, Lyu et al. 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.analysis.scan_and_snap import rank_correlation
from regard.core.call import Call
from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.result import Result
from regard.models.site import Site
from regard.models.stage import Stage
from regard.models.weights import closed_weights
from regard.run.rows import rows_of


class RowWeights(Stage):
    """Weights of one query on every key, mean over heads [b, m], by site; the last call counts.

    >>> import regard
    >>> from regard.tasks import task
    >>> from regard.bench.backbone import Backbone
    >>> job = task("written_tokens")
    >>> model = Backbone("mha", job, "ns", dim=16)
    >>> with regard.attach(model, row := RowWeights(), check=False):
    ...     _ = model(job.batch(3))
    >>> row.weights().shape
    torch.Size([3, 11])
    """

    def __init__(self, row: int = -1, where: Any = None) -> None:
        super().__init__(where)
        self.row = row
        self.found: dict[Site, Tensor] = {}

    def see(self, call: Call, result: Result) -> None:
        """Weigh the one query alone."""
        row = self.row % call.n if -call.n <= self.row < call.n else None
        if row is None:
            fail(
                ValueRangeError, "row", self.row, f"a query among {call.n}",
                "count from 0, or from the end with -1",
            )  # fmt: skip
        assert call.site is not None
        one = rows_of(call, slice(row, row + 1))
        self.found[call.site] = closed_weights(one, self.name)[:, :, 0].mean(1).detach().cpu()

    def weights(self, layers: str = "last") -> Tensor:
        """Return weights [b, m] of the last site, or their mean over all sites ("mean")."""
        if layers not in ("last", "mean") or not self.found:
            fail(
                RuleError, "layers", repr(layers) if self.found else "no forward yet",
                "'last' or 'mean', after a forward", "run the model while this is attached",
            )  # fmt: skip
        every = list(self.found.values())
        return every[-1] if layers == "last" else torch.stack(every).mean(0)


@dataclass(frozen=True)
class Alignment:
    """How alike two readings weigh the same words; each number is of one item [b].

    `cosine` of the weights, `rank` correlation (Spearman) and `overlap` of the `k` heaviest words;
    `drawn` is the share of the image's weight that falls on words at all.
    """

    cosine: Tensor
    rank: Tensor
    overlap: Tensor
    drawn: Tensor
    k: int

    def means(self) -> dict[str, float]:
        """Return the mean over items of each."""
        names = ("cosine", "rank", "overlap", "drawn")
        return {name: float(getattr(self, name).mean()) for name in names}


def word_weights(weights: Tensor, words: Tensor) -> Tensor:
    """Sum weights [b, m] over what belongs to each word: `words` [w, m] or [b, w, m] -> [b, w].

    >>> word_weights(torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([[1, 1, 0], [0, 0, 1]])).tolist()
    [[0.5, 0.5]]
    """
    if weights.dim() != 2 or words.shape[-1] != weights.shape[1]:
        fail(
            ShapeError, "words", shape_of(words), f"[w, {weights.shape[-1]}], as the weights",
            "leave out, or give no share to, keys that belong to no word",
        )  # fmt: skip
    many = words.to(weights.dtype).expand(len(weights), -1, -1)
    return (many @ weights[..., None])[..., 0]


def aligned(text: Tensor, pixels: Tensor, k: int = 1) -> Alignment:
    """Compare weights of words read as text with those of the same words seen: both [b, w].

    >>> same = torch.tensor([[0.1, 0.6, 0.3]])
    >>> aligned(same, same).means()["rank"]
    1.0
    """
    if text.shape != pixels.shape or text.dim() != 2:
        fail(
            ShapeError, "pixels", shape_of(pixels), f"{shape_of(text)}, as `text`",
            "sum both over the same words with word_weights",
        )  # fmt: skip
    if not 1 <= k <= text.shape[1]:
        fail(ValueRangeError, "k", k, f"1 to {text.shape[1]} words", "take 1")
    text, pixels = text.double(), pixels.double()
    best = [x.topk(k, 1).indices for x in (text, pixels)]
    same = (best[0][:, :, None] == best[1][:, None]).any(2).double().mean(1)
    ranks = [rank_correlation(a, b) for a, b in zip(text, pixels, strict=True)]
    return Alignment(
        F.cosine_similarity(text, pixels, 1), torch.tensor(ranks).double(), same, pixels.sum(1), k
    )
