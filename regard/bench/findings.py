"""The findings of a sweep, in sentences."""

from __future__ import annotations

from regard.bench.results import Results, cell_of
from regard.bench.statistics import MeanInterval, above_chance, ranking

LEARNED, UNLEARNED = 0.9, 0.1


def findings(results: Results) -> list[str]:
    """Return the main findings as sentences, and what remains open."""
    said = []
    scores, errors = results.scores()
    found = ranking(scores, errors)
    if len(found) > 1:
        (first, best), (second, next_best) = found[:2]
        if best.low > next_best.high:
            said.append(
                f"{first} is ahead: {_percent(best)} above chance on average, {second} "
                f"{_percent(next_best)}; their intervals do not overlap."
            )
        else:
            level = [name for name, x in found if x.high >= best.low]
            said.append(
                f"{', '.join(level)} cannot be distinguished: their intervals overlap "
                f"({_percent(best)} is the best mean)."
            )
    for cell in results.cells:
        said += _of_task(results, cell)
    lost = [(c, n) for c, n in ((c, _fallen(results, c)) for c in results.cells) if n]
    for cell, names in lost:
        said.append(
            f"{cell}: {', '.join(names)} learned it, and lost more than half of it on other tests "
            "(see other lengths and depths)."
        )
    if results.planned > len(results.records):
        said.append(f"{results.planned - len(results.records)} runs are not done yet.")
    return said


def _of_task(results: Results, cell: str) -> list[str]:
    chance = next(r["chance"] for r in results.records if cell_of(r) == cell)
    level: dict[str, float] = {}
    for layer in results.layers:
        found = results.score(layer, cell)
        if found is not None:
            level[layer] = above_chance(found.mean, chance)
    if not level:
        return []
    if max(level.values()) < UNLEARNED:
        return [f"{cell}: no layer learned it within the budget; so it does not rank them."]
    if min(level.values()) > LEARNED and len(level) > 1:
        return [f"{cell}: every layer learned it; a harder one would separate them."]
    learned = [name for name, x in level.items() if x > LEARNED]
    not_yet = [name for name, x in level.items() if x < UNLEARNED]
    parts = []
    if learned:
        parts.append(f"learned by {', '.join(learned)}")
    if not_yet:
        parts.append(f"not at all by {', '.join(not_yet)}")
    if not parts:
        best = max(level, key=lambda name: level[name])
        parts.append(f"in part by all, best by {best} ({100 * level[best]:.0f}% above chance)")
    return [f"{cell}: {'; '.join(parts)}."]


def _fallen(results: Results, cell: str) -> list[str]:
    """Return layers that learned a task and lose more than half on one of its other tests."""
    names = []
    for layer in results.layers:
        tests = [list(r["tests"].values()) for r in results.of(layer, cell)]
        if not tests or any(x["score"] is None for many in tests for x in many):
            continue
        first = sum(above_chance(many[0]["score"], many[0]["chance"]) for many in tests) / len(
            tests
        )
        worst = sum(min(above_chance(x["score"], x["chance"]) for x in many) for many in tests)
        if first > LEARNED and worst / len(tests) < first / 2:
            names.append(layer)
    return names


def _percent(x: MeanInterval) -> str:
    return f"{100 * x.mean:.0f}%"
