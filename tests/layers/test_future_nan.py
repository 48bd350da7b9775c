"""The page of promises names the causal layers that a NaN in the future reaches, and no others."""

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


def written(begin: str) -> set[str]:
    """Names of layers in the item of the page that begins so."""
    item = re.search(rf"^- {begin}[^:]*:(.*?)(?=^- |^$)", PAGE.read_text(), re.M | re.S)
    assert item, begin
    return set(re.findall(r"`(\w+)`", item[1]))


def what_happens(case: Case, cut: int, poison: float) -> str:
    inputs = case.inputs()
    inputs["x"][:, cut] = poison
    try:
        with torch.no_grad():
            past = case.make()(**inputs)[:, :cut]
    except RegardError as refused:
        return "refuse" if "nan" in str(refused).lower() else f"refuse otherwise: {refused}"
    return "keep" if past.isfinite().all() else "pass on"


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_layer_does_what_the_page_says(name, poison):
    passing, refusing = written("14 pass it on"), written("6 refuse")
    wanted = "pass on" if name in passing else "refuse" if name in refusing else "keep"
    case = Case(name, registry.get(name), "causal")
    for cut in (1, case.tokens - 1):
        torch.manual_seed(1)
        assert what_happens(case, cut, poison) == wanted, f"at {cut}"


@pytest.mark.parametrize("name", sorted(written("14 pass it on")))
def test_it_goes_no_farther_back_than_its_chunk(name):
    case = Case(name, registry.get(name), "causal")
    chunk = 32 if name in {"aaren", "aft_simple", "latte"} else 64
    at, x = 248, case.inputs(batch=1, tokens=256)["x"]
    x[:, at] = float("nan")
    with torch.no_grad():
        kept = case.make()(x).isfinite().all(-1)[0]
    assert kept[: at // chunk * chunk].all()
    assert not kept[at // chunk * chunk : at].any()


def test_the_numbers_on_the_page_add_up():
    passing, refusing = written("14 pass it on"), written("6 refuse")
    assert (len(passing), len(refusing)) == (14, 6)
    assert passing | refusing <= set(CAUSAL)
    assert f"Of the {len(CAUSAL)} causal layers {len(CAUSAL) - 20} keep" in PAGE.read_text()
