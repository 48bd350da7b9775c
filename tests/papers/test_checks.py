"""Every quick check holds here and now, and fails when what it measures is a little wrong."""

import pytest
import torch

from regard.papers.catalogue import row
from regard.papers.checks import checks, executors, rules, sequences
from regard.papers.runner import measure

QUICK = [key for key, one in checks().items() if not one.long]


@pytest.mark.parametrize("key", QUICK)
def test_the_claim_holds(key):
    found = measure(key)
    assert found.held, found.numbers


@pytest.mark.parametrize("key", QUICK)
def test_the_check_fails_when_the_method_is_one_percent_off(key, monkeypatch):
    """Errors that grow along the sequence, so that no ratio of outputs hides them."""

    def off(out):
        slant = torch.linspace(0.99, 1.01, out.shape[-2], dtype=out.dtype)
        return out * slant[:, None]

    for module in (executors, rules, sequences):
        true = module.attend
        monkeypatch.setattr(module, "attend", lambda *a, _t=true, **k: off(_t(*a, **k)))
    scan = sequences.scan

    def scanned(*args, form=None, **options):
        out, state = scan(*args, form=form, **options)
        return (off(out) if form == "chunked" else out), state

    monkeypatch.setattr(sequences, "scan", scanned)
    torch.manual_seed(0)
    assert not checks()[key].function().held


def test_checks_are_of_rows_that_could_run():
    assert all(not row(key).reading for key in checks())
