"""Jobs for vLLM, each in a fresh process (`ask_vllm.py`); models and texts that they are about."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


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


def tiny(
    folder: Path, layers: int = 3, hidden: int = 256, heads: int = 4, key_heads: int = 0,
    head_size: int = 64,
) -> str:  # fmt: skip
    """Make a random Llama; every two heads share keys, unless `key_heads` says otherwise."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads or heads // 2,
        head_dim=head_size, vocab_size=512,
        max_position_embeddings=16384, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def random_llama(path: str) -> Any:
    """Load what `tiny` made, in float32."""
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    return LlamaForCausalLM.from_pretrained(path).float().eval()


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
