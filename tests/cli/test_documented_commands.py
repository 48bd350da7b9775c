"""Every command that documents show is one that the command line takes."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from regard.bench.shrunk_models import MEASURES
from regard.cli.app import command
from regard.controls.registry import known as known_controls
from regard.policies import known as known_policies

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
# Parameter -> the names that it takes, where these are fixed.
NAMES = {
    "asked": set(MEASURES), "policies": set(known_policies()), "control": set(known_controls()),
}  # fmt: skip


def commands(page: Path) -> list[str]:
    """The commands in blocks of the shell, and whole ones between backticks."""
    text = page.read_text(encoding="utf-8")
    lines = [
        x for block in re.findall(r"```bash\n(.*?)```", text, re.S) for x in block.splitlines()
    ]
    # `regard bench` and `regard see --out` name a verb and an option.
    inline = re.findall(r"`(regard [a-z]+ [^`]*?[^`\s\\])\\?`", text)
    lines += [x for x in inline if not re.search(r"--\w+$", x)]
    return [x for x in lines if x.startswith("regard ")]


COMMAND = command()
SHOWN = [(str(page.relative_to(REPOSITORY)), x) for page in PAGES for x in commands(page)]


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command line makes of words, without running anything."""
    found, name = COMMAND, "regard"
    while True:
        context = found.make_context(name, words)
        if not hasattr(found, "resolve_command"):
            return context.params
        name, found, words = found.resolve_command(
            context, [*context._protected_args, *context.args]
        )


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_a_documented_command_is_taken(page: str, line: str) -> None:
    params = parsed(shlex.split(line, comments=True)[1:])
    for name, held in NAMES.items():
        given = params.get(name)
        if isinstance(given, str) and given not in ("...", name.upper()):
            assert set(given.split(",")) <= held, (page, line)
