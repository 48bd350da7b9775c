"""MkDocs hooks: the gallery, whose pages are made while the site is built."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gallery import ROOT, index, pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages and the list of them."""
    files.append(File.generated(config, "gallery.md", content=index()))
    for name, path in pages(ROOT / "out" / "gallery").items():
        files.append(File.generated(config, f"gallery/{name}.html", content=path.read_bytes()))
    return files
