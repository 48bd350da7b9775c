"""Surveys of a vLLM server over HTTP: run files, pages, and gauges for Prometheus.

vLLM loads it in the process that speaks HTTP if `VLLM_PLUGINS` names it beside the plugin itself:
`VLLM_PLUGINS=regard`. It reads the folder that `REGARD="see out=FOLDER"` names, and nothing else.

    GET /regard/surveys                  names of requests that were surveyed, the newest first
    GET /regard/surveys/REQUEST          its run file
    GET /regard/surveys/REQUEST/page     its page
    GET /metrics                         regard_survey_score{score=, layer=}, of the newest survey,
                                         regard_lookback_ratio{layer=}, of the newest answer,
                                         regard_policy_bytes, if the server shrinks
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from regard.core.errors import CapabilityError, fail
from regard.serving.vllm.policy_bytes import AskFirst, PolicyBytes
from regard.serving.vllm.request_lookback import SUFFIX, read_lookback
from regard.serving.vllm.server_settings import VARIABLE, Settings
from regard.views.page import page
from regard.views.run_file import Run

HOME = "/regard/surveys"


class Surveys:
    """The run files of a folder, by the requests that they are of.

    >>> Surveys("nowhere").names(), Surveys("nowhere").find("cmpl-1")
    ([], None)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._read: tuple[Path, float, list[tuple[str, int, float]]] | None = None

    def files(self, suffix: str = ".npz") -> list[Path]:
        """Return the run files, the newest first."""
        found = self.folder.glob(f"*{suffix}")
        return sorted(found, key=lambda x: x.stat().st_mtime, reverse=True)

    def names(self) -> list[str]:
        """Return the names of requests."""
        return [x.stem for x in self.files()]

    def find(self, request: str) -> Path | None:
        """Return the run file of a request: vLLM adds to the name that an answer has.

        Several answers to one prompt (`n`) are requests whose names begin with a number.
        """
        for path in self.files():
            number, _, rest = path.stem.partition("_")
            for name in (path.stem, rest if number.isdecimal() else path.stem):
                if name == request or name.startswith(f"{request}-"):
                    return path
        return None

    def lookback(self) -> list[tuple[int, float]]:
        """Return (layer, mean over heads) of the newest answer to a surveyed request."""
        files = self.files(SUFFIX)
        rows = read_lookback(files[0]) if files else []
        return [(layer, float(np.mean(heads))) for layer, heads in rows]

    def scores(self) -> list[tuple[str, int, float]]:
        """Return (score, layer, mean over heads) of the newest survey."""
        files = self.files()
        if not files:
            return []
        at = files[0].stat().st_mtime
        if self._read is None or self._read[:2] != (files[0], at):
            self._read = files[0], at, list(_scores(Run.load(files[0])))
        return self._read[2]


def _scores(run: Run) -> Iterator[tuple[str, int, float]]:
    layers = [site["layer"] for site in run.manifest["sites"]]
    for name, values in run.arrays.items():
        kind, _, score = name.partition("/")
        if kind == "scores" and len(values) == len(layers):
            for layer, row in zip(layers, values, strict=True):
                yield score, layer, float(np.nanmean(row))


class ScoreGauges:
    """What Prometheus collects: each score of each layer, of the newest survey."""

    def __init__(self, surveys: Surveys) -> None:
        self.surveys = surveys

    def collect(self) -> Iterator[Any]:
        """Yield the gauges."""
        from prometheus_client.core import GaugeMetricFamily

        said = "A score of attention, the mean over the heads of a layer, of the newest survey"
        made = GaugeMetricFamily("regard_survey_score", said, labels=["score", "layer"])
        for score, layer, value in self.surveys.scores():
            made.add_metric([score, str(layer)], value)
        yield made
        said = "Mean weight of a token of the prompt, of that and the mean of a generated one"
        looks = GaugeMetricFamily("regard_lookback_ratio", said, labels=["layer"])
        for layer, value in self.surveys.lookback():
            looks.add_metric([str(layer)], value)
        yield looks
        count = GaugeMetricFamily("regard_surveys", "Requests that were surveyed")
        count.add_metric([], len(self.surveys.files()))
        yield count


class RegardEndpoints:
    """What vLLM asks of a plugin that adds routes."""

    name = "regard"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        asked = Settings.of(os.environ.get(VARIABLE, ""))
        if asked.see is None and asked.shrink is None:
            fail(
                CapabilityError, VARIABLE, "a server that surveys nothing, and shrinks nothing",
                "a folder of surveys to read, or a policy", f"set {VARIABLE}='see out=FOLDER'",
            )  # fmt: skip
        self.surveys = None if asked.see is None else Surveys(asked.see.out)
        self.held = None if asked.shrink is None else PolicyBytes()

    def attach_router(self, app: Any) -> None:
        """Add the routes."""
        if self.surveys is not None:
            self._add_surveys(app, self.surveys)
        if self.held is not None:
            app.add_middleware(AskFirst, ask=self.held.ask)

    def _add_surveys(self, app: Any, surveys: Surveys) -> None:
        from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

        def found(request: str) -> Path | Response:
            path = surveys.find(request)
            if path is not None:
                return path
            said = f"{request!r} was not surveyed: ask with regard_see, and wait for its prompt"
            return JSONResponse({"error": said}, status_code=404)

        def names() -> Any:
            return JSONResponse({"surveys": surveys.names()})

        def survey(request: str) -> Any:
            path = found(request)
            return FileResponse(path, filename=path.name) if isinstance(path, Path) else path

        def as_page(request: str) -> Any:
            path = found(request)
            return HTMLResponse(page(Run.load(path))) if isinstance(path, Path) else path

        for path, answer in ((HOME, names), (f"{HOME}/{{request}}", survey),
                             (f"{HOME}/{{request}}/page", as_page)):  # fmt: skip
            app.add_api_route(path, answer, methods=["GET"], response_model=None)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Add the gauges to those of vLLM."""
        from prometheus_client import REGISTRY

        if self.surveys is not None:
            REGISTRY.register(ScoreGauges(self.surveys))
        if self.held is not None:
            self.held.engine = engine_client
            REGISTRY.register(self.held)
