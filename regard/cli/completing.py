"""Tab completion of names: layers, policies, controls, probes, tasks, measures and papers."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def _last_of(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Complete the last name of a comma-separated list."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(last)]

    return complete


def _policies() -> Iterable[str]:
    from regard.policies.registry import known

    return known()


def _controls() -> Iterable[str]:
    from regard.controls.registry import known

    return known()


def _layers() -> Iterable[str]:
    from regard.layers.registry import names

    return names()


def _probes() -> Iterable[str]:
    from regard.probes.registry import groups, known

    return ["standard", *groups(), *known()]


def _tasks() -> Iterable[str]:
    from regard.tasks import list as listing

    return [entry.name for entry in listing()]


def _measures() -> Iterable[str]:
    from regard.bench.shrunk_models import MEASURES

    return MEASURES


def _papers() -> Iterable[str]:
    from regard.papers.catalogue import rows

    return [row.key for row in rows()]


one_of_policies = _last_of(_policies)
one_of_controls = _last_of(_controls)
one_of_layers = _last_of(_layers)
one_of_probes = _last_of(_probes)
one_of_tasks = _last_of(_tasks)
one_of_measures = _last_of(_measures)
one_of_papers = _last_of(_papers)
