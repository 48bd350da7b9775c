"""Write docs/policies.md: every policy with its formula, its source, settings and limits."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from regard.core.method import claims  # noqa: E402
from regard.policies import known  # noqa: E402

HEAD = """# Policies

Written by `python scripts/policies_page.py` from the policies themselves. Ask for them by name, or
make one with settings of its own: `regard.shrink(model, policy("snapkv", window=32))`.

"""
WHAT = {
    "evicts": "evicts keys: what is gone cannot be asked again, so decoding that guesses ahead "
    "(assistants, prompt lookup) is refused once it has evicted",
    "stores": "stores keys and values in another way; the budget does not bear on it",
    "prompt": "computes less of a prompt; keys are all kept, with a cache or without",
    "decoding": "reads fewer keys at each step; all are kept, and an index beside them",
    "shares": "shares keys or weights among layers or heads",
    "images": "serves models of diffusers that make images or videos; keeps no keys",
}


def section(kind: type) -> str:
    """One policy."""
    names = [name for name, other in known().items() if other is kind and name != kind.name]
    doc = inspect.cleandoc(kind.__doc__ or "")
    fields = [f for f in dataclasses.fields(kind) if f.init and f.name != "keep"]
    lines = [f"## {kind.name}", "", doc, ""]
    if fields:
        lines += ["| setting | default |", "|---|---|"]
        lines += [f"| `{f.name}` | `{f.default!r}` |" for f in fields]
        lines.append("")
    lines.append(f"- {WHAT[kind.what]}")
    if kind.calibrated:
        lines.append("- needs a calibration: `regard.policies.calibrate(model, name, ..., to=...)`")
    rows = [c.key for c in claims() if c.obj is kind]
    if rows:
        lines.append(f"- paper: `regard papers {rows[0]}`")
    if names:
        lines.append(f"- also: {', '.join(names)}")
    lines += [f"- class: `{kind.__module__}.{kind.__name__}`", ""]
    return "\n".join(lines)


def text() -> str:
    """The whole page."""
    kinds = {kind.name: kind for kind in known().values()}
    return HEAD + "\n".join(section(kinds[name]) for name in sorted(kinds))


if __name__ == "__main__":
    (ROOT / "docs" / "policies.md").write_text(text(), encoding="utf-8")
