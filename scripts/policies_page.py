"""Write docs/policies/: an index, and for each policy its formula, source, settings and numbers."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

from page_folder import write  # noqa: E402

from regard.bench.shrunk_cells import Cell, read_cells  # noqa: E402
from regard.core.method import claims  # noqa: E402
from regard.policies import known  # noqa: E402
from regard.policies.budget import Budget  # noqa: E402
from regard.policies.kinds import Calibrated  # noqa: E402

FOLDER = ROOT / "docs" / "policies"
MEASURED = ROOT / "benchmarks" / "results" / "shrink-demo.json"
HEAD = """# Policies

Written by `python scripts/policies_page.py` from the policies themselves. Ask for them by name, or
make one with settings of its own: `regard.shrink(model, policy("snapkv", window=32))`.
[Make my model cheaper](../shrink.md) says which to take.

"""
WHAT = {
    "evicts": "evicts keys: what is gone cannot be asked again, so decoding that guesses ahead "
    "(assistants, prompt lookup) is refused once it has evicted",
    "stores": "stores keys and values in another way; the budget does not bear on it",
    "prompt": "computes less of a prompt; keys are all kept, with a cache or without",
    "decoding": "reads fewer keys at each step; all are kept, and an index beside them",
    "shares": "shares keys or weights among layers or heads",
    "images": "serves models that make images and videos, step by step",
}
TITLES = {
    "evicts": "Evict keys",
    "stores": "Store them smaller, or elsewhere",
    "prompt": "Compute less of a prompt",
    "decoding": "Read fewer keys when decoding",
    "shares": "Share among layers and heads",
    "images": "Make images and videos cheaper",
}
# Policies that have no row in the catalogue: title, authors, arXiv.
PAPERS = {
    "ada_kv": (
        "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM "
        "Inference",
        "Yuan Feng, Junlin Lv, Yukun Cao, Xike Xie, S. Kevin Zhou, 2024",
        "2407.11550",
    ),
    "expected_attention": (
        "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries "
        "Distribution",
        "Alessio Devoto and others, 2025",
        "2510.00636",
    ),
    "finch": (
        "FINCH: Prompt-guided Key-Value Cache Compression",
        "Giulio Corallo, Paolo Papotti, 2024",
        "2408.00167",
    ),
    "h2o": (
        "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
        "Zhenyu Zhang and others, 2023",
        "2306.14048",
    ),
    "kvzip": (
        "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction",
        "Jang-Hyun Kim and others, 2025",
        "2505.23416",
    ),
    "q_filters": (
        "Q-Filters: Leveraging QK Geometry for Efficient KV Cache Compression",
        "Nathan Godey and others, 2025",
        "2503.02812",
    ),
    "quest": (
        "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
        "Jiaming Tang, Yilong Zhao, Kan Zhu, Guangxuan Xiao, Baris Kasikci, Song Han, 2024",
        "2406.10774",
    ),
    "snapkv": (
        "SnapKV: LLM Knows What You are Looking for Before Generation",
        "Yuhong Li and others, 2024",
        "2404.14469",
    ),
    "streaming": (
        "Efficient Streaming Language Models with Attention Sinks",
        "Guangxuan Xiao, Yuandong Tian, Beidi Chen, Song Han, Mike Lewis, 2023",
        "2309.17453",
    ),
    "tova": (
        "Transformers are Multi-State RNNs",
        "Matanel Oren, Michael Hassid, Nir Yarden, Yossi Adi, Roy Schwartz, 2024",
        "2401.06104",
    ),
}


def kinds() -> dict[str, Any]:
    """Every policy by its own name."""
    return {kind.name: kind for kind in sorted(known().values(), key=lambda k: k.name)}


def page(kind: Any) -> str:
    """One policy."""
    names = [name for name, other in known().items() if other is kind and name != kind.name]
    lines = [f"# {kind.name}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
    lines += [f'`regard.shrink(model, "{kind.name}", keep=0.25)`', ""]
    fields = [f for f in dataclasses.fields(kind) if f.init and f.name != "keep"]
    if fields:
        lines += ["| setting | default |", "|---|---|"]
        lines += [f"| `{f.name}` | `{f.default!r}` |" for f in fields]
        lines.append("")
    lines.append(f"- {WHAT.get(kind.what, kind.what)}")
    if issubclass(kind, Calibrated) and kind.needed:
        lines.append(
            f"- needs a calibration: `regard calibrate {kind.name} MODEL --to FILE`, or "
            "`regard.policies.calibrate`"
        )
    elif issubclass(kind, Calibrated):
        lines.append(
            f"- can be calibrated: `regard calibrate {kind.name} MODEL --to FILE`, or "
            "`regard.policies.calibrate`"
        )
    lines += [f"- paper: `regard papers show {c.key}`" for c in claims() if c.obj is kind]
    if kind.name in PAPERS:
        title, authors, arxiv = PAPERS[kind.name]
        lines.append(f"- paper: [{title}](https://arxiv.org/abs/{arxiv}) ({authors})")
        lines.append(
            "- missing: a check of its own over five seeds; the catalogue has no row of it, "
            "and the laws of all policies (`tests/policies/test_laws.py`) are what holds it"
        )
    if names:
        lines.append(f"- also: {', '.join(names)}")
    lines += [f"- class: `{kind.__module__}.{kind.__name__}`", "", *measured(kind.name)]
    return "\n".join([*lines, "[All policies](index.md)", ""])


def measured(name: str) -> list[str]:
    """What it kept of the model that ships."""
    length = json.loads(MEASURED.read_text(encoding="utf-8"))["setting"]["length"]
    found = read_cells(MEASURED)
    cells = [c for c in found if c.policy == name]
    if not cells:
        return []
    full = next(c for c in found if c.policy == "full")
    cells.sort(key=lambda c: 0 if c.keep is None else Budget.of(c.keep).share or 0)
    return [
        f"On the model that ships, prompts of {length:,} tokens (`python benchmarks/shrink.py`):",
        "",
        "| keep | needles (95%) | keys recalled (95%) | bits a byte | bytes | FLOPs |",
        "|---" * 6 + "|",
        *(row(c) for c in (*cells, full)), "",
    ]  # fmt: skip


def row(cell: Cell) -> str:
    """One budget."""
    keep = "full model" if cell.policy == "full" else cell.keep or ""
    return (
        f"| {keep} | {cell.needle} | {cell.recall} | {cell.bits:.3f} | "
        f"{cell.bytes:.0%} | {cell.flops:.0%} |"
    )


def index() -> str:
    """All policies, by what they do."""
    lines = []
    for what, title in TITLES.items():
        lines += [f"## {title}", "", "| policy | what it does |", "|---|---|"]
        for name, kind in kinds().items():
            if kind.what == what:
                first = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
                said = " ".join(first.split()).replace("|", chr(92) + "|")
                lines.append(f"| [{name}]({name}.md) | {said} |")
        lines.append("")
    return HEAD + "\n".join(lines)


def pages() -> dict[Path, str]:
    """Every file, and what is to be in it."""
    made = {FOLDER / f"{name}.md": page(kind) for name, kind in kinds().items()}
    return {FOLDER / "index.md": index(), **made}


if __name__ == "__main__":
    write(FOLDER, pages())
