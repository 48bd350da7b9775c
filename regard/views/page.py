"""A run as one page: a single HTML file that asks the network for nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from regard.core.files import write_bytes
from regard.views.colors import RAMP, ROLE_COLORS
from regard.views.overwrite import may_replace, sealed_page
from regard.views.run_file import Run

# The parts of the page. Each declares its own script (NAME.js), and where it has some its style
# (NAME.css) and its section (NAME.html). Scripts are one module in this order, so that the page
# opens from a disk without a server; a view registers itself, and the address names it.
PARTS = ("style", "data", "color", "state", "patches", "words", "overview", "telling",
         "heads_view", "rollout", "head", "map", "lines", "pinned", "text", "head_view", "compare",
         "main")  # fmt: skip


def page(run: Run, after: str = "") -> str:
    """Write the page of a run; `after` is script of your own that runs when the page is ready.

    >>> text = page(Run({"title": "none", "sites": [], "scores": {}}, {}))
    >>> "default-src 'none'" in text
    True
    """
    script, style, sections = (_parts(kind) for kind in ("js", "css", "html"))
    script = script.replace("$RAMP", json.dumps(RAMP)).replace("$ROLES", json.dumps(ROLE_COLORS))
    script += f"\nawait ready;\n{after}" if after else ""
    # Inline styles are set by the script as properties, which this policy does not concern.
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    manifest = json.dumps(run.manifest, ensure_ascii=False, separators=(",", ":"))
    index = (files("regard.views") / "page_files" / "index.html").read_text(encoding="utf-8")
    return Template(index).substitute(
        CSP=policy,
        TITLE=html.escape(str(run.manifest.get("title", "Regard"))),
        STYLE=style,
        SECTIONS=sections,
        SCRIPT=script,
        # Within a script element only "<" could end it.
        MANIFEST=manifest.replace("<", "\\u003c"),
        ARRAYS="\n".join(_element(name, x) for name, x in run.arrays.items()),
    )


def write_page(run: Run, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the page of a run to a file.

    A page of the same model and inputs that is there is replaced, anything else only where
    `overwrite` is true.
    """
    body, there = sealed_page(page(run), run.origin), may_replace(run.origin)
    return write_bytes(path, body, may_replace=True if overwrite else there)


def _parts(kind: str) -> str:
    """Join what the parts declare of one kind: "js", "css" or "html"."""
    home = files("regard.views") / "page_files"
    found = [home / f"{name}.{kind}" for name in PARTS]
    return "\n".join(x.read_text(encoding="utf-8") for x in found if x.is_file())


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


# Margins are drawn 36 pixels thick: a byte each, in even steps up to their largest, or in steps of
# OCTAVES / 255 below it.
LEVELS = {"entropy": "even", "received": "octaves"}
OCTAVES = 24


def _element(name: str, x: np.ndarray) -> str:
    more, how = "", LEVELS.get(name.partition("/")[0])
    if how is not None:
        x = np.nan_to_num(x.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        most = max(float(x.max(initial=0.0)), 1e-30)
        with np.errstate(divide="ignore"):
            part = x / most if how == "even" else 1 + np.log2(x / most) / OCTAVES
        x = (255 * part.clip(0, 1)).round().astype(np.uint8)
        more = f' data-levels="{how}" data-most="{most!r}"'
    packed = base64.b64encode(gzip.compress(np.ascontiguousarray(x).tobytes(), 6, mtime=0))
    shape = ",".join(map(str, x.shape))
    return (
        f'<script type="text/plain" id="a:{html.escape(name)}" data-type="{x.dtype.name}" '
        f'data-shape="{shape}"{more}>{packed.decode()}</script>'
    )
