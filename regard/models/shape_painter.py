"""The painter that ships: a small SD3-type pipeline that paints colored shapes from words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import RuleError, fail, need, shape_of

PAINTER = Path(__file__).resolve().parents[1] / "demo" / "painter"
WORDS = ("<pad>", "<start>", "a", "and", "red", "green", "blue", "yellow", "square", "ring",
         "cross")  # fmt: skip
# <start> and three shapes of two words, with two times "and" between them.
LENGTH, WIDTH = 9, 64

diffusers = need("diffusers", "diffusers", "has the painter's transformer")
Pipeline: Any = diffusers.StableDiffusion3Pipeline


class WordTable(nn.Module):
    """States of a prompt: a row for each word, one for the word before it, one for its position."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.before = (nn.Embedding(len(WORDS), WIDTH) for _ in range(2))
        self.position = nn.Embedding(LENGTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        """Return states [b, 9, 64] of ids [b, 9]."""
        shifted = torch.cat((ids[:, :1], ids[:, :-1]), 1)
        states: Tensor = self.word(ids) + self.before(shifted) + self.position.weight
        return states


class WordTokenizer:
    """Splits a prompt at spaces; id 1 starts it, id 0 pads it.

    >>> WordTokenizer()("red ring")["input_ids"]
    [1, 4, 9]
    """

    model_max_length = LENGTH

    def __call__(self, text: str, **settings: Any) -> dict[str, list[int]]:
        """Return the ids of a prompt."""
        words = text.split()
        unknown = sorted({x for x in words if x not in WORDS})
        if unknown or len(words) >= LENGTH:
            fail(
                RuleError, "prompt", repr(text),
                f"at most {LENGTH - 1} of the words {', '.join(WORDS[2:])}",
                "write, say, 'red ring and blue square'",
            )  # fmt: skip
        return {"input_ids": [1, *(WORDS.index(x) for x in words)]}

    def decode(self, ids: Any, **settings: Any) -> str:
        """Return the words of ids."""
        return " ".join(WORDS[int(i)] for i in ids)

    def padded(self, texts: list[str]) -> Tensor:
        """Return ids [b, 9] of prompts."""
        rows = [self(x)["input_ids"] for x in texts]
        return torch.tensor([x + [0] * (LENGTH - len(x)) for x in rows])


class ShapePainter(Pipeline):  # type: ignore[misc]  # its class is known when it is imported
    """Paints pictures of 16 by 16 pixels, as latents [b, 3, 16, 16] from -1 to 1.

    `painter("red ring and blue square")` runs 20 steps with guidance 3. The rest is diffusers'
    pipeline of Stable Diffusion 3, without a VAE and with a word table in place of text encoders.
    """

    words: WordTable

    def encode_prompt(self, prompt: Any = None, **given: Any) -> tuple[Any, ...]:
        """Return states and pooled states of the prompts and of the negative prompts."""
        many = given.get("num_images_per_prompt") or 1
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(texts, list) or not all(isinstance(x, str) for x in texts):
            fail(RuleError, "prompt", shape_of(prompt), "a text or a list", "pass 'a ring'")
        other = given.get("negative_prompt") or ""
        others = [other] * len(texts) if isinstance(other, str) else list(other)
        states = [self.words(self.tokenizer.padded(x)).repeat_interleave(many, 0)
                  for x in (texts, others)]  # fmt: skip
        pooled = torch.zeros(len(states[0]), self.transformer.config.pooled_projection_dim)
        guided = given.get("do_classifier_free_guidance", True)
        if not guided:
            return states[0], None, pooled, None
        return states[0], states[1], pooled, pooled

    def __call__(self, prompt: Any = None, **given: Any) -> Any:
        """Paint; the result has the pictures [b, 3, 16, 16] in `images`."""
        side = self.transformer.config.sample_size
        settings = {"num_inference_steps": 20, "guidance_scale": 3.0, "height": side, "width": side,
                    "output_type": "latent"}  # fmt: skip
        return super().__call__(prompt, **{**settings, **given})


def transformer() -> Any:
    """Build the painter's transformer: 4 layers of 4 heads of 20 channels, patches of 2."""
    return diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=3, out_channels=3, num_layers=4,
        attention_head_dim=20, num_attention_heads=4, joint_attention_dim=WIDTH,
        caption_projection_dim=80, pooled_projection_dim=8, pos_embed_max_size=16,
        qk_norm="rms_norm",
    )  # fmt: skip


def painter_of(net: nn.Module, words: WordTable) -> ShapePainter:
    """Build the pipeline of a transformer and its words.

    >>> painter_of(transformer(), WordTable()).tokenizer.decode([4, 9])
    'red ring'
    """
    absent = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2",
              "text_encoder_3", "tokenizer_3")  # fmt: skip
    made = ShapePainter(
        transformer=net.eval(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(absent),
    )  # fmt: skip
    made.words, made.tokenizer = words.eval().requires_grad_(False), WordTokenizer()
    made.vae_scale_factor = 1
    made.set_progress_bar_config(disable=True)
    return made


def load_painter(folder: str | Path = PAINTER) -> ShapePainter:
    """Load the painter that ships, or one that `scripts/painter/train.py` made.

    `load_painter()(["red ring and blue square"]).images` are pictures [1, 3, 16, 16].
    """
    place = Path(folder)
    net, words = transformer(), WordTable()
    files = need("safetensors.torch", "hf", "reads weights")
    state = {k: x.float() for k, x in files.load_file(place / "painter.safetensors").items()}
    net.load_state_dict({k[4:]: x for k, x in state.items() if k.startswith("net.")})
    words.load_state_dict({k[6:]: x for k, x in state.items() if k.startswith("words.")})
    return painter_of(net, words)


def save_painter(net: nn.Module, words: nn.Module, folder: Path) -> None:
    """Write the weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"net.": net, "words.": words}
    state = {p + k: x.half().contiguous() for p, m in parts.items()
             for k, x in m.state_dict().items()}  # fmt: skip
    files = need("safetensors.torch", "hf", "writes weights")
    files.save_file(state, folder / "painter.safetensors")
