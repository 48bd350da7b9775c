"""What seeing costs: time and memory of `regard.see`, and of the matrices that others keep.

    python benchmarks/see.py --save see-cpu            # 4,096 and 32,768 tokens; minutes
    python benchmarks/see.py --tokens 4096             # seconds

The model is a random Llama of 8 layers, 8 heads of 64. Each line runs in a process of its own, so
that its peak of memory is its own. `matrices` is what BertViz and TransformerLens ask of a model:
every layer's weights at once (transformers' `output_attentions`); its memory is bounded, and a line
that passes the bound is reported as such. `transformerlens` (asked for by `--kinds`, where it is
installed) runs that library itself, which keeps the weights alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import save

BOUND_GIB = 12
PROBES = ["roles", "sinks", "shape"]


def model(tokens: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=1376, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=tokens,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), torch.randint(16, 512, (1, tokens))


def line(kind: str, tokens: int) -> dict[str, Any]:
    """Run one line here, and say what it took."""
    import torch

    held, ids = model(tokens)
    base = held.model  # no logits of 32k tokens by 512 words, which are no part of seeing
    with torch.no_grad():
        base(input_ids=ids[:, :64])
    before = resident()
    began = time.perf_counter()
    if kind == "see":
        import regard

        told: list[tuple[float, int, int]] = []

        def progress(title: str, done: int, total: int) -> None:
            told.append((time.perf_counter() - began, done, total))

        seen = regard.see(base, ids, PROBES, heads=1, progress=progress)
        page = seen.save("/tmp/regard-see-benchmark.html")
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
        began = time.perf_counter()
        room = int(BOUND_GIB * 2**30) + before * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (room, room))
        try:
            with torch.no_grad():
                bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))
            facts = {}
        except (RuntimeError, MemoryError) as error:
            facts = {"failed": str(error).splitlines()[0][:80]}
    else:
        base.set_attn_implementation("eager")
        room = int(BOUND_GIB * 2**30) + before * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (room, room))
        try:
            with torch.no_grad():
                base(input_ids=ids, use_cache=False, output_attentions=True)
            facts = {}
        except (RuntimeError, MemoryError) as error:
            need = 4 * 8 * 8 * tokens**2 / 2**30
            facts = {"failed": str(error).splitlines()[0][:80], "matrices_gib": round(need, 1)}
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "what": kind, "tokens": tokens, "seconds": round(took, 2),
        "gib_above_model": round((peak - before) / 2**20, 2), **facts,
    }  # fmt: skip


def resident() -> int:
    """KiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--kinds", nargs="+", default=["plain", "see", "matrices"])
    parser.add_argument("--line", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    arguments = parser.parse_args()
    if arguments.line:
        print(json.dumps(line(arguments.line[0], int(arguments.line[1]))))
        return
    lines = []
    for tokens in arguments.tokens:
        for kind in arguments.kinds:
            done = subprocess.run(
                [sys.executable, __file__, "--line", kind, str(tokens)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            said = done.stdout.strip().splitlines()
            fallen = {"what": kind, "tokens": tokens, "failed": f"killed ({done.returncode})"}
            lines.append(json.loads(said[-1]) if done.returncode == 0 and said else fallen)
            print(lines[-1], flush=True)
    if arguments.save:
        save(arguments.save, [], facts=lines, bound_gib=BOUND_GIB)


if __name__ == "__main__":
    main()
