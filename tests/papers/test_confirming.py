"""One seed with the same numbers keeps evidence on new code; one number that differs ends it."""

import dataclasses

import pytest
import torch

from regard.core import method as registry
from regard.core.method import method
from regard.papers import checks as checks_module
from regard.papers import confirming, standing, trial
from regard.papers.check_runner import run
from regard.papers.checks import check
from regard.papers.claims import claim
from regard.papers.confirming import next_seed
from regard.papers.evidence_files import Confirmation, load, save
from regard.papers.standing import standing as stand
from regard.papers.trial import measure

QUOTES = ("With K = all routed", "Active heads per token", "Router-only toy", "beta=0.01 shows")


class Toy:
    """Stand in for a method."""


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Measure a toy, then change "the code": gives what it draws from, and the folder."""
    code = {"check": "aa", "method": "01", "commit": "0123456789ab", "shift": 0.0, "runs": []}
    monkeypatch.setattr(registry, "_claims", {})
    monkeypatch.setattr(checks_module, "_checks", {})
    monkeypatch.setattr(checks_module, "_load", lambda: None)
    for module in (standing, trial, confirming):
        monkeypatch.setattr(module, "hashes", lambda key: (code["check"], code["method"]))
    for module in (trial, confirming):
        monkeypatch.setattr(module, "commit", lambda: code["commit"])
    monkeypatch.setattr(standing, "discover", lambda: {})
    method("moh")(Toy)

    @check("moh")
    def claims():
        code["runs"].append(torch.initial_seed())
        for quote in QUOTES:
            drawn = float(torch.rand(())) + code["shift"] * (quote == QUOTES[-1])
            yield claim(quote, "drawn", drawn).below(9.0, "nine", because="the toy's own bound")

    save(measure("moh"), tmp_path)
    code["runs"].clear()
    return code, tmp_path


def outcome(folder):
    (last,) = [event for event in run(["moh"], folder=folder, confirm=True) if event.evidence]
    return last.what


def test_the_same_numbers_keep_the_evidence_and_say_so(measured):
    code, folder = measured
    before = load("moh", folder)
    code.update(method="02", commit="aaaaaaaaaaaa")
    assert stand("moh", folder).verdict == "stale"
    assert outcome(folder) == "confirmed"
    after = load("moh", folder)
    assert len(code["runs"]) == 1
    assert (after.method_hash, after.commit) == ("02", before.commit)
    assert [one.commit for one in after.confirmed] == ["aaaaaaaaaaaa"]
    assert after.claims == before.claims
    assert stand("moh", folder).fresh
    assert outcome(folder) == "fresh"


def test_one_number_that_differs_runs_all_five(measured):
    code, folder = measured
    code.update(method="02", shift=1e-6)
    assert outcome(folder) == "done"
    assert len(code["runs"]) == 6
    assert load("moh", folder).confirmed == []


def test_a_changed_check_runs_all_five(measured):
    code, folder = measured
    code.update(check="bb", method="02")
    assert outcome(folder) == "done"
    assert len(code["runs"]) == 5


def test_confirmed_on_code_that_no_commit_holds_counts_for_nothing(measured):
    code, folder = measured
    code.update(method="02", commit="aaaaaaaaaaaa+")
    assert outcome(folder) == "confirmed"
    assert stand("moh", folder).verdict == "dirty"


def test_after_five_confirmations_every_seed_has_run_again(measured):
    _, folder = measured
    found = load("moh", folder)
    for number in range(5):
        seed = next_seed(found, f"{number:x}7")
        found = dataclasses.replace(
            found, confirmed=[*found.confirmed, Confirmation(seed, "aaaaaaaaaaaa", "2026-01-01")]
        )
    assert sorted(one.seed for one in found.confirmed) == [0, 1, 2, 3, 4]
