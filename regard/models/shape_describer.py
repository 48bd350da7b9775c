"""The describer that ships: a small LLaVA-type model that describes colored shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import RuleError, fail, need, shape_of
from regard.models.loading import load

DESCRIBER = Path(__file__).resolve().parents[1] / "demo" / "describer"
# Pictures of 24 by 24 pixels in patches of 4.
SIDE, PATCHES = 24, 36
SPECIAL = ("<pad>", "<start>", "<end>", "<image>")
WORDS = (
    *SPECIAL, "describe", "how", "many", "is", "there", "color", "of", "where", "?", ":", ",", ".",
    "red", "green", "blue", "yellow", "square", "ring", "cross", "top", "middle", "bottom", "left",
    "center", "right", "yes", "no", "none", "one", "two", "three", "four", "five",
)  # fmt: skip


def describer_config() -> Any:
    """Return the config: three vision layers and four text layers, of four heads each."""
    models = need("transformers", "hf", "has the describer's classes")
    return models.LlavaConfig(
        vision_config=models.CLIPVisionConfig(
            image_size=SIDE, patch_size=4, hidden_size=96, intermediate_size=256,
            num_hidden_layers=3, num_attention_heads=4, projection_dim=96,
        ),
        text_config=models.LlamaConfig(
            vocab_size=len(WORDS), hidden_size=128, intermediate_size=320, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
            tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=WORDS.index("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=PATCHES,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip


def word_tokenizer() -> Any:
    """Return the tokenizer: a token for each of `WORDS`, separated by spaces."""
    tokenizers = need("tokenizers", "hf", "has the describer's tokenizer")
    models = need("transformers", "hf", "has the describer's tokenizer")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return models.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<start>", eos_token="<end>",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left",
    )  # fmt: skip


def load_describer(folder: str | Path = DESCRIBER) -> tuple[Any, Any]:
    """Load (model, tokenizer) of the describer, or of one that `scripts/describer/train.py` made.

    >>> model, tokenizer = load_describer()
    >>> drawn = torch.ones(1, 3, 24, 24).neg()
    >>> drawn[:, 0, 1:6, 1:6] = 1.0  # a red square in the corner
    >>> answers(model, tokenizer, ask(tokenizer, drawn, "how many ?"), max_new_tokens=2)
    ['one .']
    """
    model, tokenizer = load(folder)
    return model.float(), tokenizer


def ask(
    tokenizer: Any, pictures: Tensor, text: str | Sequence[str] = "describe :"
) -> dict[str, Tensor]:
    """Return the inputs for pictures [b, 3, 24, 24] and a question, or one question for each.

    Questions: "describe :", "how many ?", "is there red ring ?", "color of ring ?", "where is red
    ring ?".

    >>> ask(word_tokenizer(), torch.zeros(1, 3, 24, 24))["input_ids"].shape
    torch.Size([1, 39])
    """
    if pictures.dim() != 4 or pictures.shape[1:] != (3, SIDE, SIDE):
        fail(
            RuleError, "pictures", shape_of(pictures), f"[b, 3, {SIDE}, {SIDE}]",
            "stack them: torch.stack([picture])",
        )  # fmt: skip
    texts = [text] * len(pictures) if isinstance(text, str) else list(text)
    unknown = sorted({w for t in texts for w in t.split() if w not in WORDS[len(SPECIAL) :]})
    if unknown or len(texts) != len(pictures):
        fail(
            RuleError, "text", repr(text)[:80], f"{len(pictures)} questions of the words "
            f"{', '.join(WORDS[len(SPECIAL) :])}", "ask, say, 'is there red ring ?'",
        )  # fmt: skip
    shown = ["<start> " + "<image> " * PATCHES + x for x in texts]
    read = tokenizer(shown, padding=True, return_tensors="pt")
    return {
        "input_ids": read["input_ids"], "attention_mask": read["attention_mask"],
        "pixel_values": pictures,
    }  # fmt: skip


@torch.no_grad()
def answers(model: Any, tokenizer: Any, given: dict[str, Tensor], **settings: Any) -> list[str]:
    """Return the model's answers to the inputs of `ask`, decoded greedily to the end."""
    out = model.generate(**given, **{"max_new_tokens": 40, "do_sample": False, **settings})
    texts: list[str] = tokenizer.batch_decode(
        out[:, given["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return texts
