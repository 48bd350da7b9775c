"""Which heads a task needs, from ten prompts: codes of their outputs that the task alone shows.

A small sparse autoencoder reads the output of each head at the last token of each prompt,

    z = relu(W_e x + b_e),  x^ = W_d z + b_d,  |x - x^|^2 + penalty |z|_1,

and argmax z is the code of that head on that prompt. A head counts by the codes that it shows on
prompts of the task and never on corrupted ones, over all the codes it shows (O'Neill 2024). No head
is taken out, and each prompt is run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import ShapeError, fail, shape_of
from regard.core.method import method
from regard.core.result import Result
from regard.models.attach import attach
from regard.models.site import Site
from regard.models.stage import Stage


class SparseCoder(nn.Module):
    """A one-layer autoencoder whose codes are positive and few.

    >>> SparseCoder(8, 32)(torch.randn(5, 8))[1].shape
    torch.Size([5, 32])
    """

    def __init__(self, dim: int, codes: int) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(dim, codes), nn.Linear(codes, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x again, and its codes."""
        z = self.encode(x).relu()
        return self.decode(z), z

    def fit(
        self, x: Tensor, *, penalty: float = 0.03, steps: int = 400, rate: float = 5e-3
    ) -> SparseCoder:
        """Learn from samples x [rows, dim] by Adam."""
        adam = torch.optim.Adam(self.parameters(), rate)
        for _ in range(steps):
            again, z = self(x)
            loss = (x - again).square().sum(-1).mean() + penalty * z.abs().sum(-1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return self


@dataclass(frozen=True)
class CodeScores:
    """Scores of heads [h] and of pairs of heads [h, h]: shares of codes that the task alone shows.

    `codes` [prompts, h] are those of all prompts, those of the task first.
    """

    heads: Tensor
    pairs: Tensor
    codes: Tensor

    def members(self, threshold: float) -> list[int]:
        """Return heads whose softmax of scores over all heads is above a threshold."""
        return (self.heads.softmax(0) > threshold).nonzero()[:, 0].tolist()


@method(
    "sae_circuit_discovery",
    call="import torch\n"
    "from regard.circuits.head_codes import discover_circuit\n"
    "circuit = discover_circuit(torch.randn(10, 12, 16), torch.randn(10, 12, 16), steps=20)",
)
def discover_circuit(
    task: Tensor, corrupted: Tensor, *, codes: int = 256, penalty: float = 0.03, steps: int = 400
) -> CodeScores:
    """Score heads by their outputs [prompts, heads, d] on prompts of the task and corrupted ones.

    >>> discover_circuit(torch.randn(4, 3, 8), torch.randn(4, 3, 8), steps=5).heads.shape
    torch.Size([3])
    """
    if task.dim() != 3 or task.shape[1:] != corrupted.shape[1:]:
        fail(
            ShapeError, "corrupted", shape_of(corrupted), f"[prompts, {task.shape[1]}, "
            f"{task.shape[-1]}], as task", "give the outputs of the same heads",
        )  # fmt: skip
    x = torch.cat([task, corrupted]).float()
    flat = x.flatten(0, 1)
    # Each channel on one scale, so that the penalty means the same for every model.
    flat = (flat - flat.mean(0)) / flat.std(0).clamp_min(1e-6)
    coder = SparseCoder(flat.shape[1], codes).fit(flat, penalty=penalty, steps=steps)
    with torch.no_grad():
        found = coder(flat)[1].argmax(-1).view(x.shape[:2])
    heads = [_own_share(found[:, h].tolist(), len(task)) for h in range(x.shape[1])]
    pairs = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for a in range(len(pairs)):
        for b in range(a + 1, len(pairs)):
            both = list(zip(found[:, a].tolist(), found[:, b].tolist(), strict=True))
            pairs[a, b] = pairs[b, a] = _own_share(both, len(task))
    return CodeScores(torch.tensor(heads, dtype=torch.float64), pairs, found)


def _own_share(codes: Sequence[object], task: int) -> float:
    """Distinct codes among the first `task` that are not among the rest, over all distinct ones."""
    return len(set(codes[:task]) - set(codes[task:])) / len(set(codes))


class LastOutputs(Stage):
    """Keep the output of each head at the last token: [b, h, e] for each site."""

    def __init__(self, where: Any = None) -> None:
        super().__init__(where)
        self.found: dict[Site, list[Tensor]] = {}

    def after(self, call: Call, partial: Result) -> Result:
        """Keep the last row."""
        self.found.setdefault(call.site, []).append(partial.out[:, :, -1].detach().float().cpu())
        return partial


def head_outputs(model: Any, prompts: Sequence[Tensor]) -> tuple[Tensor, list[tuple[Site, int]]]:
    """Return head outputs at the last token of prompts [n]: [prompts, heads, e], and head names.

    All heads of the model must have one size.
    """
    stage = LastOutputs()
    with attach(model, stage, check=False), torch.no_grad():
        for prompt in prompts:
            model(prompt[None])
    names = [(site, h) for site, x in stage.found.items() for h in range(x[0].shape[1])]
    return torch.cat([torch.cat(x) for x in stage.found.values()], 1), names


def area_under(scores: Tensor, members: Tensor) -> float:
    """Area under the ROC curve of scores [h] for telling members, bool [h]; ties count half.

    >>> area_under(torch.tensor([0.9, 0.1, 0.5]), torch.tensor([True, False, False]))
    1.0
    """
    inside, outside = scores[members].double(), scores[~members].double()
    above = torch.sign(inside[:, None] - outside[None]).mean()
    return float((above + 1) / 2)
