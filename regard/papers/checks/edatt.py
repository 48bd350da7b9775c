"""Thresholds have their two limits, a diagonal head never writes ahead, and latency falls."""

from __future__ import annotations

from itertools import pairwise

import torch

from regard.controls.read_or_write import Simultaneous, leans_on_newest, simultaneous
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.seeding import restart

FRAMES, NEWEST = 16, 2
ALPHAS = (0.0, 0.1, 0.3, 0.6, 1.1)


def _translator() -> torch.nn.Module:
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
    made: torch.nn.Module = transformers.BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for layer in made.model.decoder.layers:
            layer.encoder_attn.q_proj.weight *= 30
    return made


def _diagonal(alpha: float) -> Simultaneous:
    """Copy frame i as word i, by a row whose weight falls to both sides of frame i."""
    made = Simultaneous()
    for known in range(2, FRAMES + 1, 2):
        while len(made.ids) < FRAMES:
            # Beyond what is known the row leans on the last frame there is.
            i = min(len(made.ids), known - 1)
            row = torch.exp(-2.0 * (torch.arange(known) - i).abs().float())
            # because: when the source has ended, all is written
            if known < FRAMES and leans_on_newest(row / row.sum(), NEWEST) >= alpha:
                break
            made.ids.append(len(made.ids))
            made.known.append(known)
    return made


@check(
    "edatt",
    narrowed={"on a synthetic copy task": "rows of weights are given, words are frames"},
    beyond="speech of MuST-C, and quality at equal latency",
)
def edatt() -> Claims:
    """Thresholds have their two limits, a diagonal head never writes ahead, and latency falls."""
    model = _translator()
    source = torch.randint(5, 60, (1, FRAMES))
    pieces = list(source.split(4, 1))

    def write(alpha: float, shown: list[torch.Tensor] = pieces) -> Simultaneous:
        return simultaneous(
            model, shown, start=[2], end=-1, threshold=alpha, newest=NEWEST, tokens=8
        )

    early, late, offline = write(1.1), write(0.0), write(0.0, [source])
    first = write(0.0, pieces[:1])
    known = [sum(write(a).known) / 8 for a in ALPHAS]
    rises = sum(b > a for a, b in pairwise(known))
    copied = _diagonal(0.3)
    # Word i may be written once its frame is known and NEWEST more.
    lags = [n - 1 - i for i, n in zip(copied.ids, copied.known, strict=True) if n < FRAMES]
    yield claim("Monotone limits", "words written after the first piece", str(early.ids)).equals(
        str(first.ids), "the greedy hypothesis of the first piece"
    )
    yield claim(
        "alpha=0 emits only", "frames known when words were written", str(set(late.known))
    ).equals(str({FRAMES}), "all of them")
    yield claim("alpha=0 emits only", "words", str(late.ids)).equals(
        str(offline.ids), "those of offline decoding"
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
