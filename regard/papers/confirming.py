"""Confirm old evidence on new code: one seed again, and every number as it was.

A refactoring makes the evidence of nearly every row stale, and five seeds of all of them take two
hours of a processor. A seed decides everything that a check draws, so code that gives the numbers
of one seed again is the code that was measured, as far as this check can tell; where one number
differs, all five seeds are due. The check itself may not have changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from regard.papers.claims import Claim, Number
from regard.papers.evidence_files import (
    FOLDER,
    Confirmation,
    Evidence,
    MeasuredClaim,
    commit,
    versions,
)
from regard.papers.standing import CODE_CHANGED, hashes, standing
from regard.papers.trial import claims_of_seeds, today

# Numbers are the same when they differ by less than rounding of their file.
CLOSE = 1e-9


def confirm(key: str, folder: Path = FOLDER) -> Evidence | None:
    """Run one seed of a row again; give its evidence, now of this code, or None where it differs.

    None too where one seed cannot speak for five: without evidence, after a change of the check
    or of the versions that the numbers depend on.
    """
    found = standing(key, folder)
    old = found.evidence
    if old is None or (found.verdict, found.why) != ("stale", CODE_CHANGED):
        return None
    if old.versions != versions() or old.pinned:
        return None
    check_hash, method_hash = hashes(key)
    seed = next_seed(old, method_hash)
    (claims,), pinned = claims_of_seeds(key, [seed])
    if pinned or not same(old.claims, claims, old.seeds.index(seed)):
        return None
    note = Confirmation(seed, commit(), today())
    return replace(
        old,
        confirmed=[*old.confirmed, note],
        check_hash=check_hash,
        method_hash=method_hash,
    )


def next_seed(evidence: Evidence, method_hash: str) -> int:
    """Choose the seed to run again: one of those least often confirmed, drawn by the code's hash.

    Nobody picks it, and after five confirmations every seed has run again.
    """
    times = dict.fromkeys(evidence.seeds, 0)
    for one in evidence.confirmed:
        times[one.seed] += 1
    waiting = [seed for seed, count in times.items() if count == min(times.values())]
    return waiting[int(method_hash, 16) % len(waiting)]


def same(old: Sequence[MeasuredClaim], new: Sequence[Claim], index: int) -> bool:
    """Say whether claims of one seed are those that were measured, number by number."""
    if len(old) != len(new):
        return False
    return all(
        (was.says, was.relation, was.against, was.over)
        == (now.says, now.relation, now.against, now.over)
        and _equal(was.measured[index], now.measured)
        and _equal(was.comparator[index], now.comparator)
        and _equal(was.bound[index], now.bound)
        for was, now in zip(old, new, strict=True)
    )


def _equal(was: Number, now: Number) -> bool:
    if isinstance(was, str) and isinstance(now, float):  # infinities and NaN, as files hold them
        return was == repr(now)
    if isinstance(was, str | bool) or isinstance(now, str | bool):
        return was == now
    return math.isclose(was, now, rel_tol=CLOSE, abs_tol=CLOSE * CLOSE)
