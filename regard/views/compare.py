"""Two runs side by side: how far apart their heads look."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from regard.core.errors import RuleError, fail
from regard.probes.scores import name_of_head
from regard.views.run_file import Run

# A Jensen-Shannon distance that is no change: that of rounding.
LEAST = 5e-4


class Comparison(Run):
    """Two looks side by side, as a run of its own: `write_page(comparison, "change.html")`.

    >>> print(Comparison({"title": "a and b", "findings": ["no head changed"]}, {}))
    a and b
      no head changed
    """

    def __str__(self) -> str:
        said = [f"  {x}" for x in self.manifest.get("findings", [])]
        return "\n".join([str(self.manifest.get("title", "two looks")), *said])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from regard.core.html_table import html_table
        from regard.views.notebook import show_changes

        title, said = str(self.manifest.get("title", "")), self.manifest.get("findings", [])
        return html_table(title, ["what changed"], [[x] for x in said]) + show_changes(self)


def compare_runs(a: Run, b: Run) -> Comparison:
    """Build a run that shows what changed from `a` to `b`: scores, heads, maps.

    The two must have looked at the same tokens with the same heads. Distances are exact for heads
    that both keep in full; of all others, they are those of the pooled maps.
    """
    _need_alike(a, b)
    names = [str(run.manifest.get("title", "a run")) for run in (a, b)]
    shape = a.arrays["role"].shape
    distance = np.full(shape, -1.0, np.float32)
    if "thumbs" in a.arrays and "thumbs" in b.arrays:
        distance = js_distance(weights_of(a.arrays["thumbs"]), weights_of(b.arrays["thumbs"]))
    exact = 0
    for site, head, one, two in _both_in_full(a, b):
        distance[site, head] = _exact_distance(a, one, b, two)
        exact += 1
    arrays = dict(a.arrays)
    for _, _, one, two in _both_in_full(a, b):
        arrays[f"other/map/{one}"] = b.arrays[f"map/{two}"]
    for name in ("thumbs", "role", "importance"):
        if name in b.arrays:
            arrays[f"other/{name}"] = b.arrays[name]
    for name in a.manifest["scores"]:
        if f"scores/{name}" in b.arrays:
            arrays[f"change/{name}"] = b.arrays[f"scores/{name}"] - a.arrays[f"scores/{name}"]
    for s, site in enumerate(a.manifest["sites"]):
        distance[s, int(site["heads"] or 0) :] = -1
    arrays["jsd"] = distance.astype(np.float32)
    note = (
        f"Distances of {exact} heads are exact, of the others those of their maps of tiles. "
        "Same tokens, same heads."
    )
    manifest = {**a.manifest, "title": "Two runs", "compare": {"names": names, "note": note}}
    manifest["findings"] = ranked_sentences(a, distance)
    return Comparison(manifest, arrays)


def weights_of(levels: np.ndarray) -> np.ndarray:
    """Return weights of bytes on the log scale of maps; 0 stands for nothing.

    >>> weights_of(np.array([0, 255], np.uint8)).tolist()
    [0.0, 1.0]
    """
    return np.where(levels == 0, 0.0, 2.0 ** ((levels.astype(np.float64) - 255) * 16 / 255))


def js_distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Mean over rows [..., rows, keys] of the Jensen-Shannon distance, 0 for equal, 1 for apart.

    Rows are scaled to sum to 1; rows of nothing in both are left out.

    >>> js_distance(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])).item()
    1.0
    """
    there = (p.sum(-1) > 0) & (q.sum(-1) > 0)
    p, q = (x / np.maximum(x.sum(-1, keepdims=True), 1e-300) for x in (p, q))
    middle = (p + q) / 2

    def apart(x: np.ndarray) -> np.ndarray:
        safe = np.where(x > 0, x, 1.0)
        half = np.where(middle > 0, middle, 1.0)  # half of the smallest weight is nothing
        return np.where(x > 0, x * np.log2(safe / half), 0.0).sum(-1)

    each = np.sqrt(np.clip((apart(p) + apart(q)) / 2, 0, 1))
    return np.where(there, each, 0.0).sum(-1) / np.maximum(there.sum(-1), 1)


