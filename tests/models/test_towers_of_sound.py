"""Models of speech and text: every tower is reached, with sound and text together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5")

from regard.models import Edit, Null, attach  # noqa: E402


def granite_speech(frames: int, rows: int) -> tuple[Any, dict[str, Any]]:
    """Build a tiny GraniteSpeech, with sound of some frames in windows of 6 and a text of each."""
    torch.manual_seed(0)
    config = transformers.GraniteSpeechConfig(
        encoder_config={
            "input_dim": 12, "num_layers": 2, "hidden_dim": 32, "feedforward_mult": 2,
            "num_heads": 4, "dim_head": 8, "output_dim": 10, "context_size": 8, "max_pos_emb": 16,
        },
        projector_config={
            "model_type": "blip_2_qformer", "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 32, "encoder_hidden_size": 32,
            "cross_attention_frequency": 1,
        },
        text_config={
            "model_type": "granite", "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32,
            "vocab_size": 99,
        },
        audio_token_index=7, window_size=6, downsample_rate=3, has_lora_adapter=False,
    )  # fmt: skip
    model = transformers.GraniteSpeechModel(config).eval()
    tokens = 2 * -(-frames // 6)
    ids = torch.randint(10, 90, (rows, tokens + 4))
    ids[:, 2 : 2 + tokens] = 7
    real = torch.ones(rows, tokens, dtype=torch.bool)
    sound = torch.randn(rows, frames, 12)
    return model, {"input_ids": ids, "input_features": sound, "input_features_mask": real}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("frames", [5, 12, 13])
def test_granite_speech_hears(frames: int, rows: int) -> None:
    """Its projector asks with one row of learned queries for every window of every row."""
    model, given = granite_speech(frames, rows)
    with torch.no_grad():
        plain = model(**given).last_hidden_state
        with attach(model, [Null()], check=given) as attached:
            assert attached.checked.startswith("8 of 8 sites reached")
            torch.testing.assert_close(model(**given).last_hidden_state, plain, atol=2e-5, rtol=0)
            assert not attached.unreached
        with attach(model, [Edit("out", lambda out: 0 * out)], check=False):
            assert (model(**given).last_hidden_state - plain).abs().max() > 1e-3
