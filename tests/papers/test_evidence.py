"""Evidence is whole or absent, true to the code it was measured on, and stale when that changed."""

import dataclasses
import json
import os
import random
import socket
import subprocess
import sys
import time
import types

import numpy
import pytest
import torch

from regard.core import method as registry
from regard.core.errors import RegardError
from regard.core.method import method
from regard.papers import checks as checks_module
from regard.papers import evidence_files, seeding, standing, trial
from regard.papers.catalogue import rows
from regard.papers.checks import check, checks
from regard.papers.claims import claim
from regard.papers.evidence_files import FOLDER, load, machine, save
from regard.papers.standing import STATES, counts, standings
from regard.papers.standing import standing as stand
from regard.papers.trial import measure

COMMITTED = sorted(path.stem for path in FOLDER.glob("*.json"))


QUOTES = ("With K = all routed", "Active heads per token", "Router-only toy", "beta=0.01 shows")


class Toy:
    """Stand in for a method."""


@pytest.fixture
def toy(monkeypatch):
    """Claim the row `moh` by a toy whose check measures what the test says."""
    monkeypatch.setattr(registry, "_claims", {})
    monkeypatch.setattr(checks_module, "_checks", {})
    monkeypatch.setattr(checks_module, "_load", lambda: None)
    for module in (standing, trial):
        monkeypatch.setattr(module, "hashes", lambda key: ("check", "method"))
    monkeypatch.setattr(standing, "discover", lambda: {})
    monkeypatch.setattr(trial, "commit", lambda: "0123456789ab")
    says = {"numbers": [1.0] * 4, "quotes": QUOTES, "independent": False}

    def claims():
        for quote, number in zip(says["quotes"], says["numbers"], strict=False):
            yield claim(quote, "toy", number).equals(1.0, "one", independent=says["independent"])

    def prepare(*, claimed=True, checked=True, **about):
        if claimed:
            method("moh")(Toy)
        if checked:
            checks_module._checks.clear()
            check("moh", **about)(claims)
        return says

    return prepare


def test_a_row_climbs_from_planned_to_matched(toy, tmp_path):
    says = toy(claimed=False)
    assert stand("moh", tmp_path).state == "planned"
    toy(checked=False)
    assert stand("moh", tmp_path).state == "built"
    save(measure("moh"), tmp_path)
    assert stand("moh", tmp_path).state == "shown"
    says["independent"] = True
    save(measure("moh"), tmp_path)
    assert stand("moh", tmp_path).state == "matched"


@pytest.mark.parametrize(
    ("numbers", "state"), [([0.0] * 4, "failed"), ([1.0, 1.0, 0.0, 1.0], "partly")]
)
def test_a_claim_that_does_not_hold_is_never_shown(toy, tmp_path, numbers, state):
    toy()["numbers"] = numbers
    save(measure("moh"), tmp_path)
    found = stand("moh", tmp_path)
    assert found.state == found.verdict == state
    assert "failed: toy" in found.why


@pytest.mark.parametrize("word", ["narrowed", "left_out"])
def test_what_is_narrowed_or_left_out_makes_a_row_partly(toy, tmp_path, word):
    says = toy(**{word: {QUOTES[3]: "for a reason"}})
    if word == "left_out":
        says["quotes"] = QUOTES[:3]
    save(measure("moh"), tmp_path)
    found = stand("moh", tmp_path)
    assert found.state == "partly"
    assert found.why == f"{word.replace('_', ' ')}: for a reason"


def test_a_sentence_without_an_answer_counts_for_nothing(toy, tmp_path):
    toy()["quotes"] = QUOTES[:3]
    save(measure("moh"), tmp_path)
    found = stand("moh", tmp_path)
    assert (found.state, found.verdict) == ("built", "unanswered")
    assert "beta=0.01" in found.why


