"""What seeing costs: time and memory of `regard.see`, and of the matrices that others keep.

    python benchmarks/see.py --save see-cpu            # 4,096 and 32,768 tokens; minutes
    python benchmarks/see.py --tokens 4096             # seconds
    python benchmarks/see.py --models demo large --tokens 512 1024 2048 4096 --save see-peers \\
        --kinds see transformerlens bertviz_layer bertviz_heads bertviz_model

"large" is a random Llama of 8 layers, 8 heads of 64, and "demo" the model that ships. Each line
runs in a process of its own, so that its peak of memory is its own. `matrices` is what BertViz and
TransformerLens ask of a model: every layer's weights at once (transformers' `output_attentions`).
Memory and time are bounded; a line that passes a bound is reported as such, and longer ones are not
tried. Other libraries run where `--kinds` asks for them: `transformerlens` keeps the weights alone;
`bertviz_heads` and `bertviz_model` make the HTML of its head view and its model view of all layers,
`bertviz_layer` the head view of one layer. `see` ends with its page written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import save

BOUND_GIB, BOUND_SECONDS = 12, 1800
PROBES = ["roles", "sinks", "shape"]


def model(tokens: int, name: str = "large") -> Any:
    import torch

    if name == "demo":
        from regard.models.loading import load

        torch.manual_seed(0)
        return load()[0].float(), torch.randint(16, 512, (1, tokens))
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=1376, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=tokens,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), torch.randint(16, 512, (1, tokens))


def bounded(gib: float) -> None:
    """Let this process take so much more memory, and no more."""
    room = int(gib * 2**30) + resident() * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (room, room))


def bertviz(kind: str, held: Any, ids: Any) -> dict[str, Any]:
    """Make one of BertViz's pages, as its documentation says."""
    import bertviz
    import torch

    held.set_attn_implementation("eager")
    with torch.no_grad():
        weights = held(input_ids=ids, use_cache=False, output_attentions=True).attentions
    words = [str(x) for x in ids[0].tolist()]
    view = bertviz.model_view if kind == "bertviz_model" else bertviz.head_view
    some = {"include_layers": [0]} if kind == "bertviz_layer" else {}
    page = view(weights, words, html_action="return", **some).data
    return {"page_mb": round(len(page) / 1e6, 1), "asks_network": "cdnjs" in page}


def line(kind: str, tokens: int, name: str, gib: float) -> dict[str, Any]:
    """Run one line here, and say what it took."""
    import torch

    held, ids = model(tokens, name)
    base = held.model  # no logits of 32k tokens by 512 words, which are no part of seeing
    with torch.no_grad():
        base(input_ids=ids[:, :64])
    before = resident()
    began, worked = time.perf_counter(), time.process_time()
    if kind.startswith("bertviz"):
        bounded(gib)
        try:
            facts = bertviz(kind, base, ids)
        except (RuntimeError, MemoryError) as error:
            facts = {"failed": _why(error)}
    elif kind == "see":
        import regard

        told: list[tuple[float, int, int]] = []

        def progress(title: str, done: int, total: int) -> None:
            told.append((time.perf_counter() - began, done, total))

        seen = regard.see(base, ids, PROBES, heads=1, progress=progress)
        page = seen.save(Path(tempfile.gettempdir()) / "regard-see-benchmark.html")
        facts = {"page_mb": round(page.stat().st_size / 1e6, 1), "progress_lines": len(told)}
    elif kind == "plain":
        with torch.no_grad():
            base(input_ids=ids, use_cache=False)
        facts = {}
    elif kind == "transformerlens":
        from transformer_lens.model_bridge import TransformerBridge

        from regard.models.loading import load

        with tempfile.TemporaryDirectory() as folder:
            held.config.architectures = ["LlamaForCausalLM"]
            held.config.save_pretrained(folder)
            bridge = TransformerBridge.boot_transformers(
                folder, hf_model=held, tokenizer=load()[1], device="cpu"
            )
        began, worked = time.perf_counter(), time.process_time()
        bounded(gib)
        try:
            with torch.no_grad():
                bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))
            facts = {}
        except (RuntimeError, MemoryError) as error:
            facts = {"failed": _why(error)}
    else:
        base.set_attn_implementation("eager")
        bounded(gib)
        try:
            with torch.no_grad():
                base(input_ids=ids, use_cache=False, output_attentions=True)
            facts = {}
        except (RuntimeError, MemoryError) as error:
            need = 4 * 8 * 8 * tokens**2 / 2**30
            facts = {"failed": _why(error), "matrices_gib": round(need, 1)}
    took, worked = time.perf_counter() - began, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "model": name, "what": kind, "tokens": tokens, "seconds": round(took, 2),
        "cpu_seconds": round(worked, 2),
        "gib_above_model": round((peak - before) / 2**20, 2), **facts,
    }  # fmt: skip


def _why(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0][:80]


def resident() -> int:
    """KiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--kinds", nargs="+", default=["plain", "see", "matrices"])
    parser.add_argument("--models", nargs="+", default=["large"], choices=["demo", "large"])
    parser.add_argument("--gib", type=float, default=BOUND_GIB, help="what a peer may take")
    parser.add_argument("--minutes", type=float, default=BOUND_SECONDS / 60, help="for a line")
    parser.add_argument("--line", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    arguments = parser.parse_args()
    if arguments.line:
        kind, tokens, name = arguments.line
        print(json.dumps(line(kind, int(tokens), name, arguments.gib)))
        return
    lines = []
    for name, kind, tokens in itertools.product(
        arguments.models, arguments.kinds, arguments.tokens
    ):
        asked = {"model": name, "what": kind, "tokens": tokens}
        if any(x["what"] == kind and x["model"] == name and "failed" in x for x in lines):
            lines.append(asked | {"failed": "not tried: the shorter one failed"})
            continue
        lines.append(asked | in_a_process(kind, tokens, name, arguments.gib, arguments.minutes))
        print(lines[-1], flush=True)
    if arguments.save:
        save(arguments.save, [], facts=lines, bound_gib=arguments.gib, minutes=arguments.minutes)


def in_a_process(kind: str, tokens: int, name: str, gib: float, minutes: float) -> dict[str, Any]:
    """Run one line in a process of its own."""
    asked = ["--gib", str(gib), "--line", kind, str(tokens), name]
    try:
        done = subprocess.run(
            [sys.executable, __file__, *asked], capture_output=True, text=True, check=False,
            timeout=60 * minutes,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {minutes:g} minutes"}
    said = done.stdout.strip().splitlines()
    if done.returncode or not said:
        return {"failed": f"killed ({done.returncode})"}
    found: dict[str, Any] = json.loads(said[-1])
    return found


if __name__ == "__main__":
    main()
