"""Thresholds have their two limits, a diagonal head never writes ahead, and latency falls."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from regard.controls.read_or_write import Simultaneous, simultaneous
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.seeding import restart

FRAMES, NEWEST, END = 16, 2, 0
ALPHAS = (0.0, 0.1, 0.3, 0.6, 1.1)


def _translator() -> nn.Module:
    from regard.core.errors import need

    transformers = need("transformers", "hf", "has the model")
    restart("translator")
    config = transformers.BartConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    made: nn.Module = transformers.BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for layer in made.model.decoder.layers:
            layer.encoder_attn.q_proj.weight *= 30
    return made


class _Diagonal(nn.Module):
    """One head: word i looks at frame i, and ever less at frames further from it."""

    num_heads = 1

    def forward(self, words: int, frames: Tensor) -> Tensor:
        """Return what each word reads of frames [1, m, e]."""
        i, j = torch.arange(words).float(), torch.arange(frames.shape[1]).float()
        # -2 (i - j)^2, but for what is the same for all frames.
        q = 2**0.5 * torch.stack((4 * i, torch.full_like(i, -2.0)), -1)[None, None]
        k = torch.stack((j, j.square()), -1)[None, None]
        return nn.functional.scaled_dot_product_attention(q, k, frames[:, None])[:, 0]


class _Copier(nn.Module):
    """An encoder-decoder that says what its head reads, and ends when there are no more frames."""

    def __init__(self) -> None:
        super().__init__()
        self.cross_attn = _Diagonal()

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> SimpleNamespace:
        """Return logits [1, words, 64]."""
        frames = nn.functional.one_hot(input_ids, 64).float()
        logits = self.cross_attn(decoder_input_ids.shape[1], frames)
        logits[:, input_ids.shape[1] :] = nn.functional.one_hot(torch.tensor(END), 64).float()
        return SimpleNamespace(logits=logits)


@check(
    "edatt",
    beyond="speech of MuST-C, and quality at equal latency",
)
def edatt() -> Claims:
    """Thresholds have their two limits, a diagonal head never writes ahead, and latency falls."""
    model = _translator()
    source = torch.randint(5, 60, (1, FRAMES))
    pieces = list(source.split(4, 1))

    def write(alpha: float, shown: list[Tensor] = pieces) -> Simultaneous:
        return simultaneous(
            model, shown, start=[2], end=-1, threshold=alpha, newest=NEWEST, tokens=8
        )

    early, late, offline = write(1.1), write(0.0), write(0.0, [source])
    first = write(0.0, pieces[:1])
    known = [sum(write(a).known) / 8 for a in ALPHAS]
    rises = sum(b > a for a, b in pairwise(known))
    copied = simultaneous(
        _Copier(), source.split(2, 1), start=[1], end=END, threshold=0.3, newest=NEWEST
    )
    # Word i may be written once its frame is known and NEWEST more.
    lags = [n - 1 - i for i, n in enumerate(copied.known) if n < FRAMES]
    yield claim("Monotone limits", "words written after the first piece", str(early.ids)).equals(
        str(first.ids), "the greedy hypothesis of the first piece"
    )
    yield claim(
        "alpha=0 emits only", "frames known when words were written", str(set(late.known))
    ).equals(str({FRAMES}), "all of them")
    yield claim("alpha=0 emits only", "words", str(late.ids)).equals(
        str(offline.ids), "those of offline decoding"
    )
    yield claim("on a synthetic copy task", "words of the copier", str(copied.ids)).equals(
        str(source[0].tolist()), "the frames"
    )
    yield claim("on a synthetic copy task", "words written before the end", len(lags)).above(
        FRAMES / 2, "half of them", because="or it would have waited for all"
    )
    yield claim("on a synthetic copy task", "least lag in frames", min(lags)).at_least(
        NEWEST, "the newest frames that are waited for"
    )
    yield claim("latency falls monotonically", "times that a larger alpha was later", rises).equals(
        0, "never"
    )
    yield claim("latency falls monotonically", "frames known, largest alpha", known[-1]).below(
        known[0], "at alpha = 0"
    )
