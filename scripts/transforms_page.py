"""Write the table of transforms into docs/transforms.md; with --check, try a sample against it.

`python scripts/transforms_page.py` tries every layer, and with the compiler those that were not yet
(`--again`: all, which takes long); `--untried NAME ...` leaves the rows that are done as they are,
and goes on where an earlier run was ended (with names: those alone, where one takes long);
`--check NAME ...` tries those named, and says what is no longer so.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import torch  # noqa: E402
from page_folder import with_table  # noqa: E402
from torch._dynamo.exc import TorchDynamoException  # noqa: E402
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from regard.conformance.cases import EQUAL, Case, cases_of, largest_gap  # noqa: E402
from regard.core.errors import RegardError  # noqa: E402
from regard.layers.registry import get, names  # noqa: E402

PAGE = ROOT / "docs" / "transforms.md"
BEGIN, END = "<!-- transforms:begin -->", "<!-- transforms:end -->"
UNTRIED = "not tried yet"
COLUMNS = ("meta", "vmap", "torch.func", "second derivatives", "fullgraph", "dynamic")


def second(case: Case) -> str:
    """Say whether second derivatives work on PyTorch's math backend."""
    layer = case.make()
    inputs = case.inputs(batch=1, tokens=6 if case.kind.can.any_length else None)
    x = list(inputs.values())[-1].requires_grad_()
    try:
        with sdpa_kernel(SDPBackend.MATH):
            (slope,) = torch.autograd.grad(layer(**inputs).square().sum(), x, create_graph=True)
            slope.square().sum().backward()
    except RegardError:
        return "refused"
    return "yes"


def compiled(case: Case, **settings: bool) -> str:
    """Say whether a compiled layer equals itself, at two lengths where lengths may vary."""
    layer = case.make()
    torch.compiler.reset()
    made = torch.compile(layer, backend="aot_eager", **settings)
    lengths = [case.tokens]
    if settings.get("dynamic") and case.kind.can.any_length:
        lengths.append(case.tokens + 12)
    for tokens in lengths:
        inputs = case.inputs(tokens=tokens)
        try:
            found = made(**inputs)
        except Exception as refused:  # the compiler has many kinds of error
            if not isinstance(refused, (TorchDynamoException, GuardOnDataDependentSymNode)):
                raise
            return "refused"
        if largest_gap(found, layer(**inputs)) > EQUAL:
            return "wrong"
    return "yes"


def quick(name: str) -> list[str]:
    """Try what takes no compiler: a word for each of the first columns."""
    torch.manual_seed(0)
    case, can = cases_of(name)[0], get(name).can
    return [
        "yes" if can.meta else "refused",
        "yes" if can.vmap else "refused",
        "yes" if can.exact_gradients else "yes, through choices",
        second(case),
    ]


def slow(name: str) -> list[str]:
    """Try what the compiler does: a word for each of the last columns."""
    torch.manual_seed(0)
    case = cases_of(name)[0]
    return [compiled(case, fullgraph=True), compiled(case, dynamic=True)]


def table(rows: dict[str, list[str]]) -> str:
    """Write the table."""
    lines = [f"| layer | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    lines += [f"| `{name}` | {' | '.join(words)} |" for name, words in sorted(rows.items())]
    return "\n".join(lines)


def written() -> dict[str, list[str]]:
    """Read the rows of the page."""
    text = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.strip().split("\n")]
    return {name.strip("`"): words for name, *words in cells[2:]}


def write(rows: dict[str, list[str]]) -> None:
    """Put the rows into the page."""
    PAGE.write_text(with_table(PAGE, "transforms", table(rows)), encoding="utf-8")


def main() -> int:
    """Write, or check."""
    if "--check" in sys.argv:
        chosen, rows = sys.argv[sys.argv.index("--check") + 1 :] or names(), written()
        found = {name: [*quick(name), *slow(name)] for name in chosen}
        wrong = {name: now for name, now in found.items() if rows.get(name) != now}
        for name, now in wrong.items():
            print(f"{name}: the page says {rows.get(name)}, it is {now}")
        return int(bool(wrong))
    before = written() if "| `" in PAGE.read_text(encoding="utf-8") else {}
    untried = [UNTRIED, UNTRIED]
    kept = {name: before.get(name, untried)[-2:] for name in names()}
    done = before if "--untried" in sys.argv else {}
    rows = {name: done.get(name) or [*quick(name), *kept[name]] for name in names()}
    write(rows)
    chosen = [word for word in sys.argv[1:] if not word.startswith("--")] or list(rows)
    for name, words in rows.items():
        if name in chosen and (UNTRIED in words or "--again" in sys.argv):
            rows[name] = [*words[:-2], *slow(name)]
            write(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
