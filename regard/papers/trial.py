"""Measure one row: its check once for each seed, and the claims of all seeds together."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Sequence

from regard.core.errors import RuleError, fail
from regard.papers import seeding
from regard.papers.catalogue import row
from regard.papers.checks import checks
from regard.papers.claims import (
    Claim,
    from_the_catalogue,
    holds,
    sentence_of,
    sentences,
)
from regard.papers.evidence_files import SEEDS, Evidence, MeasuredClaim, commit, machine, versions
from regard.papers.standing import hashes


def measure(key: str, seeds: Sequence[int] = SEEDS) -> Evidence:
    """Run the check of one row here and now, once for each seed, and return what it measured."""
    made = checks()[key]
    begun, used = time.perf_counter(), cpu_seconds()
    runs, pinned = claims_of_seeds(key, seeds)
    seconds, used = time.perf_counter() - begun, cpu_seconds() - used
    asked = row(key).check or ""
    check_hash, method_hash = hashes(key)
    claims = together(key, runs, asked)
    answered = {one.answers for one in claims}
    narrowed = {sentence_of(words, asked): why for words, why in made.narrowed.items()}
    left_out = {sentence_of(words, asked): why for words, why in made.left_out.items()}
    return Evidence(
        key=key,
        claims=claims,
        narrowed=narrowed,
        left_out=left_out,
        unanswered=[one for one in sentences(asked) if one not in answered | left_out.keys()],
        beyond=made.beyond,
        pinned=pinned,
        same=made.same,
        seeds=list(seeds),
        long=made.long,
        seconds=round(seconds / len(seeds), 3),
        cpu_seconds=round(used / len(seeds), 3),
        date=today(),
        machine=machine(),
        versions=versions(),
        commit=commit(),
        check_hash=check_hash,
        method_hash=method_hash,
    )


def claims_of_seeds(key: str, seeds: Sequence[int]) -> tuple[list[list[Claim]], list[str]]:
    """Run the check of one row once for each seed; give its claims, and seeds of its own."""
    runs: list[list[Claim]] = []
    pinned: list[str] = []
    for seed in seeds:
        seeding.begin(seed)
        with seeding.watched() as found:
            runs.append(list(checks()[key].function()))
        pinned += [one for one in found if one not in pinned]
    return runs, pinned


def today() -> str:
    """Give the date, of UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def together(key: str, runs: Sequence[Sequence[Claim]], asked: str) -> list[MeasuredClaim]:
    """Join the claims of several seeds: the same ones, in the same order, in each."""
    names = [[(one.answers, one.says) for one in run] for run in runs]
    if any(each != names[0] for each in names) or len(set(names[0])) != len(names[0]):
        fail(
            RuleError,
            key,
            "claims that differ from seed to seed, or two of one name",
            "the same claims from every seed, each named differently",
            "yield every claim, whatever was measured",
        )
    found = []
    for claims in zip(*runs, strict=True):
        one = claims[0]
        sentence = sentence_of(one.answers, asked)
        if not from_the_catalogue(one, sentence):
            fail(
                RuleError,
                key,
                f"a threshold of {one.bound} as the catalogue's",
                f"a number of its sentence: {sentence}",
                "use the catalogue's number, or say why another, and that it narrows the sentence",
            )
        found.append(
            MeasuredClaim(
                answers=sentence,
                says=one.says,
                relation=one.relation,
                against=one.against,
                because=one.because,
                over=one.over,
                independent=one.independent,
                held=holds(claims),
                measured=[each.measured for each in claims],
                comparator=[each.comparator for each in claims],
                bound=[each.bound for each in claims],
                margin=[each.margin for each in claims],
            )
        )
    return found


def cpu_seconds() -> float:
    """Seconds that processors spent on this process and on children that have ended.

    Every thread counts, and waiting does not: on a busy machine it is what it is on a quiet one.
    """
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system
