"""The example that a row's page shows runs: those of controls and schemes on tiny models and ranks.

All others are run by `test_claims.py`, or are doctests.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from regard.core.method import claims
from regard.papers.standing import discover
from tests.models.test_pipelines import pipeline as pipeline  # a fixture
from tests.papers import example_contexts as contexts

discover()
CALLS = sorted(
    {(x.place, x.key, x.call) for x in claims() if x.place in ("controls", "schemes") and x.call}
)
OF_CONTROLS = {(key, call) for place, key, call in CALLS if place == "controls"}
OF_SCHEMES = {(key, call) for place, key, call in CALLS if place == "schemes"}


def the_case(case: tuple[str, str]) -> str:
    return case[0]


@pytest.mark.parametrize("case", sorted(OF_CONTROLS), ids=the_case)
def test_the_example_of_a_control_runs_and_acts(
    case: tuple[str, str], request: pytest.FixtureRequest, seed: int
) -> None:
    key, call = case
    torch.manual_seed(0)
    if key in contexts.PIPED:
        contexts.PIPED[key](request.getfixturevalue("pipeline")).run(call)
    else:
        {**contexts.LANGUAGE, **contexts.PAINTED}[key]().run(call)


@pytest.mark.parametrize("case", sorted(OF_SCHEMES), ids=the_case)
def test_the_example_of_a_scheme_runs_over_two_ranks(case: tuple[str, str]) -> None:
    key, call = case
    if key == "infinite_llm_dist_attention":
        made = contexts.Context({})
        made.run(call)
        assert made.result["request"].seen == 0
    elif key == "star_attention":
        contexts.spread_model(call)
    else:
        contexts.ranks(key, call)


def test_an_example_that_names_what_is_not_there_fails() -> None:
    with pytest.raises(TypeError, match="options"):
        contexts.sinks().run('regard.steer(model, "anchored_options", options=("A", "B"))')
    with pytest.raises(NameError):
        contexts.sinks().run("regard.steer(pipeline, 3)")


def test_a_control_that_does_not_act_fails() -> None:
    from regard.controls.receipt import NothingMoved

    with pytest.raises(NothingMoved):
        contexts.emphasis().run("regard.steer(model, 'sink_calibration', strength=0.6)")
