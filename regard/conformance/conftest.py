"""Which layers are tried: all that are registered, or those named with `--layer`.

Each law gets only the cases that declare what it needs (`regard.conformance.cases.needs`): a law
that a layer does not promise is no test of that layer, and passes for none.
"""

from __future__ import annotations

import pytest

from regard.conformance.cases import cases_of, needed
from regard.conformance.refusals import REFUSALS
from regard.conformance.settings import SETTINGS, takes
from regard.layers import registry


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize laws: `case` one layer in one mode, `kind` one layer, `denied` one refusal."""
    chosen = metafunc.config.getoption("--layer") or registry.names()
    wanted = needed(metafunc.function)
    cases = [case for name in chosen for case in cases_of(name) if wanted.case(case)]
    if "setting" in metafunc.fixturenames:
        pairs = [(case, s) for case in cases for s in SETTINGS if takes(case.kind, s)]
        ids = [f"{case}-{setting}" for case, setting in pairs]
        metafunc.parametrize(("case", "setting"), pairs, ids=ids)
    elif "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases, ids=str)
    if "kind" in metafunc.fixturenames:
        kinds = {name: registry.get(name) for name in chosen}
        kinds = {name: kind for name, kind in kinds.items() if wanted.kind(kind)}
        metafunc.parametrize("kind", list(kinds.values()), ids=list(kinds))
    if "denied" in metafunc.fixturenames:
        refusals = [
            (name, ability)
            for name in chosen
            for ability in REFUSALS
            if not getattr(registry.get(name).can, ability)
        ]
        metafunc.parametrize("denied", refusals, ids=[f"{name}-{what}" for name, what in refusals])
