"""Write docs/controls/: an index, and a page for each control with its settings and its edits."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

from page_folder import write  # noqa: E402

from regard.controls import known  # noqa: E402
from regard.controls.base import Control  # noqa: E402

FOLDER = ROOT / "docs" / "controls"
HEAD = """# Controls

Written by `python scripts/controls_page.py` from the controls themselves. By name, or as a value:
`regard.steer(model, "emphasis", which="price")`, `regard.steer(pipeline, Emphasis(...))`. What all
of them share (`which`, `where`, `phase`, strength by row and step, the receipt) is in
[Steer](../steer.md), pipelines and branches in [Steer pictures](../steer-pictures.md).

"""
SERVES = {
    "language": "models of language", "images in a prompt": "models of language and vision",
    "decoding": "models of language, while they decode",
    "diffusion": "models that paint: UNets, SD3 and Flux kinds",
}  # fmt: skip
SHARED = {
    "which": "the tokens that are meant", "strength": "how much",
    "where": "layers, heads, kinds, steps, branches", "phase": '"prompt", "decoded" or "both"',
}  # fmt: skip


def prose(kind: type) -> str:
    """The docstring without its example."""
    return inspect.cleandoc(kind.__doc__ or "").partition(">>>")[0].strip()


def example(kind: type) -> str:
    """The example of the docstring."""
    lines = inspect.cleandoc(kind.__doc__ or "").splitlines()
    start = next((i for i, x in enumerate(lines) if x.startswith(">>>")), len(lines))
    return "\n".join(lines[start:]).strip()


def default(field: dataclasses.Field) -> str:  # type: ignore[type-arg]
    """How a default reads; what must be given has none."""
    if field.default is dataclasses.MISSING:
        return "must be given"
    return f"`{field.default!r}`"


def names_of(kind: type[Control]) -> list[str]:
    """Every name of a control, its own first."""
    others = sorted(n for n, k in known().items() if k is kind and n != kind.name)
    return [kind.name, *others]


def page(kind: type[Control]) -> str:
    """One control."""
    own, *others = names_of(kind)
    lines = [f"# {own}", "", prose(kind), ""]
    lines += [f"- serves: {SERVES[kind.models]}"]
    lines += [f"- also called: {', '.join(others)}"] if others else []
    if kind.neutral is not None:
        lines += [f"- at strength {kind.neutral:g} nothing changes, bit for bit"]
    if kind.branch:
        lines += [f"- acts in the {kind.branch} branch of guidance, where branches are told"]
    lines += [f"- class: `{kind.__module__}.{kind.__name__}`", ""]
    lines += ["| setting | default | |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        said = default(field).replace("|", chr(92) + "|")
        lines.append(f"| `{field.name}` | {said} | {SHARED.get(field.name, '')} |")
    lines += ["", "```pycon", f">>> from {kind.__module__} import {kind.__name__}"]
    lines += [example(kind), "```", "", "[All controls](index.md)", ""]
    return "\n".join(lines)


def kinds() -> list[type[Control]]:
    """Every control once, by name."""
    return sorted(set(known().values()), key=lambda kind: kind.name)


def index() -> str:
    """All controls, by what they serve."""
    lines = []
    for models, said in SERVES.items():
        own = [kind for kind in kinds() if kind.models == models]
        if not own:
            continue
        lines += [f"## {said[0].upper()}{said[1:]}", "", "| control | what it does |", "|---|---|"]
        for kind in own:
            first = " ".join(prose(kind).partition("\n\n")[0].split())
            first = first.replace("|", chr(92) + "|")
            lines.append(f"| [{kind.name}]({kind.name}.md) | {first} |")
        lines.append("")
    return HEAD + "\n".join(lines)


def pages() -> dict[Path, str]:
    """Every file, and what is to be in it."""
    made = {FOLDER / f"{kind.name}.md": page(kind) for kind in kinds()}
    return {FOLDER / "index.md": index(), **made}


if __name__ == "__main__":
    write(FOLDER, pages())