@pytest.mark.parametrize(
    ("field", "value", "verdict"),
    [
        ("commit", "0123456789ab+", "dirty"),
        ("commit", "", "dirty"),
        ("pinned", ["regard.papers.checks.moh: 0"], "pinned"),
        ("seeds", [0, 1, 2, 3], "few seeds"),
        ("seeds", [0, 0, 0, 0, 0], "few seeds"),
    ],
)
def test_evidence_that_nobody_could_believe_counts_for_nothing(
    toy, tmp_path, field, value, verdict
):
    toy()
    save(dataclasses.replace(measure("moh"), **{field: value}), tmp_path)
    found = stand("moh", tmp_path)
    assert (found.state, found.verdict) == ("built", verdict)
    assert found.fresh == (verdict != "dirty")


def test_the_same_claims_have_to_come_from_every_seed(toy):
    says = toy()
    calls = []

    def once():
        calls.append(1)
        yield claim(QUOTES[0], f"of call {len(calls)}", 1.0).equals(1.0, "one")

    checks_module._checks.clear()
    check("moh")(once)
    with pytest.raises(RegardError, match="differ from seed to seed"):
        measure("moh")

    def twice():
        for _ in "ab":
            yield claim(QUOTES[0], "toy", 1.0).equals(1.0, "one")

    checks_module._checks.clear()
    check("moh")(twice)
    with pytest.raises(RegardError, match="two of one name"):
        measure("moh")
    assert says


def test_the_runner_owns_all_randomness(toy):
    toy()

    def drawn():
        numbers = (torch.rand(()), numpy.random.rand(), random.random(), seeding.seed())
        for quote, number in zip(QUOTES, numbers, strict=True):
            yield claim(quote, "drawn", float(number)).above(-1, "anything")

    checks_module._checks.clear()
    check("moh")(drawn)
    first, again = measure("moh"), measure("moh")
    assert first.claims == again.claims
    assert all(len(set(one.measured)) == 5 for one in first.claims)
    assert measure("moh", range(5, 10)).claims != first.claims
    assert first.pinned == []


def test_a_seed_of_its_own_is_noticed(toy):
    toy()

    def pinned():
        yield claim(QUOTES[0], "a", float(torch.rand(2)[0])).above(-1, "anything")
        torch.manual_seed(3)
        torch.Generator().manual_seed(4)
        yield claim(QUOTES[1], "b", float(torch.rand(()))).above(-1, "anything")

    # As if the function stood in the file of its row.
    here = {**globals(), "__name__": "regard.papers.checks.moh"}
    function = types.FunctionType(pinned.__code__, here, closure=pinned.__closure__)
    checks_module._checks.clear()
    check("moh")(function)
    found = measure("moh")
    assert found.pinned == ["regard.papers.checks.moh: 3", "regard.papers.checks.moh: 4"]
    assert len(set(found.claims[1].measured)) == 1


def test_a_stream_of_the_runners_seed_has_a_name():
    seeding.begin(1)
    seeding.restart("nets")
    first = torch.rand(3)
    torch.rand(7)
    seeding.restart("nets")
    assert torch.equal(torch.rand(3), first)
    seeding.restart("data")
    assert not torch.equal(torch.rand(3), first)
    seeding.begin(2)
    seeding.restart("nets")
    assert not torch.equal(torch.rand(3), first)
    assert len({seeding.seed() for _ in range(20)}) == 20
    assert min(seeding.seed() for _ in range(20)) >= seeding.SMALLEST


def test_evidence_without_a_claim_shows_nothing(toy, tmp_path):
    toy(claimed=False)
    save(measure("moh"), tmp_path)
    found = stand("moh", tmp_path)
    assert (found.state, found.verdict) == ("planned", "stale")


@pytest.mark.parametrize("part", ["check_hash", "method_hash"])
def test_evidence_of_other_code_is_stale(toy, tmp_path, part):
    toy()
    save(dataclasses.replace(measure("moh"), **{part: "0" * 16}), tmp_path)
    found = stand("moh", tmp_path)
    assert (found.state, found.verdict) == ("built", "stale")
    assert "changed" in found.why


