"""Make the pages of the gallery: python scripts/gallery.py FOLDER.

Each is made by the code that stands here, from models that ship, so that the gallery cannot fall
behind: the build of the documentation makes them (`scripts/gallery_hooks.py`), and makes them again
where a file of the package has changed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import regard
from regard.models.loading import load
from regard.verbs import default_text
from regard.views.page import page

ROOT = Path(__file__).resolve().parent.parent
SENTENCE = "When Mary and John went to the store, John gave a drink to Mary."


class Entry(NamedTuple):
    """One page of the gallery: its title, what to look at in it, and how it is made."""

    title: str
    about: str
    make: Callable[[], str]
    picture: str = ""
    opens: str = ""


def of_sentence() -> str:
    """One sentence, every head kept."""
    model, tokenizer = load()
    return page(regard.see(model, SENTENCE, tokenizer=tokenizer).run())


def of_code() -> str:
    """Code and prose of 2,048 tokens."""
    model, tokenizer = load()
    ids = tokenizer(default_text(20000))["input_ids"][:2048]
    return page(regard.see(model, torch.tensor([ids]), tokenizer=tokenizer).run())


def of_change() -> str:
    """A head before and after its queries got colder."""
    text = "def add(a, b):\n    return a + b\n\n" * 12
    model, tokenizer = load()
    before = regard.see(model, text, tokenizer=tokenizer)
    with torch.no_grad():
        model.model.layers[3].self_attn.q_proj.weight.view(8, -1, model.config.hidden_size)[5] *= (
            0.2
        )
    return page(regard.compare(before, regard.see(model, text, tokenizer=tokenizer)))


def of_painter() -> str:
    """A prompt over the image that was painted."""
    from regard.models.shape_painter import load_painter

    torch.manual_seed(0)
    return page(regard.see(load_painter(), "a red ring and a blue square").run())


GALLERY = {
    "sentence": Entry(
        "A sentence", "Its words twice, and a line for each weight; the heads that tell most.",
        of_sentence, "see-lines", "#head=3.5",
    ),
    "code": Entry(
        "2,048 tokens of code", "Roles, findings whose heads are links, stripes of induction in "
        "the whole map, exact weights when zoomed in.", of_code, "see-page",
    ),
    "change": Entry(
        "What a change changed", "Two runs of one text: heads ranked by how far apart they look, "
        "maps A, B and B - A.", of_change, "see-change",
    ),
    "painter": Entry(
        "Words over an image", "The painter that ships: each word's patches, each patch's words, "
        "sliders over steps and layers.", of_painter, "see-words",
    ),
}  # fmt: skip


def digest() -> str:
    """Hash what the pages are made by: this script and the package, its evidence left out."""
    made = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted((ROOT / "regard").rglob("*")):
        parts = path.relative_to(ROOT / "regard").parts
        if path.suffix in (".py", ".js", ".css", ".html", ".safetensors") and parts[0] != "papers":
            made.update(path.read_bytes())
    return made.hexdigest()[:16]


def pages(folder: Path) -> dict[str, Path]:
    """Make the pages into a folder, where they are not there as they would be made now."""
    home = folder / digest()
    home.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, entry in GALLERY.items():
        found[name] = home / f"{name}.html"
        if not found[name].exists():
            part = home / f"{name}.part"
            part.write_text(entry.make(), encoding="utf-8")
            part.rename(found[name])
    return found


def index() -> str:
    """Write the page that lists them."""
    lines = [
        "# Gallery", "",
        "Pages as `regard see`, `regard compare` and `regard.see` write them, made while this site "
        "was built (`scripts/gallery.py`). Each is one file that asks the network for nothing.", "",
    ]  # fmt: skip
    for name, entry in GALLERY.items():
        page = f"gallery/{name}.html"
        lines += [f"## {entry.title}", "", f"{entry.about} [Open it]({page})", ""]
        if entry.picture:
            lines += [f"[![{entry.title}](images/{entry.picture}.png)]({page}{entry.opens})", ""]
    return "\n".join([*lines, "How to make your own: [See](see.md), [recipes](recipes.md).", ""])


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "out" / "gallery")
    for path in pages(folder).values():
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
