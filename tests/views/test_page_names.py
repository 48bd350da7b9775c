"""A page that is sent to others names the model, and no folder of the machine that made it."""

from pathlib import Path

import pytest

import regard
from regard.models.loading import DEMO, load
from regard.views.page import page

pytest.importorskip("transformers")


@pytest.mark.parametrize("given", [None, str(DEMO), DEMO])
def test_the_page_of_a_local_model_names_no_folder(given):
    model, tokenizer = load(given)
    for asked, with_it in ((model, {"tokenizer": tokenizer}), (given, {})):
        seen = regard.see(asked, "a b a b a b a b", **with_it)
        assert seen.model["name"] == "the demo model"
        html = page(seen.run())
        for folder in (str(DEMO), str(Path(DEMO).parents[2])):
            assert folder not in html
