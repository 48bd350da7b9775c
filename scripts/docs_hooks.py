"""MkDocs hooks: one API page for each module of the package, made while the site is built."""

from __future__ import annotations

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import regard

PACKAGE = Path(__file__).resolve().parent.parent / "regard"
# In reading order; the rest follow by name.
FIRST = ("core", "run", "layers", "memories", "models")


def modules() -> dict[str, str]:
    """Dotted name of each public module, with the first line of its docstring."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if any(part.startswith("_") for part in parts):
            continue
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[".".join(parts)] = said.partition("\n")[0]
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _folder(name: str) -> str:
    """First name under `regard` ('' for the face)."""
    return name.partition(".")[2].partition(".")[0]


def _short(name: str) -> str:
    """The name as it is said within its folder."""
    return name.removeprefix(f"regard.{_folder(name)}.").removeprefix("regard.")


def _order(name: str) -> tuple[int, str]:
    folder = _folder(name)
    return (FIRST.index(folder) if folder in FIRST else len(FIRST) * bool(folder), name)


def _index() -> str:
    lines = ["# API", "", "| module | what it holds |", "|---|---|"]
    for name, said in modules().items():
        said = said.replace("|", "\\|")
        lines.append(f"| [`{name}`]({name}.md) | {said} |")
    return "\n".join(lines) + "\n"


def _face() -> str:
    """List the public names, each with where it is described."""
    lines = ["", "| name | what it is |", "|---|---|"]
    for name in regard.__all__:
        found = getattr(regard, name)
        if hasattr(found, "__module__"):
            said = (found.__doc__ or "").partition("\n")[0].replace("|", "\\|")
            lines.append(f"| [`{name}`][{found.__module__}.{found.__qualname__}] | {said} |")
    return "\n".join(lines) + "\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages into the navigation, grouped by folder."""
    groups: dict[str, list[dict[str, str]]] = {}
    for name in modules():
        groups.setdefault(_folder(name) or "regard", []).append({_short(name): f"api/{name}.md"})
    pages = [{"All modules": "api/index.md"}, *({k: v} for k, v in groups.items())]
    assert config.nav is not None
    config.nav = [{"API": pages} if entry == "API" else entry for entry in config.nav]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages."""
    files.append(File.generated(config, "api/index.md", content=_index()))
    for name in modules():
        page = f"# `{name}`\n\n::: {name}\n{'' if '.' in name else _face()}"
        files.append(File.generated(config, f"api/{name}.md", content=page))
    return files
