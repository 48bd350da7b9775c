"""How kernels are launched: plain numbers, by head size. No GPU has been asked about them yet."""

from __future__ import annotations

from typing import NamedTuple


class Launch(NamedTuple):
    """Rows and columns of a program's tile of scores, its warps, and the tiles it fetches ahead."""

    rows: int
    cols: int
    warps: int
    stages: int


# First sweep of a survey: rows are queries, columns keys.
ROWS = {64: Launch(128, 128, 8, 3), 128: Launch(128, 128, 8, 3), 256: Launch(128, 64, 8, 2)}
# Second sweep: rows are keys; columns are queries, as many as a tile of the map has.
COLUMNS = {64: Launch(128, 64, 8, 3), 128: Launch(128, 64, 8, 3), 256: Launch(64, 64, 4, 2)}
# Decoding: columns are keys, rows the queries of the heads that share them.
DECODE = {64: Launch(16, 128, 4, 3), 128: Launch(16, 64, 4, 3), 256: Launch(16, 32, 4, 3)}
# Decoding packed tokens: columns are tokens, a quarter to a whole byte for each channel.
PACKED = {64: Launch(16, 128, 4, 3), 128: Launch(16, 64, 4, 3), 256: Launch(16, 32, 4, 3)}
# Programs to aim for when keys are split: three fit on each of the 132 multiprocessors of a Hopper
# GPU by registers and shared memory (as compiled), so that all run at once.
PROGRAMS = 396


def of_size(table: dict[int, Launch], size: int, itemsize: int) -> Launch:
    """Take the entry of the least head size that holds `size`; float32 takes half the columns.

    >>> of_size(DECODE, 80, 2).cols, of_size(DECODE, 80, 4).cols
    (64, 32)
    """
    known = [s for s in sorted(table) if s >= size]
    found = table[known[0] if known else max(table)]
    return found if itemsize <= 2 else found._replace(cols=max(16, found.cols // 2))


def least_power(x: int, least: int = 16) -> int:
    """Return the least power of two at or above x, and at least what a matrix product takes.

    >>> least_power(1), least_power(17)
    (16, 32)
    """
    return max(least, 1 << max(x - 1, 0).bit_length())


def splits_of(most: int, block: int, heads: int, asked: int | None = None) -> int:
    """Return in how many splits `heads` key heads (of all rows) are to read `most` keys each.

    >>> splits_of(4096, 64, 8), splits_of(4096, 64, 396), splits_of(10, 64, 1)
    (49, 1, 1)
    """
    wanted = asked or PROGRAMS // max(heads, 1)
    return max(1, min(-(-most // block), wanted))
