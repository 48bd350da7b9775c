"""TruthPrInt: detect hallucinated objects from hidden states while decoding, and step back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.controls.steps_back import Decoded, decode_with_steps_back
from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method


@dataclass(frozen=True)
class Detector:
    """A small network on hidden states [n, d] that predicts how likely a token is hallucinated."""

    network: nn.Module
    threshold: float

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Tensor:
        """Return scores [n] from 0 to 1."""
        found: Tensor = torch.sigmoid(self.network(hidden.float())[..., 0])
        return found


def train_detector(
    hidden: Tensor, made_up: Tensor, *, width: int = 64, steps: int = 200,
    specificity: float = 0.95, generator: torch.Generator | None = None,
) -> Detector:  # fmt: skip
    """Train a detector on hidden states [n, d] with labels bool [n].

    The threshold passes a share `specificity` of the true tokens.
    """
    if hidden.dim() != 2 or made_up.shape != hidden.shape[:1] or made_up.dtype != torch.bool:
        fail(
            ShapeError, "hidden, made_up", f"{shape_of(hidden)} and {shape_of(made_up)}",
            "[n, d] and bool [n]", "give one label for each state",
        )  # fmt: skip
    if bool(made_up.all()) or not bool(made_up.any()):
        fail(ValueRangeError, "made_up", "labels of one kind", "both kinds", "collect both")
    network = nn.Sequential(nn.Linear(hidden.shape[1], width), nn.ReLU(), nn.Linear(width, 1))
    if generator is not None:
        with torch.no_grad():
            for p in network.parameters():
                p.uniform_(-1, 1, generator=generator).mul_(hidden.shape[1] ** -0.5)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    target = made_up.float()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(
            network(hidden.float())[:, 0], target
        ).backward()
        optimizer.step()
    with torch.no_grad():
        scores = torch.sigmoid(network(hidden.float())[:, 0])
    return Detector(network, float(scores[~made_up].quantile(specificity)))


def common_subspace(source: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return aligned bases [d_s, size] and [d_t, size] of states [n, d_s] and [n, d_t].

    S and T are principal bases of both; S is rotated by S^T T, so that a detector trained on one
    model can be used on another (with states of the same size, d_s = d_t).
    """
    if source.dim() != 2 or target.dim() != 2 or source.shape[1] != target.shape[1]:
        fail(
            ShapeError, "source, target", f"{shape_of(source)} and {shape_of(target)}",
            "states [n, d] of one size", "project them to one size first",
        )  # fmt: skip
    s, t = (
        torch.linalg.svd(x.float() - x.float().mean(0), full_matrices=False).Vh[:size].T
        for x in (source, target)
    )
    return s @ (s.T @ t), t


@method(
    "truthprint",
    call="from regard.controls.hallucination import decode_truthfully, train_detector\n"
    "detector = train_detector(hidden, made_up)\n"
    "decode_truthfully(model, ids, risk, tokens=32, threshold=detector.threshold)",
)
def decode_truthfully(
    model: Any, ids: Tensor, risk: Callable[[Sequence[int]], float], *, tokens: int,
    threshold: float, starts: Sequence[int] = (), most: int = 5, end: int | None = None,
) -> Decoded:  # fmt: skip
    """Decode greedily; where a token is risky, choose another at the least confident place before.

    `risk(decoded)` scores the newest of the decoded tokens, 0 to 1; above `threshold` decoding goes
    back within the phrase (which starts after the last of the tokens `starts`, or at the start).
    A threshold of 1 gives greedy decoding. (TruthPrInt, Duan et al. 2025)
    """
    if not 0 <= threshold <= 1:
        fail(ValueRangeError, "threshold", threshold, "0 to 1", "pass detector.threshold")
    tried = 0

    def go_back(decoded: Sequence[int], confidence: Sequence[float]) -> int | None:
        nonlocal tried
        if tried >= most or risk(decoded) <= threshold:
            return None
        tried += 1
        begin = max((i + 1 for i, x in enumerate(decoded[:-1]) if x in starts), default=0)
        return min(range(begin, len(decoded)), key=lambda i: confidence[i])

    return decode_with_steps_back(model, ids, tokens=tokens, go_back=go_back, most=most, end=end)
