"""Every test asserts something, itself or by a helper: one that cannot fail is none."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What fails by itself where something is wrong.
ASSERTS = {
    *("raises", "warns", "fail", "assert_close", "assert_equal", "assert_allclose"),
    *("assert_array_equal", "gradcheck", "gradgradcheck"),
}


def called(node: ast.AST) -> set[str]:
    """Names of everything that a function calls."""
    calls = (x.func for x in ast.walk(node) if isinstance(x, ast.Call))
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}


def cannot_fail(sources: list[str]) -> list[str]:
    """Names of the tests in some files that assert nothing."""
    functions = [
        node
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    ]
    # `law` is a test that another test is given.
    fails = ASSERTS | {"law"}
    fails |= {f.name for f in functions if any(isinstance(x, ast.Assert) for x in ast.walk(f))}
    before = -1
    while len(fails) != before:
        before = len(fails)
        fails |= {f.name for f in functions if called(f) & fails}
    return [f.name for f in functions if f.name.startswith("test_") and f.name not in fails]


def test_every_test_asserts_something():
    paths = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "regard" / "conformance").rglob("*.py")]
    found = cannot_fail([path.read_text(encoding="utf-8") for path in paths])
    assert not found, f"assert something in {', '.join(found)}"


def test_a_test_that_asserts_nothing_is_found():
    helper = "def close(x):\n    assert x\n"
    one = "def test_one():\n    close(1)\n\ndef test_two():\n    print(2)\n"
    assert cannot_fail([helper, one]) == ["test_two"]
