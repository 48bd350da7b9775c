"""`regard see`: look at the heads of a model."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.printing import bars, console, print_json

Model = Annotated[
    str | None,
    typer.Argument(help="A folder or a name on the hub; without one, the model that ships."),
]
Probes = Annotated[
    str,
    typer.Option(help="Probes or groups, by commas: roles, sinks, shape, importance, vision, ..."),
]
Heads = Annotated[
    str, typer.Option(help="How many heads to keep in full, or which: '1,3 2,0' for L1H3 and L2H0.")
]


def command(
    model: Model = None,
    text: Annotated[str | None, typer.Option(help="Text to read.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file of text to read.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture, for models that see.")] = None,
    probes: Probes = "",
    heads: Heads = "12",
    out: Annotated[Path, typer.Option(help="Where to write the page and the data.")] = Path("seen"),
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    revision: Annotated[str | None, typer.Option(help="Of a model on the hub.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files that Regard did not write.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """See what the heads of a model do: a table, findings in words, and a page to look closer."""
    from regard.core.errors import need
    from regard.models.loading import load
    from regard.verbs import see

    began = time.perf_counter()
    # Its bar for loading weights would stand above ours.
    need("transformers", "hf", "loads models").utils.logging.disable_progress_bar()
    inputs, picture = _inputs(model, text, file, image)
    loaded, tokenizer = load(model, revision)
    with nullcontext() if as_json else bars("sites") as progress:
        seen = see(
            loaded, inputs, probes.replace(",", " ").split() or None, tokenizer=tokenizer,
            heads=_heads(heads), progress=progress,
        )  # fmt: skip
    seen.model = {**seen.model, "name": model or "the demo model"}
    seen.image = picture
    endings = (".html", ".npz", ".png", ".csv")
    files = [seen.save(out / f"heads{suffix}", overwrite=force) for suffix in endings]
    if as_json:
        print_json({"findings": seen.findings(), "files": [str(x) for x in files]})
    else:
        screen = console()
        screen.print(seen.table())
        for sentence in seen.findings():
            screen.print(f"  {sentence}", markup=False)
        took = time.perf_counter() - began
        screen.print(f"\nopen {files[0]} to look closer ({took:.1f} s)", markup=False)
        screen.print(f"beside it: {', '.join(x.name for x in files[1:])}", markup=False)
    if open_page:
        import webbrowser

        webbrowser.open(files[0].resolve().as_uri())


def _inputs(model: str | None, text: str | None, file: Path | None, image: Path | None) -> Any:
    """What to show, and the picture as bytes where there is one."""
    from regard.core.errors import RuleError, fail, need

    given = [x for x in (text, file, image) if x is not None]
    if len(given) > 1:
        fail(
            RuleError, "--text, --file, --image", f"{len(given)} of them", "one of them",
            "look at one thing at a time",
        )  # fmt: skip
    if file is not None:
        try:
            return file.read_text(encoding="utf-8", errors="replace"), None
        except OSError as error:
            fail(RuleError, "--file", f"{file} ({error.strerror})", "a file of text", "name one")
    if image is None:
        return text, None
    need("PIL", "hf", "reads pictures")
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    transformers = need("transformers", "hf", "prepares pictures for models")
    try:
        picture = Image.open(image).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        fail(RuleError, "--image", f"{image} ({error})", "a picture", "name a PNG or JPEG file")
    processor = transformers.AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
    pixels = processor(picture, return_tensors="pt")
    side = pixels["pixel_values"].shape[-2:]
    return dict(pixels), np.asarray(picture.resize((side[1], side[0])), np.uint8)


def _heads(asked: str) -> int | list[tuple[int, int]]:
    from regard.core.errors import RuleError, fail

    try:
        if asked.strip().isdigit():
            return int(asked)
        pairs = [tuple(int(x) for x in pair.split(",")) for pair in asked.split()]
        return [(layer, head) for layer, head in pairs]
    except ValueError:
        return fail(
            RuleError, "--heads", repr(asked), "a number, or pairs such as '1,3 2,0'",
            "name heads as LAYER,HEAD",
        )  # fmt: skip
