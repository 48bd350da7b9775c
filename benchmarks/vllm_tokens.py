"""Tokens of vLLM with Regard, against vLLM alone, transformers and `regard.shrink`."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.vllm_jobs import ask, demo, engine, generate, random_llama, texts, tiny

POLICIES = {
    "quest": ("quest keep=25% page=16", "quest", 0.25, {"page": 16}),
    "streaming": ("streaming keep=48", "streaming", 48, {}),
    "recycled": ("recycled keep=25%", "recycled", 0.25, {}),
    "double_sparsity": ("double_sparsity keep=25%", "double_sparsity", 0.25, {}),
    "a_shape": ("a_shape keep=50% block=16", "a_shape", 0.5, {"block": 16}),
    "vertical_slash": ("vertical_slash keep=50% block=16", "vertical_slash", 0.5, {"block": 16}),
    "block_sparse": ("block_sparse keep=50% block=16", "block_sparse", 0.5, {"block": 16}),
}  # fmt: skip
# Controls by what they change: settings of a server, and what a request says of its own.
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "scores": ("emphasis strength=2", {"which": list(range(4, 12)), "strength": 4.0}),
    "weights": ("split_softmax", {"which": list(range(4, 12)), "strength": 0.2}),
    "outputs": ("vision_heads strength=0.2 where={'heads':[(1,0),(2,3),(3,1)]}", {}),
}  # fmt: skip
# These choose by the whole prompt: no pieces, no prefixes of others.
WHOLE = ("double_sparsity", "a_shape", "vertical_slash", "block_sparse")


def same(count: int = 64, tokens: int = 80) -> dict[str, Any]:
    """Compare greedy tokens with those of vLLM's own attention."""
    draw = random.Random(0)
    shared = [draw.randrange(5, 500) for _ in range(160)]
    prompts = []
    for i in range(count):
        own = [draw.randrange(5, 500) for _ in range(draw.randrange(3, 400))]
        prompts.append(shared + own if i % 4 == 0 else own)
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "model": tiny(Path(folder)),
            # 56 blocks of 32 hold about eight of the requests until they have grown.
            "engine": engine(
                num_gpu_blocks_override=56, max_model_len=1024, max_num_batched_tokens=96,
                max_num_seqs=16, enable_prefix_caching=True, enable_chunked_prefill=True,
            ),
            "rounds": [{"prompts": prompts, "tokens": tokens}],
        }  # fmt: skip
        ran = {x: ask(x, job)["rounds"][0] for x in ("", "on", "on kernel=regard")}
    made: dict[str, Any] = {
        "prompts": count, "tokens": tokens * count,
        "preempted": [x["preempted"] for x in ran.values()],
        "steps": [x["steps"] for x in ran.values()],
        "blocks_lost": [x["free_before"] - x["free_after"] for x in ran.values()],
    }  # fmt: skip
    for said, ours in ran.items():
        if said:
            both = zip(ran[""]["answers"], ours["answers"], strict=True)
            made[f"equal {said}"] = sum(a["tokens"] == b["tokens"] for a, b in both)
    return made


def of_demo(count: int = 16, tokens: int = 24) -> dict[str, Any]:
    """Compare the model that ships with `generate` of transformers."""
    model, tokenizer, folder = demo()
    prompts = texts(tokenizer, count)
    job = {"model": folder, "engine": engine(max_num_batched_tokens=512),
           "rounds": [{"prompts": prompts, "tokens": tokens}]}  # fmt: skip
    ours = ask("on", job)["rounds"][0]
    equal = [
        generate(model, ids, tokens) == a["tokens"]
        for ids, a in zip(prompts, ours["answers"], strict=True)
    ]
    return {"prompts": count, "tokens": tokens * count, "equal": sum(equal), "head_size": 24}


