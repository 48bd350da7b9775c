"""Ask vLLM in this process, as the environment variable `REGARD` says: a job in, answers out.

    REGARD=on python benchmarks/ask_vllm.py job.json answers.json

A job names the model, the settings of the engine, and rounds of prompts (ids) with what each asks
for. Answers are tokens, how each request ended, seconds, preemptions, and the blocks that were free
before and after, which must be equal. A job that says `wait` runs each round when a line comes in,
so that processes can take turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
# Tokens from which the policy `Breaks` does.
BREAKS_AT = 200


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Start vLLM, ask it all rounds of a job, and say what came of them."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted = []
    plain = Scheduler._preempt_request

    def preempt(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request.request_id)
        return plain(self, request, *args, **kwargs)

    Scheduler._preempt_request = preempt
    log = _log_slots() if job.get("slots") else None
    llm = LLM(
        model=job["model"], skip_tokenizer_init=job.get("no_tokenizer", True), enforce_eager=True,
        disable_log_stats=True, **job["engine"],
    )  # fmt: skip
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    rounds = []
    for number, one in enumerate(job["rounds"]):
        prompts = one["prompts"]
        extra = one.get("extra") or [None] * len(prompts)
        before = pool.get_num_free_blocks()
        preempted.clear()
        if log is not None:
            log.clear()
        for i, ids in enumerate(prompts):
            params = SamplingParams(**{
                "temperature": 0, "max_tokens": one["tokens"], "ignore_eos": True,
                "extra_args": extra[i], **one.get("sampling", {}),
            })  # fmt: skip
            if params.n > 1:  # otherwise each answer comes in an output of its own
                params.output_kind = RequestOutputKind.FINAL_ONLY
            engine.add_request(f"{number}-{i}", {"prompt_token_ids": ids}, params)
        if job.get("wait"):
            print("ready", flush=True)
            sys.stdin.readline()
        start, found, steps, used = time.perf_counter(), {}, 0, []
        worked = time.process_time()
        begun: set[str] = set()
        decoding, decoded = 0.0, 0
        while engine.has_unfinished_requests():
            alone, at, made = len(begun) == len(prompts), time.process_time(), engine.step()
            if alone:  # every prompt has been read
                decoding, decoded = decoding + time.process_time() - at, decoded + 1
            for output in made:
                begun.add(output.request_id)
                if output.finished:
                    said = output.outputs[0]
                    found[output.request_id.split("-")[1]] = {
                        "tokens": list(said.token_ids), "end": said.finish_reason,
                        "why": said.stop_reason,
                        "others": [list(x.token_ids) for x in output.outputs[1:]],
                    }  # fmt: skip
            steps += 1
            used.append(before - pool.get_num_free_blocks())
            for i in one.get("cancel", {}).get(str(steps), []):
                engine.abort_request([f"{number}-{i}"])
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        if not job.get("keep_prefixes"):
            scheduler.reset_prefix_cache()
        rounds.append({
            "answers": [found.get(str(i)) for i in range(len(prompts))], "seconds": seconds,
            "cpu_seconds": worked,
            "steps": steps, "preempted": len(preempted), "free_before": before,
            "free_after": pool.get_num_free_blocks(),
            "decoding": decoding, "decoded": decoded, "used": used,
            "slots": None if log is None else list(log),
        })  # fmt: skip
    return {"rounds": rounds, "beams": _beams(llm, job["beams"]) if "beams" in job else None}


def refusals(job: dict[str, Any]) -> dict[str, Any]:
    """Start a server for each case, in this one process, and note why it does not start."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    from regard.serving.vllm.entry_point import register

    why = []
    for number, one in enumerate(job["refused"]):
        os.environ["REGARD"] = one["regard"]
        try:
            if number:  # vLLM loads its plugins once
                register()
            LLM(model=job["model"], skip_tokenizer_init=True, enforce_eager=True, **one["engine"])
        except Exception as error:
            why.append(str(error))
        else:
            why.append("")
    return {"why": why}


def _beams(llm: Any, prompts: list[list[int]]) -> Any:
    """Ask for beams: tokens of the best ones, or why they are refused."""
    from vllm.sampling_params import BeamSearchParams

    params = BeamSearchParams(beam_width=2, max_tokens=4, ignore_eos=True)
    try:
        found = llm.beam_search([{"prompt_token_ids": ids} for ids in prompts], params)
    except ValueError as error:
        return str(error)
    return [x.sequences[0].tokens for x in found]


def _log_slots() -> list[Any]:
    """Log which keys each call of a policy reads: (layer, tokens seen, slots by head)."""
    from regard.policies.shrinking import Shrinking

    return log_slots(Shrinking)


def log_slots(kind: Any) -> list[Any]:
    """Let the stage of policies log the slots that its steps read."""
    found: list[Any] = []
    plain = kind._opened

    def opened(self: Any, call: Any, layer: Any) -> Any:
        step = plain(self, call, layer)
        if step.n == 1:
            slots = None if step.slots is None else step.slots[0].sort(-1).values.tolist()
            found.append([call.site.layer, step.seen, slots])
        return step

    kind._opened = opened
    return found


def __getattr__(name: str) -> Any:
    """Make `Breaks`, a policy that raises for long texts, where it is asked for by name."""
    if name != "Breaks":
        raise AttributeError(name)
    from regard.policies.selecting import Quest

    class Breaks(Quest):
        def worth(self, step: Any, index: Any) -> Any:
            raise ZeroDivisionError(f"a policy that breaks at {step.seen} tokens")

        def quickly(self, step: Any, index: Any, count: int) -> Any:
            if step.seen > BREAKS_AT:
                return self.worth(step, index)
            return super().quickly(step, index, count)

    globals()[name] = Breaks
    return Breaks


if __name__ == "__main__":
    asked, out = (Path(x) for x in sys.argv[1:3])
    given = json.loads(asked.read_text())
    out.write_text(json.dumps((refusals if "refused" in given else answer)(given)))
