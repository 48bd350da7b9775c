"""Views: what was seen, as tables, pictures, files, and a page."""

from regard.views.run_file import Run, RunFileError
from regard.views.seen import ROLES, Seen

__all__ = ["ROLES", "Run", "RunFileError", "Seen"]
