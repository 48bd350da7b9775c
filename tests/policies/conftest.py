"""Workers that keep keys are started once for all laws: a process that imports torch takes seconds.

How they start, end and fail is in `test_remote_attention.py`, which starts its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from regard.memories.workers import AttentionWorkers
from regard.policies import remote_attention


class _Running:
    """Workers for whoever asks; who ends with them does not end them."""

    def __init__(self) -> None:
        self.made: dict[int, AttentionWorkers] = {}

    def __call__(self, count: int) -> _Lent:
        if count not in self.made or self.made[count]._broken:
            self.made[count] = AttentionWorkers(count)
        return _Lent(self.made[count])


class _Lent:
    def __init__(self, workers: AttentionWorkers) -> None:
        self.remote = workers.remote

    def close(self) -> None:
        """Leave them running."""


@pytest.fixture(scope="session")
def running() -> Iterator[_Running]:
    found = _Running()
    yield found
    for workers in found.made.values():
        workers.close()


@pytest.fixture(autouse=True)
def workers_start_once(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, running: _Running
) -> None:
    if request.path.name != "test_remote_attention.py":
        monkeypatch.setattr(remote_attention, "AttentionWorkers", running)