def most_changed(distance: np.ndarray, count: int = 5) -> list[tuple[int, int]]:
    """Return (site, head) of the heads that changed most, of those that changed at all.

    >>> most_changed(np.array([[0.0, 0.25], [0.5, -1.0]]))
    [(1, 0), (0, 1)]
    """
    ranked = np.argsort(-distance, axis=None)[:count].tolist()
    places = [divmod(x, distance.shape[1]) for x in ranked]
    return [(s, h) for s, h in places if distance[s, h] > LEAST]


def ranked_sentences(run: Run, distance: np.ndarray) -> list[str]:
    """Return which heads changed most; where none did, that."""
    if not (distance > LEAST).any():
        return [f"no head looks elsewhere than before (Jensen-Shannon distance below {LEAST})"]
    places = most_changed(distance)
    said = ", ".join(
        f"{name_of_head(run.manifest['sites'][s], int(h))} {distance[s, h]:.3f}" for s, h in places
    )
    return [f"heads that changed most (Jensen-Shannon distance): {said}"]


def _need_alike(a: Run, b: Run) -> None:
    sites = [[(x["module"], x["heads"]) for x in run.manifest["sites"]] for run in (a, b)]
    if sites[0] != sites[1]:
        fail(
            RuleError, "run_b", f"{len(sites[1])} sites", f"the {len(sites[0])} sites of run_a",
            "compare runs of models with the same layers and heads",
        )  # fmt: skip
    words = [run.manifest.get("tokens", []) for run in (a, b)]
    if words[0] != words[1]:
        at = next((i for i, (x, y) in enumerate(zip(*words, strict=False)) if x != y), None)
        where = f"{len(words[1])} tokens" if at is None else f"{words[1][at]!r} at {at}"
        fail(
            RuleError, "run_b", where,
            f"{len(words[0])} tokens" if at is None else f"{words[0][at]!r}, as in run_a",
            "look at the same text with both models",
        )  # fmt: skip


def _both_in_full(a: Run, b: Run) -> Iterator[tuple[int, int, int, int]]:
    places = {(d["site"], d["head"]): i for i, d in enumerate(b.manifest.get("deep", []))}
    for i, d in enumerate(a.manifest.get("deep", [])):
        other = places.get((d["site"], d["head"]))
        if other is not None and d["exact"] and b.manifest["deep"][other]["exact"]:
            yield d["site"], d["head"], i, other


def rows_of(run: Run, number: int, start: int, stop: int) -> np.ndarray:
    """Exact weights [rows, keys] of some queries of a head that was kept in full."""
    deep: dict[str, Any] = run.manifest["deep"][number]
    q = run.arrays[f"q/{number}"][start:stop].astype(np.float32)
    k = run.arrays[f"k/{deep['site']}.{deep['kv_head']}"].astype(np.float32)
    scores = q @ k.T * deep["scale"]
    if deep.get("softcap"):
        scores = deep["softcap"] * np.tanh(scores / deep["softcap"])
    weights = np.exp(scores - run.arrays[f"lse/{number}"][start:stop, None])
    if deep["causal"]:
        i = np.arange(start, stop)[:, None] + deep["offset"]
        weights = np.where(np.arange(len(k))[None] <= i, weights, 0.0)
    return weights


def _exact_distance(a: Run, one: int, b: Run, two: int) -> float:
    n, total = len(a.arrays[f"lse/{one}"]), 0.0
    for start in range(0, n, 256):
        stop = min(n, start + 256)
        rows = [rows_of(run, i, start, stop) for run, i in ((a, one), (b, two))]
        total += float(js_distance(*rows)) * (stop - start)
    return total / n
