"""Surveys over HTTP: names, run files and pages of one folder, and nothing else."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from regard.core.errors import RegardError
from regard.core.files import FileError, write_json
from regard.serving.vllm.endpoints import RegardEndpoints, ScoreGauges, Surveys
from regard.serving.vllm.policy_bytes import METHOD
from regard.serving.vllm.request_lookback import LOOKBACK, SUFFIX
from regard.views.run_file import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Surveys of two requests of the model that ships."""
    import regard

    made = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for number, name in enumerate(("cmpl-ab-0", "cmpl-abc-0")):
        seen = regard.see(inputs="def first(words):\n    return words", probes=["sinks", "shape"])
        path = seen.save(made / f"{name}.npz")
        os.utime(made / f"{name}.npz", (number, number))
        assert path
    return made


def test_a_request_is_found_by_the_name_of_its_answer(folder: Path) -> None:
    surveys = Surveys(folder)
    assert surveys.names() == ["cmpl-abc-0", "cmpl-ab-0"]  # the newest first
    assert surveys.find("cmpl-ab") == folder / "cmpl-ab-0.npz"
    assert surveys.find("cmpl-abc-0") == folder / "cmpl-abc-0.npz"
    assert surveys.find("cmpl-a") is None
    assert surveys.find("../runs/cmpl-ab-0") is None


def test_the_first_of_several_answers_is_found(tmp_path: Path) -> None:
    (tmp_path / "1_cmpl-ab-0.npz").touch()
    assert Surveys(tmp_path).find("cmpl-ab") == tmp_path / "1_cmpl-ab-0.npz"
    assert Surveys(tmp_path).find("1_cmpl-ab-0") == tmp_path / "1_cmpl-ab-0.npz"
    assert Surveys(tmp_path).find("ab") is None


def test_scores_are_those_of_the_run_file(folder: Path) -> None:
    surveys, run = Surveys(folder), Run.load(folder / "cmpl-abc-0.npz")
    found = {(score, layer): value for score, layer, value in surveys.scores()}
    for name in ("entropy", "sink"):
        for layer, row in enumerate(run.arrays[f"scores/{name}"]):
            assert found[name, layer] == pytest.approx(float(np.nanmean(row)))


def test_a_lookback_is_read_and_damage_is_told(tmp_path: Path) -> None:
    answer = {"tokens": 3, "lookback": [{"layer": 2, "heads": [0.25, 0.75]}]}
    path = write_json(tmp_path / f"r{SUFFIX}", answer, LOOKBACK)
    assert Surveys(tmp_path).lookback() == [(2, 0.5)]
    path.write_text(path.read_text().replace("0.25", "0.35"))
    with pytest.raises(FileError, match="checksum"):
        Surveys(tmp_path).lookback()


def test_a_server_that_surveys_nothing_has_no_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD", "on")
    with pytest.raises(RegardError, match="surveys nothing"):
        RegardEndpoints()


def test_routes_and_gauges(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    client = pytest.importorskip("prometheus_client")
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    monkeypatch.setenv("REGARD", f"see out={folder}")
    app, plugin = FastAPI(), RegardEndpoints()
    plugin.attach_router(app)
    assert plugin.surveys is not None
    http = TestClient(app)
    assert http.get("/regard/surveys").json() == {"surveys": ["cmpl-abc-0", "cmpl-ab-0"]}
    assert http.get("/regard/surveys/cmpl-ab").content == (folder / "cmpl-ab-0.npz").read_bytes()
    assert "<html" in http.get("/regard/surveys/cmpl-ab/page").text
    assert http.get("/regard/surveys/other").status_code == 404
    answer = {"tokens": 3, "lookback": [{"layer": 2, "heads": [0.25, 0.75]}]}
    write_json(folder / f"cmpl-ab-0{SUFFIX}", answer, LOOKBACK)
    registry = client.CollectorRegistry()
    registry.register(ScoreGauges(plugin.surveys))
    said = client.generate_latest(registry).decode()
    assert 'regard_survey_score{layer="0",score="entropy"}' in said
    assert "regard_surveys 2.0" in said
    assert 'regard_lookback_ratio{layer="2"} 0.5' in said
    assert asyncio.iscoroutinefunction(plugin.init_state)


def test_bytes_of_policies_are_asked_for_when_metrics_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REGARD", "shrink quest keep=25%")
    plugin = RegardEndpoints()
    assert plugin.surveys is None
    assert plugin.held is not None
    asked: list[str] = []

    class Engine:
        async def collective_rpc(self, method: str) -> list[int]:
            asked.append(method)
            if len(asked) > 1:
                raise RuntimeError("the worker died")
            return [300, 40]

    class App:
        def add_middleware(self, kind: type, **settings: object) -> None:
            self.call = kind(self.answer, **settings)

        async def answer(self, scope: dict[str, str], *_: object) -> None:
            scope["said"] = str(plugin.held and plugin.held.bytes)

    app = App()
    plugin.attach_router(app)
    plugin.held.engine = Engine()
    said = []
    for path in ("/v1/completions", "/metrics", "/metrics/"):
        scope = {"type": "http", "path": path}
        asyncio.run(app.call(scope, None, None))
        said.append(scope["said"])
    assert said == ["None", "340", "None"]  # a number of before is no number of now
    assert asked == [METHOD, METHOD]
