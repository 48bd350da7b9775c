"""A tiny text-to-image model, trained here: it paints two colored figures side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.errors import need
from regard.papers.seeding import generator, restart
from regard.papers.shared.small_trainer import fit

COLORS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}
SHAPES = ("square", "disc")
VOCABULARY = ["<start>", "<end>", "and", *COLORS, *SHAPES]
HIGH, WIDE = 8, 16
Figure = tuple[str, str]


def words(left: Figure, right: Figure) -> list[str]:
    """The prompt, token by token."""
    return ["<start>", *left, "and", *right, "<end>"]


def tokens(left: Figure, right: Figure) -> Tensor:
    """Ids [7] of "COLOR SHAPE and COLOR SHAPE"."""
    return torch.tensor([VOCABULARY.index(w) for w in words(left, right)])


def painted(left: Figure, right: Figure) -> Tensor:
    """An image [3, 8, 16] that a prompt asks for; each figure anywhere within its half."""
    image = torch.zeros(3, HIGH, WIDE)
    for half, (color, shape) in enumerate((left, right)):
        row, column = torch.randint(0, 3, (2,)).tolist()
        y = torch.arange(HIGH).view(-1, 1) - row - 2.5
        x = torch.arange(WIDE).view(1, -1) - column - 2.5 - half * WIDE // 2
        there = (y.abs() < 3) & (x.abs() < 3) if shape == "square" else y**2 + x**2 < 8
        image = torch.where(there[None], torch.tensor(COLORS[color]).view(3, 1, 1), image)
    return image


class Painter(nn.Module):
    """A text encoder of CLIP's kind and a UNet of diffusers, trained together by flow matching."""

    def __init__(self) -> None:
        super().__init__()
        transformers = need("transformers", "hf", "encodes text")
        diffusers = need("diffusers", "diffusers", "paints")
        self.text = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=64,
                num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=7,
                bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=32,
            )
        )  # fmt: skip
        self.unet = diffusers.UNet2DConditionModel(
            sample_size=HIGH, in_channels=3, out_channels=3, block_out_channels=(24, 32),
            layers_per_block=1, norm_num_groups=8, cross_attention_dim=32, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip

    def encode(self, ids: Tensor) -> Tensor:
        """Text states [b, 7, 32]."""
        states: Tensor = self.text(input_ids=ids).last_hidden_state
        return states

    def velocity(self, x: Tensor, time: Tensor, states: Tensor) -> Tensor:
        """Where an image [b, 3, 8, 16] flows, at a time between 0 (noise) and 1."""
        found: Tensor = self.unet(x, 1000 * time, states).sample
        return found

    def learn(self, steps: int, batch: int = 16) -> list[float]:
        """Learn to paint; give the losses."""
        kinds = [(color, shape) for color in COLORS for shape in SHAPES]

        def loss() -> Tensor:
            pairs = [
                (kinds[i], kinds[j]) for i, j in torch.randint(len(kinds), (batch, 2)).tolist()
            ]
            images = torch.stack([painted(*pair) for pair in pairs])
            noise, time = torch.randn_like(images), torch.rand(batch)
            at = time.view(-1, 1, 1, 1)
            states = self.encode(torch.stack([tokens(*pair) for pair in pairs]))
            found = self.velocity((1 - at) * noise + at * images, time, states)
            return (found - (images - noise)).square().mean()

        self.train()
        losses = fit(self.parameters(), loss, steps, rate=3e-3)
        self.eval()
        return losses

    @torch.no_grad()
    def paint(self, states: Tensor, steps: int = 8, seed: int = 0) -> Tensor:
        """Images [b, 3, 8, 16] from text states [b, 7, 32]; noise is that of the seed."""
        drawn = generator(f"paint {seed}")
        x = torch.randn(len(states), 3, HIGH, WIDE, generator=drawn)
        for step in range(steps):
            time = torch.full((len(x),), step / steps)
            x = x + self.velocity(x, time, states) / steps
        return x


def color_of(image: Tensor, half: str, color: str) -> float:
    """How much of a color the figure in a half of an image [3, 8, 16] has: 1 where it is whole."""
    side = image[:, :, : WIDE // 2] if half == "left" else image[:, :, WIDE // 2 :]
    figure = side.abs().mean(0) > 0.5  # because: half of full color
    match = (side * torch.tensor(COLORS[color]).view(3, 1, 1)).mean(0)
    return float(match[figure].mean()) if bool(figure.any()) else 0.0


def painter(steps: int, seed: int = 0) -> tuple[Painter, list[float]]:
    """Train one; give it, and the losses."""
    restart(f"painter {seed}")
    made = Painter()
    return made, made.learn(steps)
