"""Models that several files of tests of controls share."""

from typing import Any

import pytest


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """A UNet, an SD3 and a Flux, by kind."""
    from tests.controls.painting_models import MODELS, model_of

    return {kind: model_of(kind) for kind in MODELS}
