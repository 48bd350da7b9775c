"""`regard see`: look at the heads of a model."""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.asking import listed, read_text, whole, writable_folder
from regard.cli.completing import one_of_probes
from regard.cli.options import AsJson, Force, Model, Revision
from regard.cli.printing import bars, console, print_json

Probes = Annotated[
    str,
    typer.Option(
        help="Probes or groups, comma-separated: standard (roles, sinks, shape), importance, ...",
        autocompletion=one_of_probes,
    ),
]
Heads = Annotated[
    str | None,
    typer.Option(
        help="How many heads to keep in full, or which: '1,3 2,0' for L1H3 and L2H0, or names as "
        "'vision.L1H3'. Default: 12, or all of a small model on a short text."
    ),
]
# A head as pages and tables name it.
NAME = re.compile(r"(?:[A-Za-z_]+\.)?L\d+[A-Z]?H\d+")


def command(
    model: Model = None,
    text: Annotated[str | None, typer.Option(help="Text to read.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file of text to read.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="A picture, for vision models; with --text for both.")
    ] = None,
    probes: Probes = "",
    importance: Annotated[
        bool,
        typer.Option(
            "--importance",
            help="Also measure how much the loss depends on each head (a backward pass).",
        ),
    ] = False,
    heads: Heads = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and the data.")] = Path("seen"),
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    revision: Revision = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Show what the heads of a model do: a table, findings in words, and an interactive page."""
    from regard.cli.models import config_of, quiet_transformers
    from regard.cli.showing import inputs_of, need_modality, picture_at
    from regard.core.errors import CapabilityError, RuleError, fail, need
    from regard.models.loading import load, shown_name
    from regard.probes.registry import make_probes
    from regard.verbs import see
    from regard.views.overwrite import need_replaceable

    began = time.perf_counter()
    # Check what needs no weights before loading them.
    for package, why in (("matplotlib", "draws pictures"), ("pandas", "makes tables of scores")):
        need(package, "see", why)
    if text is not None and file is not None:
        fail(RuleError, "--text", "text beside --file", "one of them", "leave one of them out")
    if text is not None and not text.strip():
        fail(RuleError, "--text", "empty text", "some words", "pass text to read")
    words = text if file is None else read_text("--file", file)
    kept = _heads(heads)
    asked = listed("--probes", probes, empty=True)
    make_probes([name for name in asked if name != "standard"])
    if importance:
        asked = [*(asked or ["standard"]), "importance"]
    picture = None if image is None else picture_at(image)
    config = config_of(model, revision)
    need_modality(config, words, picture, model)
    _need_heads(config, kept)
    writable_folder("--out", out)
    quiet_transformers()
    loaded, tokenizer = load(model, revision)
    if picture is None and tokenizer is None:
        fail(
            CapabilityError, "model", f"{model}, which has no tokenizer", "one beside the model",
            "pass ids from Python: regard.see(model, ids)",
        )  # fmt: skip
    inputs, shown = inputs_of(model, revision, words, picture)
    with nullcontext() if as_json else bars("sites") as progress:
        seen = see(
            loaded, inputs, asked or None, tokenizer=tokenizer, heads=kept, progress=progress,
        )  # fmt: skip
    seen.model = {**seen.model, "name": shown_name(model)}
    if shown is not None:
        seen.image = shown
    endings = (".html", ".csv", ".npz", ".png")  # build the table while its run exists
    if not force:
        need_replaceable([out / f"heads{suffix}" for suffix in endings], seen.run().origin)
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


def _heads(asked: str | None) -> int | list[tuple[int, int] | str] | None:
    from regard.core.errors import RuleError, fail

    if asked is None:
        return None
    if (count := whole(asked.strip())) is not None:
        return count
    found: list[tuple[int, int] | str] = []
    for word in asked.split():
        pair = [x for x in map(whole, word.split(",")) if x is not None]
        if len(pair) == 2 and word.count(",") == 1:
            found.append((pair[0], pair[1]))
        elif NAME.fullmatch(word):
            found.append(word)
        else:
            found.clear()
            break
    if not found:
        fail(
            RuleError, "--heads", repr(asked), "a number, or pairs such as '1,3 2,0', or names",
            "name heads as LAYER,HEAD, or as the page does: L1H3, vision.L1H3",
        )  # fmt: skip
    return found


def _need_heads(config: Any, kept: int | list[tuple[int, int] | str] | None) -> None:
    """Raise if the config has no such head."""
    from regard.core.errors import ValueRangeError, fail

    inner = config.get_text_config()
    layers, heads = (getattr(inner, x, None) for x in ("num_hidden_layers", "num_attention_heads"))
    if kept is None or isinstance(kept, int):
        return
    if not isinstance(layers, int) or not isinstance(heads, int):
        return
    if inner is not config or getattr(config, "is_encoder_decoder", False):
        return  # several towers: their layers are known once the model is loaded
    for one in kept:
        if isinstance(one, str):
            continue  # checked when the model is loaded, whose sites have names
        layer, head = one
        if layer >= layers or head >= heads:
            fail(
                ValueRangeError, "--heads", f"{layer},{head}",
                f"layers 0 to {layers - 1} and heads 0 to {heads - 1}", "count from 0",
            )  # fmt: skip
