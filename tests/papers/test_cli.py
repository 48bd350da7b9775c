"""The shell says what was asked, as a table or as JSON, and errors in one line."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from regard import cli
from regard.papers.catalogue import rows


@pytest.fixture
def shell(capsys, monkeypatch):
    """Run `regard ...`; give exit code, output, and what went to standard error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["regard", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def test_every_paper_is_listed(shell):
    code, out, _ = shell("papers", "--json")
    assert code == 0
    assert [one["key"] for one in json.loads(out)] == [row.key for row in rows()]


def test_filters(shell):
    _, out, _ = shell("papers", "--kind", "kernel", "--family", "linear attention", "--json")
    assert {one["key"] for one in json.loads(out)} == {
        "lightning_attention",
        "lightning_attention_2",
    }
    _, out, _ = shell("papers", "--state", "reading", "--json")
    assert len(json.loads(out)) == 59


def test_the_table_keeps_keys_whole(shell):
    _, out, _ = shell("papers", "--kind", "kernel")
    assert "lightning_attention_2" in out
    assert "9 papers" in out


def test_search_finds_and_explains(shell):
    _, out, _ = shell("papers", "search", "share", "kv", "across", "layers", "-n", "3", "--json")
    found = {one["key"]: one["words"] for one in json.loads(out)}
    assert found["mlkv"] == found["kv_sharer"] == ["share", "kv", "layers"]  # both do it
    assert "mlkv" in shell("papers", "search", "share kv across layers")[1]
    assert "nothing found" in shell("papers", "search", "xyzzyplugh")[1]


def test_like(shell):
    _, out, _ = shell("papers", "like", "moh", "--json")
    assert "mae_attentive_experts" in [one["key"] for one in json.loads(out)]


def test_show_and_its_short_form(shell):
    code, out, _ = shell("papers", "show", "cog_attention")
    assert code == 0
    for part in ("What it is", "How to call it", "regard/core/weigh.py:", "What would show"):
        assert part in out
    assert shell("papers", "cog_attention")[1] == out
    one = json.loads(shell("papers", "show", "cog_attention", "--json")[1])
    assert one["code"][0]["place"] == "core"
    assert "nothing of it is built" in shell("papers", "your_brain_on_chatgpt")[1]


def test_status(shell):
    _, out, _ = shell("papers", "status", "--json")
    assert sum(sum(line.values()) for line in json.loads(out)["counts"].values()) == 390
    assert shell("papers", "status", "--markdown")[1].startswith("| kind | rows | planned |")
    assert "all" in shell("papers", "status")[1]


def test_check_writes_evidence_and_then_passes_it_by(shell, tmp_path, monkeypatch):
    from regard.papers import trial

    monkeypatch.setattr(trial, "commit", lambda: "0123456789ab")
    words = ("papers", "check", "dpo_prefix_sharing", "--jobs", "1", "--evidence", str(tmp_path))
    code, out, _ = shell(*words, "--json")
    (first,) = json.loads(out)
    assert (code, first["what"]) == (0, "done")
    assert first["evidence"]["seeds"] == [0, 1, 2, 3, 4]
    (second,) = json.loads(shell(*words, "--json")[1])
    assert second["what"] == "fresh"
    assert second["evidence"] == first["evidence"]
    assert shell(*words, "--stale", "--json")[1].strip() == "[]"
    (other,) = json.loads(shell(*words, "--seeds", "2", "--from", "100", "--json")[1])
    assert (other["what"], other["evidence"]["seeds"]) == ("done", [100, 101])
    assert json.loads((tmp_path / "dpo_prefix_sharing.json").read_text())["seeds"][0] == 0


def test_a_claim_that_does_not_hold_is_exit_code_one(shell, tmp_path, monkeypatch):
    from regard.papers import trial
    from regard.papers.checks import Check, checks
    from regard.papers.claims import claim

    def not_so():
        yield claim("Per-answer", "gap", 1.0).equals(0.0, "none")

    made = {**checks(), "dpo_prefix_sharing": Check("dpo_prefix_sharing", not_so)}
    monkeypatch.setattr(trial, "checks", lambda: made)
    monkeypatch.setattr(trial, "commit", lambda: "0123456789ab")
    words = ("papers", "check", "dpo_prefix_sharing", "-j", "1", "--evidence", str(tmp_path))
    code, _, err = shell(*words)
    assert code == 1
    assert "unanswered dpo_prefix_sharing" in err
    assert "gap (failed): 1; asked: equals 0: none" in err


def test_an_interrupt_says_what_is_kept(shell, monkeypatch):
    from regard.papers import check_runner

    def stopped(keys, **_):
        yield check_runner.Event(keys[0], "started")
        yield check_runner.Event(keys[0], "broke", trace="toy")
        raise KeyboardInterrupt

    monkeypatch.setattr(check_runner, "run", stopped)
    code, _, err = shell("papers", "check", "gna", "flashbias")
    assert code == 130
    assert "1 of 2 done and kept" in err


def test_the_list_of_checks(shell, tmp_path):
    _, out, _ = shell("papers", "check", "--list", "--json", "--evidence", str(tmp_path))
    (one,) = [each for each in json.loads(out) if each["key"] == "cog_attention"]
    assert (one["long"], one["evidence"]) == (False, "none")


def test_docs(shell, tmp_path):
    _, out, _ = shell("papers", "docs", "--to", str(tmp_path / "pages"), "--json")
    assert json.loads(out)["pages"] == len(list((tmp_path / "pages").iterdir())) == 391


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("papers", "show", "mhoo"), "near: moh"),
        (("papers", "mhoo"), "near: moh"),
        (("papers", "like", "mhoo"), "near: moh"),
        (("papers", "--kind", "vison"), "near: vision"),
        (("papers", "--state", "show"), "near: shown"),
        (("papers", "search", "?"), "at least one word"),
        (("papers", "check"), "rows, or --all"),
        (("papers", "check", "moh", "--all"), "rows, or --all"),
        (("papers", "check", "your_brain_on_chatgpt"), "a row that has a check"),
        (("papers", "check", "gna", "--jobs", "-1"), "at least 1"),
        (("papers", "check", "gna", "--seeds", "0"), "at least one"),
        (("papers", "check", "gna", "--budget", "soon"), "30m"),
        (("papers", "docs", "--readme", "nowhere.md"), "a file that exists"),
    ],
)
def test_an_error_is_one_line_and_exit_code_two(shell, words, said):
    code, out, err = shell(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("regard: ")
    assert len(err.splitlines()) == 1
    assert said in err


def test_python_m_regard_is_regard(monkeypatch):
    called = []
    monkeypatch.setattr("regard.cli.main", lambda: called.append(True))
    runpy.run_path(str(Path(cli.__file__).parents[1] / "__main__.py"), run_name="__main__")
    assert called == [True]


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_its_packages_the_shell_says_how_to_get_them(shell, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = shell("papers")
    assert code == 2
    assert "pip install 'regard[see]'" in err
    assert len(err.splitlines()) == 1
