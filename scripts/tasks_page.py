"""Write the table of tasks into docs/tasks.md; with --check, only say whether it is in step."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from page_folder import main, with_table  # noqa: E402

import regard.tasks as tasks  # noqa: E402

PAGE = ROOT / "docs" / "tasks.md"


def page() -> str:
    """Return the page with the table as it should be."""
    return with_table(PAGE, "tasks", repr(tasks.list()))


if __name__ == "__main__":
    sys.exit(main(PAGE, page()))