def shrunk(name: str, count: int = 16, tokens: int = 24) -> dict[str, Any]:
    """Compare a policy with `regard.shrink` of transformers: tokens, and keys read."""
    import regard
    from benchmarks.ask_vllm import log_slots
    from regard.policies.registry import policy
    from regard.policies.shrinking import Shrinking

    said, asked, keep, settings = POLICIES[name]
    model, tokenizer, folder = demo()
    prompts = texts(tokenizer, count, most=200 if name in WHOLE else 330)
    whole = name in WHOLE
    more = {
        "enable_prefix_caching": not whole, "enable_chunked_prefill": not whole,
        "max_num_batched_tokens": 2048 if whole else 128, "max_num_seqs": 16,
    }  # fmt: skip
    job = {"model": folder, "slots": True, "engine": engine(**more),
           "rounds": [{"prompts": prompts, "tokens": tokens}]}  # fmt: skip
    ours = ask(f"shrink {said}", job)["rounds"][0]
    plain, log = Shrinking._opened, log_slots(Shrinking)
    equal = 0
    try:
        with regard.shrink(model, policy(asked, **settings), keep=keep, check=False):
            for ids, a in zip(prompts, ours["answers"], strict=True):
                equal += generate(model, ids, tokens) == a["tokens"]
    finally:
        Shrinking._opened = plain  # type: ignore[method-assign]  # what stood there
    # Requests run side by side there and one by one here: the same steps, in another order. What
    # streaming keeps in a ring is no choice of slots.
    steps = sorted(map(json.dumps, log)), sorted(map(json.dumps, ours["slots"]))
    alike = None if name == "streaming" else _alike(*steps)
    return {
        "prompts": count, "tokens": tokens * count, "equal": equal, "keep": keep,
        "steps": len(ours["slots"]), "steps_that_read_the_same_keys": alike,
        "steps_that_chose": sum(1 for x in ours["slots"] if x[2] is not None),
    }  # fmt: skip


def pages(count: int = 12, tokens: int = 24) -> dict[str, Any]:
    """Compare `quest` over vLLM's kernel with `regard.shrink`: some ask, some decline."""
    import regard
    from regard.policies.registry import policy

    draw = random.Random(0)
    prompts = [[draw.randrange(5, 500) for _ in range(draw.randrange(80, 400))]
               for _ in range(count)]  # fmt: skip
    extra = [{"regard_shrink": "off"} if i % 3 == 2 else None for i in range(count)]
    made: dict[str, Any] = {"prompts": count, "tokens": tokens * count, "keep": 0.3}
    with tempfile.TemporaryDirectory() as folder:
        path = tiny(Path(folder))
        model = random_llama(path)
        want = [generate(model, ids, tokens) for ids in prompts]
        with regard.shrink(model, policy("quest", page=32), keep=0.3, check=False):
            shrunk_ = [generate(model, ids, tokens) for ids in prompts]
        want = [b if e is None else a for a, b, e in zip(want, shrunk_, extra, strict=True)]
        for said in (
            "shrink quest keep=30% page=32",
            "shrink quest keep=30% page=32; on kernel=regard",
        ):
            job = {"model": path, "engine": engine(max_num_batched_tokens=128, max_num_seqs=16),
                   "rounds": [{"prompts": prompts, "tokens": tokens, "extra": extra}]}  # fmt: skip
            one = ask(said, job)["rounds"][0]
            made[said] = sum(a["tokens"] == b for a, b in zip(one["answers"], want, strict=True))
    return made


def _alike(one: list[str], other: list[str]) -> int:
    """Count what two sorted lists have in common."""
    from collections import Counter

    return sum((Counter(one) & Counter(other)).values())


