"""A tiny text-to-image model, trained here: it paints a colored square or disc, left or right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import need
from regard.papers.checks.training import fit

COLORS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}
SHAPES, SIDES = ("square", "disc"), ("left", "right")
VOCABULARY = ["<start>", "<end>", "a", "on", "the", *COLORS, *SHAPES, *SIDES]
HIGH, WIDE = 12, 20
Prompt = tuple[str, str, str]


def tokens(prompt: Prompt) -> Tensor:
    """Ids [9] of "a COLOR SHAPE on the SIDE"; the last words are ends."""
    words = ["<start>", "a", prompt[0], prompt[1], "on", "the", prompt[2], "<end>"]
    return torch.tensor([VOCABULARY.index(w) for w in words])


def painted(prompt: Prompt, row: int, column: int) -> Tensor:
    """The image [3, 12, 20] that a prompt asks for, its figure at a place within its half."""
    y = torch.arange(HIGH).view(-1, 1) - row - 3.5
    x = torch.arange(WIDE).view(1, -1) - column - 3.5 - (WIDE // 2 if prompt[2] == "right" else 0)
    there = (y.abs() < 3) & (x.abs() < 3) if prompt[1] == "square" else y**2 + x**2 < 10
    color = torch.tensor(COLORS[prompt[0]]).view(3, 1, 1)
    return torch.where(there[None], color, torch.zeros(3, 1, 1))


def prompts() -> list[Prompt]:
    """Every prompt there is."""
    return [(c, s, d) for c in COLORS for s in SHAPES for d in SIDES]


class Painter(nn.Module):
    """A text encoder of CLIP's kind and a UNet of diffusers, trained together by flow matching."""

    def __init__(self) -> None:
        super().__init__()
        transformers = need("transformers", "hf", "encodes text")
        diffusers = need("diffusers", "diffusers", "paints")
        self.text = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(VOCABULARY), hidden_size=48, intermediate_size=96,
                num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=8,
                bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=48,
            )
        )  # fmt: skip
        self.unet = diffusers.UNet2DConditionModel(
            sample_size=HIGH, in_channels=3, out_channels=3, block_out_channels=(32, 48),
            layers_per_block=1, norm_num_groups=8, cross_attention_dim=48, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip

    def encode(self, ids: Tensor) -> Tensor:
        """Text states [b, 8, 48]."""
        states: Tensor = self.text(input_ids=ids).last_hidden_state
        return states

    def velocity(self, x: Tensor, time: Tensor, states: Tensor) -> Tensor:
        """Where an image [b, 3, 12, 20] flows, at a time between 0 (noise) and 1."""
        found: Tensor = self.unet(x, 1000 * time, states).sample
        return found

    def learn(self, steps: int, batch: int = 24) -> list[float]:
        """Learn to paint; give the losses."""
        every = prompts()

        def loss() -> Tensor:
            chosen = [every[i] for i in torch.randint(len(every), (batch,)).tolist()]
            places = torch.randint(0, 5, (batch,)), torch.randint(0, 3, (batch,))
            images = torch.stack(
                [painted(p, int(r), int(c)) for p, r, c in zip(chosen, *places, strict=True)]
            )
            noise, time = torch.randn_like(images), torch.rand(batch)
            at = time.view(-1, 1, 1, 1)
            states = self.encode(torch.stack([tokens(p) for p in chosen]))
            found = self.velocity((1 - at) * noise + at * images, time, states)
            return (found - (images - noise)).square().mean()

        self.train()
        losses = fit(self.parameters(), loss, steps, rate=2e-3)
        self.eval()
        return losses

    @torch.no_grad()
    def paint(self, states: Tensor, steps: int = 10, seed: int = 0) -> Tensor:
        """Images [b, 3, 12, 20] from text states [b, 8, 48]; noise is that of the seed."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(states), 3, HIGH, WIDE, generator=generator)
        for step in range(steps):
            time = torch.full((len(x),), step / steps)
            x = x + self.velocity(x, time, states) / steps
        return x


def color_of(image: Tensor, color: str) -> float:
    """How much of a color there is in an image [3, 12, 20]: 1 where all that is painted has it."""
    wanted = torch.tensor(COLORS[color]).view(3, 1, 1)
    size = image.abs().mean(0)
    match = (image * wanted).mean(0)
    figure = size > 0.5
    return float(match[figure].mean()) if bool(figure.any()) else 0.0


def painter(steps: int, seed: int = 0) -> tuple[Painter, Any]:
    """Train one."""
    torch.manual_seed(seed)
    made = Painter()
    return made, made.learn(steps)
