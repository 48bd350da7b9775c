"""What `REGARD` may say, and what a request may ask; no vLLM is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from regard.core.errors import RegardError
from regard.serving.vllm.server_settings import Asked, See, Settings, Shrink, Steer


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("", Settings()),
        ("  ;", Settings()),
        ("off", Settings()),
        ("off; shrink quest", Settings()),
        ("on", Settings(True)),
        ("on kernel=regard", Settings(True, kernel=False)),
        ("steer emphasis strength=2", Settings(True, steer=Steer("emphasis", {"strength": 2}))),
        ("shrink quest", Settings(True, Shrink("quest"))),
        ("shrink quest keep=10%", Settings(True, Shrink("quest", {}, "10%"))),
        ("shrink quest keep=64 page=8", Settings(True, Shrink("quest", {"page": 8}, 64))),
        ("see out=runs", Settings(True, None, See("runs"))),
        (
            "on; shrink streaming keep=4MiB;see probes=sinks,shape out=/a/b",
            Settings(True, Shrink("streaming", {}, "4MiB"), See("/a/b", ("sinks", "shape"))),
        ),
    ],
)
def test_what_is_said_is_what_is_meant(said: str, means: Settings) -> None:
    assert Settings.of(said) == means


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("shrnk quest", "did you mean 'shrink'"),
        ("quest", "clauses that begin with"),
        ("shrink", "without a policy"),
        ("shrink keep=3", "without a policy"),
        ("shrink quest keep", "NAME=VALUE"),
        ("shrink quest keep=1 keep=2", "each once"),
        ("shrink quest; shrink h2o", "twice"),
        ("on all", "NAME=VALUE"),
        ("on kernel=theirs", "on alone"),
        ("steer which=3", "without a control"),
        ("see", "out=FOLDER"),
        ("see out=a where=b", "out=FOLDER"),
    ],
)
def test_what_cannot_be_meant_is_refused(said: str, named: str) -> None:
    with pytest.raises(RegardError, match=named):
        Settings.of(said)


@pytest.mark.parametrize("flag", [True, 1, "1", "true", "on"])
def test_a_request_may_ask_to_be_seen(flag: object) -> None:
    assert Asked.of({"regard_see": flag}) == Asked(see=True)
    assert Asked.of({"regard_shrink": flag}) == Asked.of(None) == Asked.of({"theirs": 3})


@pytest.mark.parametrize(
    "extra",
    [
        {"regard_look": 1}, {"regard_see": 7}, {"regard_shrink": None}, {"regard_which": "Paris"},
        {"regard_steer": 1, "regard_strength": "much"},
    ],
)  # fmt: skip
def test_a_request_that_asks_for_something_else_is_told(extra: dict[str, object]) -> None:
    with pytest.raises(RegardError, match="regard_"):
        Asked.of(extra)


def test_nothing_is_loaded_where_nothing_is_asked() -> None:
    code = (
        "import sys; from regard.serving.vllm.entry_point import register; register();"
        "print(*[x for x in ('vllm', 'transformers', 'regard.policies', 'regard.views') "
        "if x in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )  # fmt: skip
    assert ran.stdout.strip() == ""