def several(count: int = 4, tokens: int = 16, answers: int = 3) -> dict[str, Any]:
    """Draw several answers to each prompt under a policy: each is that of a request of its own."""
    _, tokenizer, folder = demo()
    prompts, heat = texts(tokenizer, count), {"temperature": 0.8, "top_k": 50}
    alone = [
        {"prompts": prompts, "tokens": tokens, "sampling": {**heat, "seed": 7 + i}}
        for i in range(answers)
    ]
    job = {
        "model": folder, "beams": prompts[:1], "no_tokenizer": False,
        # With seeds, vLLM's runner for CPUs takes prompts in one piece only.
        "engine": engine(max_num_batched_tokens=2048, enable_chunked_prefill=False),
        "rounds": [{"prompts": prompts, "tokens": tokens,
                    "sampling": {**heat, "seed": 7, "n": answers}}, *alone],
    }  # fmt: skip
    found = ask("shrink quest keep=25% page=16", job)
    together, *rounds = found["rounds"]
    equal = sum(
        [one["tokens"], *one["others"]] == [x["answers"][i]["tokens"] for x in rounds]
        for i, one in enumerate(together["answers"])
    )
    return {
        "prompts": count, "answers": answers, "tokens": tokens * count * answers, "equal": equal,
        "different": sum(len({str(t) for t in (x["tokens"], *x["others"])}) == answers
                         for x in together["answers"]),
        "blocks_lost": [x["free_before"] - x["free_after"] for x in found["rounds"]],
        "beams": found["beams"],
    }  # fmt: skip


def processes(count: int = 8, tokens: int = 24) -> dict[str, Any]:
    """Compare two processes, of half the heads each, with one; half of the requests decline."""
    draw = random.Random(0)
    prompts = [
        [draw.randrange(5, 500) for _ in range(draw.randrange(40, 400))] for _ in range(count)
    ]
    extra = [{"regard_shrink": False} if i % 2 else None for i in range(count)]
    said, found = "shrink quest keep=25% page=32", []
    with tempfile.TemporaryDirectory() as folder:
        model = tiny(Path(folder))
        for n in (1, 2):
            job = {
                "model": model, "engine": engine(tensor_parallel_size=n),
                "rounds": [{"prompts": prompts, "tokens": tokens, "extra": extra}],
            }  # fmt: skip
            found.append(ask(said, job)["rounds"][0])
    one, two = (x["answers"] for x in found)
    return {
        "prompts": count, "tokens": tokens * count, "policy": said,
        "equal": sum(a["tokens"] == b["tokens"] for a, b in zip(one, two, strict=True)),
        "ends": sorted({x["end"] for x in two}),
        "blocks_lost": [x["free_before"] - x["free_after"] for x in found],
    }  # fmt: skip


def steered(count: int = 6, tokens: int = 24) -> dict[str, Any]:
    """Steer some requests, and compare each with `regard.steer` of transformers at batch 1."""
    import regard
    from regard.controls import control
    from regard.serving.vllm.server_settings import Settings

    model, tokenizer, folder = demo()
    prompts = texts(tokenizer, count)
    plain = [generate(model, ids, tokens) for ids in prompts]
    made: dict[str, Any] = {"prompts": count, "tokens": tokens * count}
    for point, (said, asked) in CONTROLS.items():
        extra = [
            None if i % 3 == 2 else
            {"regard_steer": True, **{f"regard_{name}": x for name, x in asked.items()}}
            for i in range(count)
        ]  # fmt: skip
        job = {"model": folder, "engine": engine(max_num_batched_tokens=128),
               "rounds": [{"prompts": prompts, "tokens": tokens, "extra": extra}]}  # fmt: skip
        answers = ask(f"steer {said}", job)["rounds"][0]["answers"]
        given = Settings.of(f"steer {said}").steer
        assert given is not None
        want = list(plain)
        for i, ids in enumerate(prompts):
            if extra[i] is not None:
                with regard.steer(model, control(given.control, **{**given.settings, **asked})):
                    want[i] = generate(model, ids, tokens)
        made[f"{point}: {said.split()[0]}"] = {
            "steered": sum(x is not None for x in extra),
            "equal": sum(a["tokens"] == b for a, b in zip(answers, want, strict=True)),
            "other_than_unsteered": sum(a != b for a, b in zip(want, plain, strict=True)),
            "ends": sorted({a["end"] for a in answers}),
        }  # fmt: skip
    return made
