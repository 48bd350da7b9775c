"""Checks whose code changed still hold what they held; the rest is for the night."""

import os
import time

import pytest

from regard.papers.check_runner import cheapest_first
from regard.papers.checks import checks
from regard.papers.evidence_files import load
from regard.papers.standing import discover, standing
from regard.papers.trial import measure

discover()
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
# CPU seconds of one process: of what has changed, the cheapest checks are run until they are spent.
BUDGET = 45.0
LONG = [key for key, one in checks().items() if one.long]
QUICK = cheapest_first([key for key in checks() if key not in LONG])
DUE = [*QUICK, *LONG] if NIGHTLY else [key for key in QUICK if not standing(key).fresh]
spent = 0.0


@pytest.mark.parametrize("key", DUE)
def test_a_changed_check_holds_what_it_held(key):
    """One seed; evidence that counts is measured over five by `regard papers check`."""
    global spent
    if spent > BUDGET and not NIGHTLY:
        pytest.skip("the budget of this run is spent; `make nightly` runs every check")
    begun = time.process_time()
    found, before = measure(key, [0]), load(key)
    spent += time.process_time() - begun
    assert found.pinned == []
    assert found.unanswered == []
    held = {(one.answers, one.says) for one in before.claims if one.held} if before else set()
    broken = [
        (one.says, one.measured, one.relation, one.bound)
        for one in found.claims
        if not one.held and one.over == "every seed" and (one.answers, one.says) in held
    ]
    assert not broken


def test_quick_checks_are_quick():
    slow = [key for key in QUICK if (found := load(key)) is not None and found.cpu_seconds > 60]
    assert not slow, "mark them long"
