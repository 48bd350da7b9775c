"""Write docs/probes.md: every probe with its formula, its source and what it must be shown."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from regard.probes import groups, known  # noqa: E402
from regard.views.seen import ROLES  # noqa: E402

HEAD = """# Probes

Written by `python scripts/probes_page.py` from the probes themselves. Ask for them by name, by
group, or as instances with settings of their own:
`regard.see(model, inputs, ["roles", Offset(3)])`. A[i, j]
is the weight of query i on key j; means are over queries, padding left out, and heads are query
heads (grouped keys are expanded in one place).

"""
SHOWN = {
    "text": "your own inputs",
    "repeated": "random tokens, shown twice, after the start token if there is one",
    "needle": "a pass key hidden in your text at four depths; needles that are not recalled "
    "do not count",
    "loss": "the model's loss on up to 512 tokens of your text, with its gradient",
}


def section(name: str, kind: type) -> str:
    """One probe."""
    doc = inspect.cleandoc(kind.__doc__ or "")
    member = [group for group, members in groups().items() if name in members]
    lines = [f"## {name}", "", doc, "", "| definition | formula and source |", "|---|---|"]
    lines += [f"| `{key}` | {text.replace('|', chr(92) + '|')} |"
              for key, text in kind.definitions.items()]  # fmt: skip
    lines += ["", f"- shown: {SHOWN[kind.stimulus]}"]
    lines += [f"- looks at: {', '.join(kind.kinds)} attention"
              + ("; the future must be hidden" if kind.causal_only else "")]  # fmt: skip
    lines += [f"- groups: {', '.join(member) or 'none; ask for it by name'}"]
    lines += [f"- a head has this role from {ROLES[name]} on"] if name in ROLES else []
    lines += [f"- class: `{kind.__module__}.{kind.__name__}`", ""]
    return "\n".join(lines)


def text() -> str:
    """The whole page."""
    return HEAD + "\n".join(section(name, kind) for name, kind in sorted(known().items()))


if __name__ == "__main__":
    (ROOT / "docs" / "probes.md").write_text(text(), encoding="utf-8")
