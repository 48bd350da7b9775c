"""`regard bench` compares, measures speed, and writes tables."""

import json

import pytest
from typer.testing import CliRunner

from regard.bench.records import BenchError
from regard.bench.results import gathered, read_folder, write_tables
from regard.bench.sweep import carry_out_all, one
from regard.cli.bench import app
from regard.core.errors import RegardError
from tests.bench.tiny_sweeps import SMALL, tiny

SHELL = ["--dim", "16", "--heads", "2", "--batch", "8", "--no-speed", "--workers", "1"]


def test_the_command_compares_and_writes_what_people_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    asked = ["mha", "linear", "--tasks", f"{SMALL},copy:length=3", "--budget", "3steps", "--json"]
    ran = CliRunner().invoke(app, [*asked, "--out", str(tmp_path), *SHELL])
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert {x["layer"] for x in said["ranking"]} == {"mha", "linear"}
    table = pandas.read_parquet(tmp_path / "results.parquet")
    assert set(table["test"]) == {"induction", "copy", "3 words", "4 words", "6 words"}
    curves = pandas.read_parquet(tmp_path / "curves.parquet")
    assert set(curves["layer"]) == {"mha", "linear"}
    assert "default-src 'none'" in (tmp_path / "report.html").read_text()
    again = read_folder(tmp_path)
    assert again.budget == "3 steps a run"
    assert len(again.records) == again.planned == 4


def test_speed_is_measured_against_length(tmp_path):
    asked = ["speed", "mha", "linear", "--lengths", "16,32,64", "--dim", "16", "--heads", "2"]
    more = ["--executors", "fused", "--peers", "--rounds", "1", "--json", "--out", str(tmp_path)]
    ran = CliRunner().invoke(app, [*asked, *more])
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    found = {(r["who"], r["what"]) for r in said["rows"]}
    assert ("executor fused", "backward") in found
    assert ("torch MultiheadAttention", "forward") in found
    kept = {(r["who"], r["what"]): r["memory exponent"] for r in said["exponents"]}
    assert abs(kept["mha", "decode"] - 1) < 0.01
    assert abs(kept["linear", "decode"]) < 0.01


def test_the_list_of_tasks_is_printed():
    ran = CliRunner().invoke(app, ["tasks", "--json"])
    assert "mqar" in {row["task"] for row in json.loads(ran.stdout)}


def test_tables_of_the_users_are_not_written_over(tmp_path):
    pandas = pytest.importorskip("pandas")
    list(carry_out_all(tiny(["mha"]), tmp_path))
    theirs = pandas.DataFrame({"x": [1]})
    theirs.to_parquet(tmp_path / "results.parquet")
    with pytest.raises(BenchError, match="a new name"):
        write_tables(read_folder(tmp_path), tmp_path)
    assert pandas.read_parquet(tmp_path / "results.parquet").equals(theirs)
    (tmp_path / "results.parquet").unlink()
    for _ in range(2):  # our own are replaced
        write_tables(read_folder(tmp_path), tmp_path)


def test_a_folder_without_a_sweep_is_said(tmp_path):
    with pytest.raises(RegardError, match="no sweep"):
        read_folder(tmp_path)


def test_tables_of_a_sweep_that_is_not_done_are_written(tmp_path):
    planned = tiny(["mha", "linear"])
    one(planned.runs[0], tmp_path)
    results = gathered(planned, tmp_path)
    assert (len(results.records), results.planned) == (1, 2)
    assert (tmp_path / "results.json") in write_tables(results, tmp_path)
