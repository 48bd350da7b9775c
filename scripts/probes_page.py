"""Write docs/probes/: an index, and a page for each probe with its formula and its source."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

from page_folder import write  # noqa: E402

from regard.probes import groups, known  # noqa: E402
from regard.views.seen import ROLES  # noqa: E402

FOLDER = ROOT / "docs" / "probes"
HEAD = """# Probes

Written by `python scripts/probes_page.py` from the probes themselves. Ask for them by name, by
group, or as instances with settings of their own:
`regard.see(model, inputs, ["roles", Offset(3)])`. A[i, j]
is the weight of query i on key j; means are over queries, padding left out, and heads are query
heads (grouped keys are expanded in one place). Analyses that are no score of each head, such as
patching, rollout and composition, are in [circuits](../circuits.md).

"""
SHOWN = {
    "text": "your own inputs",
    "repeated": "random tokens, shown twice, after the start token if there is one",
    "needle": "a pass key hidden in your text at four depths; needles that are not recalled "
    "do not count",
    "loss": "the model's loss on up to 512 tokens of your text, with its gradient",
    "weights": "nothing: it reads the weights, and needs no forward",
}


def page(name: str, kind: type) -> str:
    """One probe."""
    doc = inspect.cleandoc(kind.__doc__ or "")
    member = sorted(group for group, members in groups().items() if name in members)
    lines = [f"# {name}", "", doc, "", "| definition | formula and source |", "|---|---|"]
    lines += [f"| `{key}` | {text.replace('|', chr(92) + '|')} |"
              for key, text in kind.definitions.items()]  # fmt: skip
    lines += ["", f"- shown: {SHOWN[kind.stimulus]}"]
    lines += [f"- looks at: {', '.join(kind.kinds)} attention"
              + ("; the future must be hidden" if kind.causal_only else "")]  # fmt: skip
    lines += [f"- groups: {', '.join(member) or 'none; ask for it by name'}"]
    lines += [f"- a head has this role from {ROLES[name]} on"] if name in ROLES else []
    lines += [f"- class: `{kind.__module__}.{kind.__name__}{settings(kind)}`"]
    lines += ["", "[All probes](index.md)", ""]
    return "\n".join(lines)


def settings(kind: type) -> str:
    """What a probe can be told, where it has defaults that are plain."""
    given = inspect.signature(kind).parameters.values()
    told = [f"{x.name}={x.default!r}" for x in given
            if isinstance(x.default, int | float) and not isinstance(x.default, bool)]  # fmt: skip
    return f"({', '.join(told)})" if told else ""


def index() -> str:
    """All probes by group."""
    lines = []
    listed = {name for members in groups().values() for name in members}
    by_group = {name: sorted(members) for name, members in sorted(groups().items())}
    by_group["by name"] = sorted(name for name in known() if name not in listed)
    for group, members in by_group.items():
        lines += [f"## {group}", "", "| probe | what it says |", "|---|---|"]
        for name in members:
            first = inspect.cleandoc(known()[name].__doc__ or "").partition("\n\n")[0]
            said = " ".join(first.split()).replace("|", chr(92) + "|")
            lines.append(f"| [{name}]({name}.md) | {said} |")
        lines.append("")
    return HEAD + "\n".join(lines)


def pages() -> dict[Path, str]:
    """Every file, and what is to be in it."""
    made = {FOLDER / f"{name}.md": page(name, kind) for name, kind in sorted(known().items())}
    return {FOLDER / "index.md": index(), **made}


if __name__ == "__main__":
    write(FOLDER, pages())
