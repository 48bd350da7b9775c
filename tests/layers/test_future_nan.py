"""A NaN in the future of a causal layer reaches nothing before it, or is refused by name."""

import re
from pathlib import Path

import pytest
import torch

from regard.conformance.cases import Case
from regard.core.errors import RegardError
from regard.layers import registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "promises.md"
CAUSAL = [
    name
    for name in registry.names()
    if registry.get(name).can.causal and registry.get(name).__module__.startswith("regard.layers.")
]


def refusing() -> set[str]:
    """Return the names of layers that the page says to refuse a NaN."""
    item = re.search(r"The other 12 refuse[^:]*:(.*?)(?=\.$|^$)", PAGE.read_text(), re.M | re.S)
    assert item
    return set(re.findall(r"`(\w+)`", item[1]))


def what_happens(case: Case, cut: int, poison: float) -> str:
    inputs = case.inputs()
    inputs["x"][:, cut] = poison
    try:
        with torch.no_grad():
            past = case.make()(**inputs)[:, :cut]
    except RegardError as refused:
        return "refuse" if "nan" in str(refused).lower() else f"refuse otherwise: {refused}"
    return "keep" if past.isfinite().all() else "pass it on"


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_layer_does_what_the_page_says(name, poison):
    wanted = "refuse" if name in refusing() else "keep"
    case = Case(name, registry.get(name), "causal")
    for cut in (1, case.tokens - 1):
        torch.manual_seed(1)
        assert what_happens(case, cut, poison) == wanted, f"at {cut}"


def test_the_numbers_on_the_page_add_up():
    assert len(refusing()) == 12
    assert refusing() <= set(CAUSAL)
    assert f"Of the {len(CAUSAL)} causal layers {len(CAUSAL) - 12} keep" in PAGE.read_text()
