"""What a page carries of a run, so that it can be sent: arrays as text, and heads up to a budget.

A page takes at most 3 MB for 2,048 tokens and less, and 25 MB for 32,768, in a straight line in
between. Queries and keys fill it: at 3,138 tokens those of one head of 64 channels take 0.9 MB. Of
heads that nobody asked for it carries as many as fit, the most telling first, and of the others the
map alone; heads that were asked for are all in it, whatever they take. The run file has everything.
"""

from __future__ import annotations

import gzip
import html

import numpy as np

from regard.views.run_file import Run

# Bytes of a page: at so many tokens and less, and at so many.
FEW, MANY = (2048, 3_000_000), (32_768, 25_000_000)
# Entropy and received weight are drawn 36 pixels thick on at most 560: of a head whose every weight
# is in the page one for each token, of others the largest of some, so many in all.
MARGINS, BINS = ("entropy", "received"), 512
# Margins are a byte each, in even steps up to their largest, or in steps of OCTAVES / 255 below it.
LEVELS = {"entropy": "even", "received": "octaves"}
OCTAVES = 24
# Digits to the base 85, a quarter more than the bytes (to the base 64 they are a third more). None
# of them means something in HTML; `data.js` has the same.
CHARACTERS = np.array([x for x in range(33, 127) if chr(x) not in "\"$&'/<>\\`"], np.uint8)


def budget(tokens: int) -> int:
    """Return how many bytes the page of a text of so many tokens may take.

    >>> budget(100), budget(2048), budget(3138), budget(32_768)
    (3000000, 3000000, 3780598, 25000000)
    """
    (few, low), (many, high) = FEW, MANY
    return low + max(0, tokens - few) * (high - low) // (many - few)


def elements(run: Run, room: float) -> tuple[Run, list[str]]:
    """Return a run as its page has it, and its arrays as elements of HTML.

    `room` is what all of it may take in bytes, at least one head in full aside.
    """
    heavy = {"q", "k", "lse"}
    light = {x: y for x, y in run.arrays.items() if x.partition("/")[0] not in {*heavy, *MARGINS}}
    made = {name: element(name, x) for name, x in light.items()}
    deep = [dict(entry) for entry in run.manifest.get("deep") or []]
    margins = {name: _pooled(name, x, run) for name, x in run.arrays.items()
               if name.partition("/")[0] in MARGINS}  # fmt: skip
    left = room - sum(len(x) for x in (*made.values(), *margins.values()))
    order = sorted(range(len(deep)), key=lambda number: deep[number].get("telling", number))
    asked, kept = bool(run.manifest.get("asked")), 0
    for number in order:
        entry = deep[number]
        if not entry["exact"]:
            continue  # no weight could be computed from them
        names = [f"q/{number}", f"lse/{number}", f"k/{entry['site']}.{entry['kv_head']}"]
        more = {
            name: element(name, run.arrays[name])
            for name in names if name in run.arrays and name not in made
        }  # fmt: skip
        more |= _rows(entry["site"], entry["head"], run)
        cost = sum(len(x) for x in more.values())
        if kept and not asked and cost > left:
            entry["exact"], entry["left_out"] = False, True
            continue
        made |= more
        left, kept = left - cost, kept + 1
    manifest = {**run.manifest, "deep": deep} if "deep" in run.manifest else run.manifest
    return Run(manifest, run.arrays), [*made.values(), *margins.values()]


def element(name: str, x: np.ndarray, each: int = 1) -> str:
    """Return an array as text in a script element that no browser runs."""
    kind, shape = x.dtype.name, ",".join(map(str, x.shape))
    more, how = f' data-each="{each}"' if each > 1 else "", LEVELS.get(name.partition("/")[0])
    if how is not None:
        x = np.nan_to_num(x.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        most = max(float(x.max(initial=0.0)), 1e-30)
        with np.errstate(divide="ignore"):
            part = x / most if how == "even" else 1 + np.log2(x / most) / OCTAVES
        x = (255 * part.clip(0, 1)).round().astype(np.uint8)
        kind, more = x.dtype.name, f'{more} data-levels="{how}" data-most="{most!r}"'
    elif kind == "float16" and x.ndim == 2:
        # Channel by channel, signs and exponents before the rest: these are alike, and pack.
        bits = np.ascontiguousarray(x.T).view(np.uint16)
        x = np.stack([bits >> 8, bits & 255]).astype(np.uint8)
        more += " data-planes"
    packed = gzip.compress(np.ascontiguousarray(x).tobytes(), 6, mtime=0)
    return (
        f'<script type="text/plain" id="a:{html.escape(name)}" data-type="{kind}" '
        f'data-shape="{shape}" data-bytes="{len(packed)}"{more}>{as_text(packed)}</script>'
    )


def as_text(data: bytes) -> str:
    """Return bytes as text, each four as five characters that HTML takes as they are.

    >>> as_text(bytes(4)), as_text(b"text"), len(as_text(bytes(5)))
    ('!!!!!', 'MJofD', 10)
    """
    words = np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)
    digits = np.stack([words // 85**place % 85 for place in (4, 3, 2, 1, 0)], -1)
    return CHARACTERS[digits].tobytes().decode("ascii")


def _pooled(name: str, x: np.ndarray, run: Run) -> str:
    """A margin of all heads of a site; of patches, which are shown one by one, every number."""
    site = run.manifest["sites"][int(name.partition("/")[2])]
    each = 1 if site.get("patches") else -(-x.shape[1] // BINS)
    if each == 1:
        return element(name, x)
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % each)))
    return element(name, padded.reshape(len(x), -1, each).max(-1), each)


def _rows(site: int, head: int, run: Run) -> dict[str, str]:
    """The margins of one head, token by token, where those of its site are not."""
    found = {}
    for kind in MARGINS:
        x = run.arrays.get(f"{kind}/{site}")
        if x is not None and x.shape[1] > BINS and not run.manifest["sites"][site].get("patches"):
            name = f"{kind}/{site}.{head}"
            found[name] = element(name, x[head])
    return found
