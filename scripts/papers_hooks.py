"""MkDocs hooks: the pages about the papers, made from the catalogue while the site is built."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from regard.papers.pages import pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the index into the navigation; the page of a row is reached through it."""
    assert config.nav is not None
    config.nav.append({"Papers": "papers/index.md"})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages."""
    for name, text in pages().items():
        files.append(File.generated(config, f"papers/{name}", content=text))
    return files