def test_evidence_whose_check_is_gone_is_stale(toy, tmp_path, monkeypatch):
    toy()
    save(measure("moh"), tmp_path)
    monkeypatch.setattr(checks_module, "_checks", {})
    assert stand("moh", tmp_path).verdict == "stale"


def test_a_paper_for_reading_claims_nothing(toy, tmp_path):
    toy()
    for one in rows(kind="reading")[:3]:
        assert stand(one.key, tmp_path).state == "reading"


def test_one_row_has_one_check(toy):
    toy()

    def another():
        yield claim(QUOTES[0], "another", 1.0).equals(1.0, "one")

    with pytest.raises(RegardError, match="a row without a check"):
        check("moh")(another)


def test_counts_add_up():
    lines = counts(standings())
    assert sum(sum(line.values()) for line in lines.values()) == 390
    assert all(tuple(line) == STATES for line in lines.values())
    assert lines["reading"]["reading"] == 59


def test_evidence_comes_back_as_it_was_saved(toy, tmp_path):
    toy()
    found = measure("moh")
    save(found, tmp_path)
    assert load("moh", tmp_path) == found
    assert load("mqa", tmp_path) is None


def test_waiting_costs_no_seconds_of_a_processor_and_children_do(toy):
    toy()
    spends = "import time\nwhile time.process_time() < 0.3: pass"

    def waits():
        time.sleep(0.1)
        yield claim(QUOTES[0], "waits", 1.0).equals(1.0, "one")

    def has_a_child():
        subprocess.run([sys.executable, "-c", spends], check=True)
        yield claim(QUOTES[0], "has a child", 1.0).equals(1.0, "one")

    for function in (waits, has_a_child):
        checks_module._checks.clear()
        check("moh")(function)
        found = measure("moh")
        if function is waits:
            assert found.seconds >= 0.1 > found.cpu_seconds + 0.05
        else:
            assert found.cpu_seconds >= 0.29  # of a seed


def test_a_broken_write_leaves_the_old_evidence(toy, tmp_path, monkeypatch):
    toy()
    found = measure("moh")
    save(found, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evidence_files.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save(dataclasses.replace(found, beyond="more"), tmp_path)
    assert load("moh", tmp_path) == found
    assert os.listdir(tmp_path) == ["moh.json"]


def test_numbers_that_json_lacks_are_words(toy, tmp_path):
    toy()["numbers"] = [float("inf"), float("nan"), 1.0, 1.0]
    text = save(measure("moh"), tmp_path).read_text()
    claims = json.loads(text, parse_constant=pytest.fail)["claims"]
    assert [one["measured"][0] for one in claims] == ["inf", "nan", 1.0, 1.0]
    assert [one["held"] for one in claims] == [False, False, True, True]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 2, "key": "moh"}']
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, text):
    (tmp_path / "moh.json").write_text(text)
    with pytest.raises(RegardError, match=r"moh\.json.*--again"):
        load("moh", tmp_path)


def test_evidence_names_the_machine_by_kind_and_not_by_name():
    found = machine()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert socket.gethostname() not in map(str, found.values())


def test_evidence_of_one_verdict_and_one_seed_is_none(tmp_path):
    (tmp_path / "moh.json").write_text('{"format": 1, "key": "moh", "held": true}')
    assert load("moh", tmp_path) is None
    assert stand("moh", tmp_path).verdict == "none"


@pytest.mark.parametrize("key", COMMITTED)
def test_committed_evidence_is_of_a_row_with_a_check(key):
    found = stand(key)
    assert key in checks()
    assert found.verdict in ("none", "held", "partly", "failed", "stale")
    assert (found.state in ("shown", "matched")) == (found.verdict == "held")
