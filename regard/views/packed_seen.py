"""What was seen, as a run: a manifest in words and numbers, and arrays."""

from __future__ import annotations

import datetime
import platform
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from regard.models.site import Site
from regard.probes.maps import Drawn, log_scale
from regard.views.roles import ROLES
from regard.views.rollout import packed_rollout
from regard.views.run_file import Run
from regard.views.seen import Seen
from regard.views.sound import frames_of
from regard.views.word_maps import packed_words


def packed_seen(seen: Seen) -> Run:
    """Pack what was seen; see `docs/run-file.md` for the names of the arrays."""
    names, roles = seen.role_names, seen.roles.first()
    arrays: dict[str, np.ndarray] = {}
    for name, scores in seen.scores.items():
        arrays[f"scores/{name}"] = scores.array(list(seen.sites))
    wide = max((site.heads or 0 for site in seen.sites), default=0)
    role = np.full((len(seen.sites), wide), -1, np.int8)
    for (site, head), name in roles.items():
        if site in seen.sites:
            role[list(seen.sites).index(site), head] = names.index(name)
    arrays["role"], arrays["importance"] = role, seen.importance().astype(np.float32)
    side = max((max(d.tiles.shape[-2:]) for d in seen.drawn.values()), default=0)
    thumbs = np.zeros((len(seen.sites), wide, side, side), np.uint8)
    described = []
    frames = frames_of(seen.drawn) if seen.sound else {}
    for row, site in enumerate(seen.sites):
        drawn = seen.drawn.get(site)
        if drawn is not None and site in frames:
            drawn = replace(drawn, patches=frames[site])
        about = _described(site, drawn, len(seen.words))
        described.append({"tower": seen.towers[site], **about})
        if drawn is not None:
            h, t, s = drawn.tiles.shape
            thumbs[row, :h, :t, :s] = log_scale(drawn.tiles)
            arrays[f"entropy/{row}"] = drawn.entropy.half().numpy()
            arrays[f"received/{row}"] = drawn.received.half().numpy()
    if side:
        arrays["thumbs"] = thumbs
    entries = []
    telling = [(x.site, x.head) for x in seen.most_telling()]
    for number, deep in enumerate(seen.deep):
        row = list(seen.sites).index(deep.site)
        entries.append(
            {"site": row, "head": deep.head, "kv_head": deep.kv_head, "tile": deep.tile,
             "telling": _place(telling, (deep.site, deep.head), number), **deep.facts}
        )  # fmt: skip
        arrays[f"map/{number}"] = log_scale(deep.map)
        arrays[f"q/{number}"], arrays[f"lse/{number}"] = deep.q.numpy(), deep.lse.numpy()
        arrays[f"k/{row}.{deep.kv_head}"] = deep.k.numpy()
    if seen.image is not None:
        arrays["image"] = seen.image
    words = None
    if seen.words_seen is not None:
        words, maps = packed_words(seen.words_seen)
        arrays |= maps
    rollout = None
    if seen.rollout is not None:
        rollout, arrays["rollout"] = packed_rollout(seen.rollout)
    grid = next((site.grid for site in seen.sites if site.grid), None)
    manifest = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "title": seen.model.get("name", "model")
        + (f", {len(seen.words):,} tokens" if seen.words else ""),
        "model": dict(seen.model), "made_from": dict(seen.made_from), "versions": versions(),
        "tokens": list(seen.words),
        "modality": "sound" if seen.sound else "image" if seen.image is not None else "text",
        "grid": None if grid is None else list(grid), "sites": described,
        "scores": {
            name: {"title": x.title, "definition": x.source or x.definition,
                   "low": x.low, "high": x.high, "chance": x.level(), "tokens": x.tokens}
            for name, x in seen.scores.items()
        },
        "roles": [{"name": n, "title": seen.scores[n].title, "threshold": ROLES[n]}
                  for n in names],
        "findings": seen.findings(), "deep": entries, "asked": seen.asked, "words": words,
        "rollout": rollout,
    }  # fmt: skip
    return Run(manifest, arrays)


def _place(telling: list[tuple[Site, int]], head: tuple[Site, int], number: int) -> int:
    """How early a head is shown: those that tell most come first."""
    return telling.index(head) if head in telling else len(telling) + number


def _described(site: Site, drawn: Drawn | None, words: int) -> dict[str, Any]:
    n = None if drawn is None else drawn.n
    patches = None if drawn is None else drawn.patches
    grid = site.grid if patches is None else patches.grid
    return {
        "layer": site.layer, "kind": site.kind, "module": site.module, "heads": site.heads,
        "kv_heads": site.kv_heads, "head_size": site.head_size, "causal": site.causal,
        "queries": n, "keys": None if drawn is None else drawn.m,
        "grid": None if grid is None else list(grid),
        "patches": None if patches is None else {
            "queries": patches.queries, "keys": patches.keys,
            # Whether the other tokens are those of the text.
            "words": bool(words) and site.grid is None and words in (n, drawn.m if drawn else None),
        },
        "tile": None if drawn is None else drawn.tile,
        "rule": "" if drawn is None else repr(drawn.rule)[:200],
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of what a run was made with."""
    import sys

    from regard import __version__

    found = {
        "regard": __version__, "torch": torch.__version__,
        "python": platform.python_version(),
    }  # fmt: skip
    for name in ("transformers", "diffusers", "timm"):
        if name in sys.modules:
            found[name] = getattr(sys.modules[name], "__version__", "")
    return found


__all__ = ["packed_seen", "versions"]
