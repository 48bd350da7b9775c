"""One query of a head, channel by channel: what each adds to its score on each key.

The view that BertViz calls *neuron view*: a score is a sum over the channels of query and key, and
here are its terms. `SeenHead.channels(query)` makes it; the page shows the same.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from torch import Tensor

from regard.core.html_table import plain_text
from regard.views.colors import difference

# Channels that a line of text names: those that add or take most.
NAMED = 3


@dataclass(frozen=True)
class Channels:
    """What the channels of one query add to its scores: `terms` [keys, channels], `scores` [keys].

    Each row of `terms` is `scale * query * key`, and sums to the score, before a soft cap where the
    head has one; `weights` are those after the softmax over all keys.
    """

    name: str
    query: int
    word: str
    keys: tuple[int, ...]
    words: tuple[str, ...]
    q: Tensor = field(repr=False)
    terms: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)

    @property
    def scores(self) -> Tensor:
        """The score of each key, the sum of its terms."""
        return self.terms.sum(-1)

    def strongest(self, key: int, count: int = NAMED) -> list[tuple[int, float]]:
        """Return the channels that move the score on a key most: channel, and what it adds."""
        row = self.terms[self.keys.index(key)]
        found = row.abs().topk(min(count, len(row))).indices.tolist()
        return [(channel, float(row[channel])) for channel in found]

    def __str__(self) -> str:
        lines = [f"{self.name}, query {self.query} {self.word!r}: what channels add to its scores"]
        for row, (key, word) in enumerate(zip(self.keys, self.words, strict=True)):
            said = ", ".join(f"{c}: {x:+.2f}" for c, x in self.strongest(key))
            lines.append(
                f"  key {key} {word!r}: weight {float(self.weights[row]):.3f}, "
                f"score {float(self.scores[row]):.2f} ({said})"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from regard.views.notebook import png

        def strip(values: Tensor, most: float) -> str:
            colors = difference(values[None].numpy() / max(most, 1e-9))
            data = base64.b64encode(png(colors)).decode()
            return (
                f'<img src="data:image/png;base64,{data}" width="{6 * len(values)}" height="14" '
                'style="image-rendering:pixelated" alt="a cell for each channel">'
            )

        most = float(self.terms.abs().max())
        rows = [
            f"<td>{plain_text(f'query {self.query} {self.word!r}')}</td><td></td><td></td>"
            f"<td>{strip(self.q, float(self.q.abs().max()))}</td><td>the query itself</td>"
        ]
        for row, (key, word) in enumerate(zip(self.keys, self.words, strict=True)):
            said = ", ".join(f"{c}: {x:+.2f}" for c, x in self.strongest(key))
            rows.append(
                f"<td>{plain_text(f'key {key} {word!r}')}</td>"
                f"<td>{float(self.weights[row]):.3f}</td><td>{float(self.scores[row]):.2f}</td>"
                f"<td>{strip(self.terms[row], most)}</td><td>{said}</td>"
            )
        head = "".join(
            f"<th>{x}</th>" for x in ("", "weight", "score", f"channels 0 to {len(self.q) - 1}",
                                      "most")
        )  # fmt: skip
        body = "".join(f"<tr>{x}</tr>" for x in rows)
        return (
            f"<div><strong>{plain_text(self.name)}: what channels add to the scores of one query"
            f"</strong> (blue less, red more, up to {most:.2f})"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )
