"""What stays is what it would be among hidden blank patches; none blank, nothing moves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

import regard
from regard.core.errors import CapabilityError, RegardError
from regard.core.support import Padding
from regard.models.stage import Stage
from regard.policies.blank_patches import BlankPatches, blank_patches
from tests.architectures import IMAGES, build, other

GRID, PATCH = 4, 4
every = pytest.mark.parametrize("name", IMAGES)
models = {}


def model_of(name):
    if name not in models:
        models[name] = build(name, IMAGES[name])
        for part, weight in models[name].named_parameters():
            if "position_embed" in part:  # some begin at zero
                torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(2))
    return models[name]


class Hidden(Stage):
    """Hides blank patches as keys and leaves every token in: the same without the saving."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def before(self, call):
        rule = call.rule
        return call.replace(rule=rule.replace(support=rule.support & Padding(self.kept)))


def pages(blank, seed=0):
    """Images [b, 3, 16, 16] whose blank patches [b, 16] hold one gray each."""
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randn(len(blank), 3, GRID * PATCH, GRID * PATCH, generator=random)
    where = blank.view(-1, 1, GRID, GRID).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    return torch.where(where, 0.3, pixels)


def run(model, pixels, *stages):
    with torch.no_grad(), regard.attach(model, list(stages), check=False):
        return model(pixel_values=pixels).last_hidden_state


@every
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_kept_tokens_are_those_of_a_whole_run_with_blank_keys_hidden(name, data):
    rows = st.lists(st.booleans(), min_size=16, max_size=16).filter(lambda r: not all(r))
    blank = torch.tensor(data.draw(st.lists(rows, min_size=1, max_size=3)))
    model, pixels = model_of(name), pages(blank)
    assert torch.equal(blank_patches(pixels, PATCH), blank)
    stage = BlankPatches()
    packed = run(model, pixels, stage)
    prefix = run(model, pixels).shape[1] - 16
    assert packed.shape[1] == prefix + int((~blank).sum(1).max())
    kept = torch.nn.functional.pad(~blank, (prefix, 0), value=True)
    dense = run(model, pixels, Hidden(kept))
    for row, places in enumerate(stage.places):
        real = places > -2
        torch.testing.assert_close(packed[row, real], dense[row, kept[row]], atol=1e-5, rtol=1e-5)
        assert places[real][prefix:].tolist() == (~blank[row]).nonzero()[:, 0].tolist()


@every
def test_positions_are_those_of_the_page(name):
    """The same ink on two places gives two outputs: places are kept, and not counted again."""
    model, stage = model_of(name), BlankPatches()
    outs = []
    for place in (5, 10):
        blank = torch.ones(1, 16, dtype=torch.bool)
        blank[0, [place, place + 1]] = False
        page = torch.full((1, 3, 16, 16), 0.3)
        ink = torch.randn(3, PATCH, 2 * PATCH, generator=torch.Generator().manual_seed(1))
        row, column = divmod(place, GRID)
        page[0, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 2) * PATCH] = ink
        outs.append(run(model, page, stage))
        assert stage.places[0, -2:].tolist() == [place, place + 1]
    if name != "dinov3_vit":  # rotary angles tell differences alone
        assert float((outs[0] - outs[1]).abs().max()) > 1e-3


@every
def test_without_blank_patches_nothing_changes(name):
    model, pixels = model_of(name), pages(torch.zeros(2, 16, dtype=torch.bool))
    with torch.no_grad():
        plain = model(pixel_values=pixels)
    with torch.no_grad(), regard.attach(model, BlankPatches(), check=False):
        same = model(pixel_values=pixels)
    assert torch.equal(same.last_hidden_state, plain.last_hidden_state)
    with torch.no_grad():
        again = model(pixel_values=pages(torch.ones(2, 16, dtype=torch.bool)))
    assert again.last_hidden_state.shape == plain.last_hidden_state.shape  # hooks are gone


def test_pooled_answers_of_a_batch_do_not_see_the_filling():
    blank = torch.zeros(2, 16, dtype=torch.bool)
    blank[0, 3:] = True
    for name in ("vit", "siglip_vision_model"):
        model, pixels = model_of(name), pages(blank)
        with torch.no_grad(), regard.attach(model, BlankPatches(), check=False):
            both, one = model(pixel_values=pixels), model(pixel_values=pixels[:1])
        torch.testing.assert_close(both.pooler_output[:1], one.pooler_output, atol=1e-5, rtol=1e-5)


def test_an_empty_page_keeps_one_patch():
    stage = BlankPatches()
    out = run(model_of("vit"), pages(torch.ones(1, 16, dtype=torch.bool)), stage)
    assert stage.places.tolist() == [[-1, 0]]
    assert bool(out.isfinite().all())


def test_models_that_count_on_every_patch_are_refused():
    for name in ("llava", "swin", "clip"):
        with pytest.raises(CapabilityError, match="BlankPatches"):
            regard.attach(other(name)[0], BlankPatches(), check=False)
    with pytest.raises(RegardError, match="threshold"):
        BlankPatches(-1.0)
    with pytest.raises(RegardError, match="pixels"):
        blank_patches(torch.zeros(3, 16, 16), 4)
