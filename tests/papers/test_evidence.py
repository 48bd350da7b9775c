"""Evidence is whole or absent, true to the code it was measured on, and stale when that changed."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from regard.core import method as registry
from regard.core.errors import RegardError
from regard.core.method import method
from regard.papers import checks as checks_module
from regard.papers import evidence_files, standing
from regard.papers.catalogue import rows
from regard.papers.checks import Measured, check, checks
from regard.papers.evidence_files import FOLDER, load, machine, save
from regard.papers.runner import measure
from regard.papers.standing import STATES, counts, standings
from regard.papers.standing import standing as stand

COMMITTED = sorted(path.stem for path in FOLDER.glob("*.json"))


class Toy:
    """Stand in for a method."""


@pytest.fixture
def toy(monkeypatch):
    """Claim the row `moh` by a toy whose check gives what the test says."""
    monkeypatch.setattr(registry, "_claims", {})
    monkeypatch.setattr(checks_module, "_checks", {})
    monkeypatch.setattr(checks_module, "_load", lambda: None)
    monkeypatch.setattr(standing, "discover", lambda: {})
    says = {"held": True, "matches": ""}

    def claim():
        return Measured("a claim", says["held"], {"gap": 1e-7}, matches=says["matches"])

    def prepare(*, claimed=True, checked=True):
        if claimed:
            method("moh")(Toy)
        if checked:
            check("moh")(claim)
        return says

    return prepare


def test_a_row_climbs_from_planned_to_matched(toy, tmp_path):
    says = toy(claimed=False)
    assert stand("moh", tmp_path).state == "planned"
    toy(checked=False)
    assert stand("moh", tmp_path).state == "built"
    save(measure("moh"), tmp_path)
    assert stand("moh", tmp_path).state == "shown"
    says["matches"] = "an independent implementation"
    save(measure("moh"), tmp_path)
    assert stand("moh", tmp_path).state == "matched"


def test_a_claim_that_does_not_hold_leaves_the_row_built(toy, tmp_path):
    toy()["held"] = False
    save(measure("moh"), tmp_path)
    found = stand("moh", tmp_path)
    assert (found.state, found.verdict) == ("built", "failed")


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
        return Measured("another", True)

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


def test_waiting_costs_no_seconds_of_a_processor_and_children_do(toy, monkeypatch):
    toy()
    spends = "import time\nwhile time.process_time() < 0.3: pass"

    def waits():
        time.sleep(0.5)
        return Measured("waits", True)

    def has_a_child():
        subprocess.run([sys.executable, "-c", spends], check=True)
        return Measured("has a child", True)

    made = checks_module.Check("moh", waits, False)
    monkeypatch.setitem(checks_module._checks, "moh", made)
    waited = measure("moh")
    assert waited.seconds >= 0.5 > waited.cpu_seconds + 0.2
    made = checks_module.Check("moh", has_a_child, False)
    monkeypatch.setitem(checks_module._checks, "moh", made)
    assert measure("moh").cpu_seconds >= 0.29


def test_evidence_from_before_cpu_seconds_is_read(toy, tmp_path):
    toy()
    fields = json.loads(save(measure("moh"), tmp_path).read_text())
    del fields["cpu_seconds"]
    (tmp_path / "moh.json").write_text(json.dumps(fields))
    found = load("moh", tmp_path)
    assert found.cpu_seconds is None
    assert found.cost == f"{found.seconds:.1f} s"
    assert stand("moh", tmp_path).verdict == "held"


def test_a_seed_is_the_one_asked_for(toy, monkeypatch):
    toy()

    def drawn():
        return Measured("drawn", True, {"first": float(torch.rand(()))})

    monkeypatch.setitem(checks_module._checks, "moh", checks_module.Check("moh", drawn, False))
    assert measure("moh").numbers == measure("moh", 0).numbers != measure("moh", 1).numbers


def test_a_broken_write_leaves_the_old_evidence(toy, tmp_path, monkeypatch):
    toy()
    found = measure("moh")
    save(found, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evidence_files.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save(dataclasses.replace(found, held=False), tmp_path)
    assert load("moh", tmp_path) == found
    assert os.listdir(tmp_path) == ["moh.json"]


def test_numbers_that_json_lacks_are_words(toy, tmp_path):
    toy()
    found = dataclasses.replace(measure("moh"), numbers={"a": float("inf"), "b": float("nan")})
    text = save(found, tmp_path).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["numbers"] == {"a": "inf", "b": "nan"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "key": "moh"}']
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


@pytest.mark.parametrize("key", COMMITTED)
def test_committed_evidence_is_fresh_or_shown_as_stale(key):
    found = stand(key)
    assert found.evidence is not None
    assert key in {row.key for row in rows()}
    fresh = standing.hashes(key) == (found.evidence.check_hash, found.evidence.method_hash)
    assert (found.verdict in ("held", "failed")) == fresh
    assert found.state in ("shown", "matched") or not (fresh and found.evidence.held)
    assert fresh or found.state in ("planned", "built")


@pytest.mark.parametrize("key", COMMITTED)
def test_committed_evidence_of_a_quick_check_was_quick(key):
    found = load(key)
    # CPU seconds do not grow with what else the machine does; older files have the wall's alone.
    spent = found.seconds if found.cpu_seconds is None else found.cpu_seconds
    assert found.long or spent < 60
    assert found.long == checks()[key].long
    assert found.numbers
    assert found.claim
