"""Write the table of tasks into docs/tasks.md; with --check, only say whether it is in step."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import regard.tasks as tasks  # noqa: E402

PAGE = ROOT / "docs" / "tasks.md"
BEGIN, END = "<!-- tasks:begin -->", "<!-- tasks:end -->"


def page() -> str:
    """Give the page with the table as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{tasks.list()!r}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Write, or check."""
    wanted = page()
    if "--check" in sys.argv:
        return int(PAGE.read_text(encoding="utf-8") != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
