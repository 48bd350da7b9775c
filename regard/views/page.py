"""A run as one page: a single HTML file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from pathlib import Path
from string import Template

from regard.core.files import write_bytes
from regard.views.colors import COLOR_OF_ROLE, RAMP, role_color
from regard.views.overwrite import may_replace, sealed_page
from regard.views.page_weight import budget, elements
from regard.views.run_file import Run

# The parts of the page. Each declares its own script (NAME.js), and where it has some its style
# (NAME.css) and its section (NAME.html). Scripts are one module in this order, so that the page
# opens from a disk without a server; a view registers itself, and the address names it.
PARTS = ("style", "data", "color", "state", "patches", "words", "overview", "telling",
         "heads_view", "rollout", "head", "map", "lines", "pinned", "channels", "text", "head_view",
         "compare", "main")  # fmt: skip
# Bytes for what is known late: which heads are left out, and the seal of the page.
ROOM = 4096


def page(run: Run, after: str = "") -> str:
    """Write the page of a run; `after` is script of your own that runs when the page is ready.

    >>> text = page(Run({"title": "none", "sites": [], "scores": {}}, {}))
    >>> "default-src 'none'" in text
    True
    """
    script, style, sections = (_parts(kind) for kind in ("js", "css", "html"))
    colors = {**COLOR_OF_ROLE, "": role_color("")}
    script = script.replace("$RAMP", json.dumps(RAMP)).replace("$ROLES", json.dumps(colors))
    script += f"\nawait ready;\n{after}" if after else ""
    # Inline styles are set by the script as properties, which this policy does not concern.
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    index = (files("regard.views") / "page_files" / "index.html").read_text(encoding="utf-8")
    known = sum(len(x.encode()) for x in (index, style, sections, script, _manifest(run)))
    room = budget(len(run.manifest.get("tokens") or ())) - known - ROOM
    run, arrays = elements(run, room)
    return Template(index).substitute(
        CSP=policy,
        TITLE=html.escape(str(run.manifest.get("title", "Regard"))),
        STYLE=style,
        SECTIONS=sections,
        SCRIPT=script,
        MANIFEST=_manifest(run),
        ARRAYS="\n".join(arrays),
    )


def write_page(run: Run, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the page of a run to a file.

    A page of the same model and inputs that is there is replaced, anything else only where
    `overwrite` is true.
    """
    body, there = sealed_page(page(run), run.origin), may_replace(run.origin)
    return write_bytes(path, body, may_replace=True if overwrite else there)


def _manifest(run: Run) -> str:
    """The manifest as it stands in a script element, which only "<" could end."""
    said = json.dumps(run.manifest, ensure_ascii=False, separators=(",", ":"))
    return said.replace("<", "\\u003c")


def _parts(kind: str) -> str:
    """Join what the parts declare of one kind: "js", "css" or "html"."""
    home = files("regard.views") / "page_files"
    found = [home / f"{name}.{kind}" for name in PARTS]
    return "\n".join(x.read_text(encoding="utf-8") for x in found if x.is_file())


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
