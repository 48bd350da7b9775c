"""What no check may do: each rule returns what it found wrong, in words that say where."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from regard.papers.catalogue import row
from regard.papers.checks import Check
from regard.papers.claims import sentences
from regard.papers.closure import CHECKS, OWN, closure, path_of
from regard.papers.evidence_files import Evidence
from regard.papers.standing import verdict_of

SEEDING = {
    "manual_seed",
    "manual_seed_all",
    "default_rng",
    "seed_everything",
    "set_seed",
    "fork_rng",
    "RandomState",
}
CLOCKS = {"perf_counter", "process_time", "thread_time", "monotonic", "time_ns"}
COMPARED = {"below", "at_most", "above", "at_least", "within", "equals"}
# Whoever compares with a literal says on the line, or on the one above, what the number is.
REASON = "because"


def of_check(made: Check) -> list[str]:
    """Find what is wrong with one check, its helpers, and the sentences that it should answer."""
    module = made.function.__module__
    path = path_of(module)
    found = []
    if module != f"{CHECKS}.{made.key}":
        found.append(
            f"{made.key}: its check is in {module}: one file for each row, named by its key"
        )
    for name in sorted(closure([module])):
        if name.startswith(OWN):
            found += of_text(path_of(name))
    quotes = quoted(ast.parse(path.read_text(encoding="utf-8")))
    return found + of_sentences(made.key, quotes, made.narrowed, made.left_out)


def of_text(path: Path) -> list[str]:
    """Find randomness of its own, clocks, thresholds without a reason, claims of nothing."""
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    rules = (
        *_randomness(tree), *_clocks(tree), *_thresholds(tree, lines), *_comparators(tree),
    )  # fmt: skip
    return [f"{path.name}:{line}: {said}" for line, said in sorted(rules)]


def of_sentences(
    key: str, quotes: list[str], narrowed: Mapping[str, str], left_out: Mapping[str, str]
) -> list[str]:
    """Find sentences of the catalogue that no claim answers, and quotes that are of none."""
    asked = sentences(row(key).check or "")
    flat = [" ".join(one.split()) for one in asked]
    found, answered, out = [], set[int](), set[int]()
    for words in (*quotes, *narrowed, *left_out):
        at = [i for i, one in enumerate(flat) if " ".join(words.split()) in one]
        if len(at) != 1:
            found.append(f"{key}: {words!r} is in {len(at)} sentences of the catalogue, not in one")
            continue
        answered |= set(at) if words in quotes else set()
        out |= set(at) if words in left_out else set()
        if words in narrowed and not any(" ".join(q.split()) in flat[at[0]] for q in quotes):
            found.append(f"{key}: {words!r} is narrowed, and nothing answers what is left of it")
    for why in (*narrowed.values(), *left_out.values()):
        if len(why.split()) < 2:
            found.append(f"{key}: {why!r} is no reason")
    for i, one in enumerate(asked):
        if i not in answered | out:
            found.append(f"{key}: neither answered nor left out: {one}")
    return found


def of_evidence(found: Evidence) -> list[str]:
    """Find why evidence that is committed could not count, whatever it says."""
    verdict, why = verdict_of(found)
    wrong = []
    if verdict in ("dirty", "pinned", "few seeds", "unanswered"):
        wrong.append(f"{found.key}: {verdict}: {why}")
    moving = [one.measured for one in found.claims if any(map(_real, one.measured))]
    if moving and not found.same and all(len(set(map(repr, each))) == 1 for each in moving):
        wrong.append(
            f"{found.key}: every seed gives the same numbers: draw from the runner's seed, or say "
            "why nothing is drawn (`same=`)"
        )
    return wrong


def quoted(tree: ast.Module) -> list[str]:
    """List the words of the catalogue that the claims of a file quote."""
    found = [
        (node.lineno, node.col_offset, node.args[0].value)
        for node in ast.walk(tree)
        if _is_claim(node)
        and isinstance(node, ast.Call)
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ]
    return [words for _, _, words in sorted(found)]


def _randomness(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if last in SEEDING or name in ("random.seed", "np.random.seed", "numpy.random.seed"):
            yield (
                node.lineno,
                f"{name}(...): randomness comes from the runner",
            )
        drawn = node.args and not isinstance(node.args[0], ast.Constant)
        if (last == "Random" and not drawn) or last == "Generator":
            yield node.lineno, f"{name}(...): use seeding.generator() or seeding.seed()"
        for given in node.keywords:
            if given.arg in ("seed", "random_state") and isinstance(given.value, ast.Constant):
                yield node.lineno, f"{name}({given.arg}=literal): use seeding.seed()"


def _clocks(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Find clocks: what a busy machine slows down is the same for no reader."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "time.time" or name.rpartition(".")[2] in CLOCKS:
                yield node.lineno, f"{name}(): count operations or bytes (`linear_cost`), not time"


def _thresholds(tree: ast.Module, lines: list[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            numbers = [one for one in sides if isinstance(one, ast.Constant) and _real(one.value)]
            near = lines[max(node.lineno - 2, 0) : (node.end_lineno or node.lineno)]
            if "rand" in ast.unparse(node):
                continue  # a probability to draw with
            if numbers and not any(REASON in line.partition("#")[2] for line in near):
                yield node.lineno, "a comparison with a literal: say `# because ...`, or claim it"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr not in COMPARED - {"equals"} or not _is_claim(node.func.value):
                continue
            chosen = {one.arg for one in node.keywords} & {"times", "plus"}
            number = node.func.attr == "within" or chosen or (node.args and _literal(node.args[0]))
            if number and "because" not in {one.arg for one in node.keywords}:
                yield node.lineno, "a threshold without a reason: because=..."


def _comparators(tree: ast.Module) -> Iterator[tuple[int, str]]:
    compared = {
        id(node.func.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in COMPARED
    }
    for node in ast.walk(tree):
        if _is_claim(node) and isinstance(node, ast.Call):
            if id(node) not in compared:
                yield node.lineno, "a claim without a comparator: claim(...).below(...), and so on"
            if not node.args or not isinstance(node.args[0], ast.Constant):
                yield node.lineno, "a claim whose quote is not written out"


def _is_claim(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "claim"
    )


def _literal(node: ast.expr) -> bool:
    """Whether an expression is a number that somebody chose; zero is none."""
    if isinstance(node, ast.Constant) and node.value == 0:
        return False
    return not any(isinstance(one, ast.Name | ast.Call | ast.Attribute) for one in ast.walk(node))


def _real(number: object) -> bool:
    return isinstance(number, float) and not number.is_integer()
