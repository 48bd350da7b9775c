"""Attention that a model of transformers writes out is reached where it is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from regard.models import Edit, Null, attach  # noqa: E402
from regard.models.written_out import BIASES, is_written_out  # noqa: E402
from tests.architectures import SMALL  # noqa: E402

LAYOUT = {
    **SMALL, "coordinate_size": 6, "shape_size": 4, "input_size": 16, "patch_size": 4,
    "rel_pos_bins": 8, "max_rel_pos": 16, "rel_2d_pos_bins": 8, "max_rel_2d_pos": 16,
    "max_2d_position_embeddings": 64, "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}  # fmt: skip
Made = tuple[Any, dict[str, Any]]


def layout(**more: Any) -> Made:
    """LayoutLMv3 with a padded row."""
    torch.manual_seed(0)
    model = transformers.LayoutLMv3Model(transformers.LayoutLMv3Config(**LAYOUT, **more)).eval()
    box = torch.randint(0, 30, (2, 7, 4))
    box[..., 2:] += box[..., :2]
    real = torch.ones(2, 7, dtype=torch.long)
    real[1, -3:] = 0
    return model, {"input_ids": torch.randint(5, 60, (2, 7)), "bbox": box, "attention_mask": real,
                   "pixel_values": torch.randn(2, 3, 16, 16)}  # fmt: skip


def reading_order() -> Made:
    """A layer of PP-DocLayout's reading order, by itself."""
    from transformers.models.pp_doclayout_v2 import modeling_pp_doclayout_v2 as home

    torch.manual_seed(0)
    config = home.PPDocLayoutV2ReadingOrderConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=1,
    )  # fmt: skip
    layer = home.PPDocLayoutV2ReadingOrderSelfAttention(config).eval()

    class First(torch.nn.Module):
        """The layer alone returns weights that nobody asks for; a model reads its first output."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.config = layer, config

        def forward(self, hidden_states: Any, rel_2d_pos: Any) -> Any:
            return layer(hidden_states, rel_2d_pos=rel_2d_pos)[:1]

    model = First().eval()
    return model, {"hidden_states": torch.randn(2, 6, 32), "rel_2d_pos": torch.randn(2, 4, 6, 6)}


MODELS = {
    "layoutlmv3": layout,
    "layoutlmv3 without places": lambda: layout(has_spatial_attention_bias=False),
    "layoutlmv3 without tables": lambda: layout(
        has_relative_attention_bias=False, has_spatial_attention_bias=False
    ),
    "pp_doclayout_v2": reading_order,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_itself_and_feels_an_edit(name: str) -> None:
    model, inputs = MODELS[name]()
    with torch.no_grad():
        plain = model(**inputs)[0]
        with attach(model, [Null()], check=inputs) as attached:
            assert attached.unreached == ()
            torch.testing.assert_close(model(**inputs)[0], plain, atol=2e-6, rtol=1e-5)
        with attach(model, [Edit("out", lambda out: 2 * out)], check=False):
            assert (model(**inputs)[0] - plain).abs().max() > 1e-3
        assert torch.equal(model(**inputs)[0], plain)


def test_weights_are_those_that_the_model_returns() -> None:
    model, inputs = layout()
    with torch.no_grad():
        plain = model(**inputs, output_attentions=True).attentions
        with attach(model, [Null()], check=False):
            shown = model(**inputs, output_attentions=True).attentions
    assert len(shown) == len(plain) == 2
    for x, y in zip(shown, plain, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


def test_gradients_are_those_of_the_model() -> None:
    model, inputs = layout()
    model, inputs["pixel_values"] = model.double(), inputs["pixel_values"].double()
    pull = torch.randn_like(model(**inputs)[0])

    def slopes() -> list[torch.Tensor]:
        model.zero_grad()
        (model(**inputs)[0] * pull).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = slopes()
    with attach(model, [Null()], check=False):
        found = slopes()
    for x, y in zip(found, plain, strict=True):
        torch.testing.assert_close(x, y, atol=1e-8, rtol=1e-6)


def test_what_is_known_is_of_transformers_alone() -> None:
    """A class of the user's with such a name is not taken for it."""
    for name in BIASES:
        assert not is_written_out(type(name, (torch.nn.Module,), {})())
