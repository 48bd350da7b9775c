"""Colors that the page and the pictures share."""

from __future__ import annotations

import numpy as np

# From night to light, with even steps of lightness; told apart by all kinds of eyes.
RAMP = (
    (13, 12, 34), (46, 22, 87), (94, 26, 110), (145, 40, 104), (196, 63, 80), (234, 105, 52),
    (249, 162, 37), (246, 223, 92), (252, 253, 222),
)  # fmt: skip
# Okabe and Ito's palette, black left out, and two more of the same kind.
ROLE_COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8F7AE0", "#9A9A3C",
    "#7A5230",
)  # fmt: skip

# A role has its color in every run and every picture, whatever other roles a run can have.
COLOR_OF_ROLE = dict(zip(
    ("previous_token", "induction", "duplicate_token", "retrieval", "delimiter", "local", "sink",
     "next_token"), ROLE_COLORS, strict=False,
))  # fmt: skip


def role_color(name: str) -> str:
    """Return the color of a role by its name; roles of a program's own share one.

    >>> role_color("induction"), role_color("of my own")
    ('#E69F00', '#7A5230')
    """
    return COLOR_OF_ROLE.get(name, ROLE_COLORS[-1])


def ramp(levels: np.ndarray) -> np.ndarray:
    """Colors uint8 [..., 3] of bytes; the page computes the same, whole number by whole number.

    >>> ramp(np.array([0, 255], np.uint8)).tolist()
    [[13, 12, 34], [252, 253, 222]]
    """
    anchors = np.array(RAMP, np.int64)
    at = levels.astype(np.int64) * (len(RAMP) - 1)
    cell = np.minimum(len(RAMP) - 2, at // 255)
    part = (at - cell * 255)[..., None]
    mixed = anchors[cell] * (255 - part) + anchors[cell + 1] * part
    return ((mixed + 127) // 255).astype(np.uint8)


def difference(x: np.ndarray) -> np.ndarray:
    """Colors uint8 [..., 3] of numbers from -1 to 1: blue for less, red for more, grey for nothing.

    >>> difference(np.array([-1.0, 0.0, 1.0])).tolist()
    [[33, 102, 172], [235, 235, 235], [178, 24, 43]]
    """
    size = np.clip(np.abs(x), 0, 1)[..., None]
    to = np.where((x < 0)[..., None], (33, 102, 172), (178, 24, 43))
    return np.floor(235 + (to - 235) * size + 0.5).astype(np.uint8)


def levels(scale: str, maps: np.ndarray) -> np.ndarray:
    """Return how each byte of a map (log scale) is drawn, uint8 [256]; the page does the same.

    "log" as it is, "linear" by its weight, "adaptive" from the median of what is there to its
    largest, so that a stripe among thousands of tokens is seen.

    >>> levels("linear", np.zeros(1, np.uint8))[[0, 239, 255]].tolist()
    [0, 127, 255]
    """
    every = np.arange(256)
    if scale == "log":
        return every.astype(np.uint8)
    if scale == "linear":
        shares = np.where(every > 0, 2.0 ** ((every - 255) / (255 / 16)), 0.0)
        return np.floor(255 * shares + 0.5).astype(np.uint8)
    counts = np.bincount(maps.ravel(), minlength=256)
    counts[0] = 0
    sums, total = counts.cumsum(), counts.sum()
    inside = every > 0
    low = int(every[inside & (sums <= total * 0.5)].max(initial=1))
    high = int(every[inside & (sums - counts < total * 0.9995)].max(initial=1))
    high = high if total else 255
    low = max(1, min(low, high - 16))
    drawn = np.floor(255 * (every - low) / max(high - low, 1) + 0.5).clip(0, 255)
    drawn[0] = 0
    return drawn.astype(np.uint8)
