"""Classes by their path: whatever the module of a user does when it is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from regard.core.errors import RuleError
from regard.core.registry import Registry

ENDS = {
    "leaves": "import sys\nsys.exit(3)\n",
    "quits": "raise SystemExit('bad arguments')\n",
    "fails": "1 / 0\n",
    "lacks": "",
}


@pytest.mark.parametrize("name", ENDS)
def test_a_module_that_ends_python_is_one_clear_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}_at_import.py").write_text(ENDS[name])
    monkeypatch.syspath_prepend(str(tmp_path))
    colors: Registry[object] = Registry("color", "regard.core", "take one of these")
    with pytest.raises(RuleError, match=r"a color by its path, package\.module:Class") as told:
        colors.get(f"{name}_at_import:Red")
    assert f"{name}_at_import:Red" in str(told.value)


def test_a_user_who_interrupts_is_not_told_of_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "waits_at_import.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        Registry("color", "regard.core", "take one of these").get("waits_at_import:Red")
