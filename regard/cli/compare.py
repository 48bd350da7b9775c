"""`regard compare`: what changed between two runs of `regard see` on the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regard.cli.asking import writable_file
from regard.cli.options import AsJson, Force
from regard.cli.printing import console, print_json

Side = Annotated[Path, typer.Argument(help="A run that `regard see` wrote: a file, or its folder.")]


def command(
    a: Side,
    b: Side,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compared/change.html"),
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Compare two runs on the same text: which heads changed, how much, and a page of both."""
    from regard.core.errors import RuleError, fail
    from regard.verbs import compare
    from regard.views.page import write_page

    if out.suffix != ".html":
        fail(RuleError, "--out", str(out), "a name that ends in .html", "pass --out change.html")
    writable_file("--out", out)
    run = compare(*(x / "heads.npz" if x.is_dir() else x for x in (a, b)))
    page = write_page(run, out, overwrite=force)
    said = run.manifest.get("findings", [])
    if as_json:
        print_json({"findings": said, "files": [str(page)]})
        return
    for sentence in said:
        console().print(f"  {sentence}", markup=False)
    console().print(f"\nopen {page} to look closer", markup=False)
