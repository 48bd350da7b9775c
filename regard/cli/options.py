"""Arguments and options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Argument(help="A folder or a name on the hub; without one, the model that ships."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Overwrite files of yours, or those of another model or inputs."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ListThem = Annotated[bool, typer.Option("--list", help="List all names, and exit.")]
Out = Annotated[Path, typer.Option(help="Folder to write to.")]
