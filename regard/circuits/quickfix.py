"""Which part of a model carries an attribute, and an edit of one layer, in closed form.

Tracing: of a clean run, a corrupted one (noise on the embeddings of some tokens), and runs that are
corrupted save that one part gives what it gave in the clean run, the indirect effect of a part is
metric(restored) - metric(corrupted).

Editing (DiffQuickFix): a linear layer W is to give v* on inputs k, and what it gave elsewhere:

    min_W'  sum_c |W' k_c - v*_c|^2 + strength |W' - W|^2
    W' = (sum_c v*_c k_c^T + strength W) (sum_c k_c k_c^T + strength I)^-1
       = W + (V - K W^T)^T (K K^T + strength I)^-1 K          K [c, i], V [c, o]

The second form shows that W' x = W x for every x orthogonal to all k_c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method

Run = Callable[[], Any]


@dataclass(frozen=True)
class Effects:
    """A metric on the clean run, on the corrupted one, and with each part restored.

    >>> Effects(1.0, 0.2, {"text.0": 0.9, "text.1": 0.3}).top(1)
    [('text.0', 0.7)]
    """

    clean: float
    corrupted: float
    restored: Mapping[str, float]

    def indirect(self) -> dict[str, float]:
        """Return how much of the metric each part brings back."""
        return {name: x - self.corrupted for name, x in self.restored.items()}

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the parts that bring back most."""
        ranked = sorted(self.indirect().items(), key=lambda part: -part[1])
        return [(name, round(x, 6)) for name, x in ranked[:count]]


@contextmanager
def corrupting(
    module: nn.Module, positions: Sequence[int], size: float, seed: int = 0
) -> Iterator[None]:
    """Add Gaussian noise to the outputs [b, n, d] of a module at some positions."""
    if not size >= 0:
        fail(ValueRangeError, "size", size, "0 or more", "take the standard deviation of the noise")
    generator = torch.Generator().manual_seed(seed)

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        x = _tensor(output).clone()
        noise = torch.randn(len(positions), x.shape[-1], generator=generator)
        x[:, list(positions)] += size * noise.to(x)
        return _with(output, x)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def trace(
    parts: Mapping[str, nn.Module],
    clean: Run,
    corrupted: Run,
    metric: Callable[[Any], Any],
    *,
    positions: Sequence[int] | None = None,
    rows: slice | None = None,
) -> Effects:
    """Restore one part at a time in a corrupted run, and measure the effect.

    A part that runs several times, as in denoising, is restored each time. `positions` restores
    some tokens alone, `rows` some rows of the batch alone (such as the conditional branch).
    """
    recorded: dict[str, list[Tensor]] = {name: [] for name in parts}

    def keep(name: str) -> Any:
        return lambda _, __, output: recorded[name].append(_tensor(output).detach().clone())

    handles = [module.register_forward_hook(keep(name)) for name, module in parts.items()]
    try:
        whole = float(metric(clean()))
    finally:
        for handle in handles:
            handle.remove()
    broken = float(metric(corrupted()))
    restored = {}
    for name, module in parts.items():
        with _restoring(name, module, recorded[name], positions, rows):
            restored[name] = float(metric(corrupted()))
    return Effects(whole, broken, restored)


@contextmanager
def _restoring(
    name: str, module: nn.Module, recorded: Sequence[Tensor], positions: Sequence[int] | None,
    rows: slice | None,
) -> Iterator[None]:  # fmt: skip
    """Return what was recorded in place of what a module gives, call by call."""
    calls = 0

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal calls
        now = _tensor(output).clone()
        if calls >= len(recorded) or recorded[calls].shape != now.shape:
            fail(
                ShapeError, f"parts[{name!r}]", f"call {calls} with {shape_of(now)}",
                "the calls and shapes of the clean run", "let both runs take the same steps",
            )  # fmt: skip
        where: tuple[Any, ...] = (rows if rows is not None else slice(None),)
        where = where if positions is None else (*where, list(positions))
        now[where] = recorded[calls][where]
        calls += 1
        return _with(output, now)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def rewritten(weight: Tensor, inputs: Tensor, wanted: Tensor, strength: float = 0.1) -> Tensor:
    """Return W' [o, i] that gives `wanted` [c, o] on `inputs` [c, i], near W elsewhere.

    As `strength` goes to 0 it does so exactly, where the inputs are independent; as it grows W'
    goes to W.

    >>> W, k = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0]])
    >>> rewritten(W, k, torch.tensor([[0.0, 5.0, 0.0]]), 1e-9)[:, 0].round().tolist()
    [0.0, 5.0, 0.0]
    """
    o, i = weight.shape
    if inputs.dim() != 2 or inputs.shape[1] != i or wanted.shape != (len(inputs), o):
        fail(
            ShapeError, "inputs, wanted", f"{shape_of(inputs)}, {shape_of(wanted)}",
            f"[c, {i}] and [c, {o}]", "give one row for each thing to change",
        )  # fmt: skip
    if not strength > 0:
        fail(ValueRangeError, "strength", strength, "more than 0", "take 0.1")
    w, k, v = weight.detach().double(), inputs.double(), wanted.double()
    gram = k @ k.T + strength * torch.eye(len(k), dtype=k.dtype, device=k.device)
    return (w + (v - k @ w.T).T @ torch.linalg.solve(gram, k)).to(weight.dtype)


@method(
    "diff_quickfix",
    call="import torch\n"
    "from regard.circuits.quickfix import QuickFix\n"
    "layer = torch.nn.Linear(8, 8)  # of a text encoder: its first attention's out_proj\n"
    "by_x, plain = torch.randn(2, 1, 5, 8)  # for lambda: encode('a house by X'), and the like\n"
    "with QuickFix(layer, [(lambda: layer(by_x), 4)], new=[(lambda: layer(plain), 2)]):\n"
    "    print(layer(by_x)[0, 4] - layer(plain)[0, 2])",
)
class QuickFix:
    """Make a linear layer treat some tokens as it treats others; in a `with`, or for good.

    `old` and `new` are runs of the model, each with the position of a token: on the token of each
    old run the layer will return its output on that of the new run. Other inputs are changed as
    little as `strength` says.

        with QuickFix(layer, old=[(red, 2)], new=[(blue, 2)]):
            ...                     # red is blue
        QuickFix(...).apply()       # for good; undo() takes it back
    """

    def __init__(
        self,
        layer: nn.Linear,
        old: Sequence[tuple[Run, int]],
        new: Sequence[tuple[Run, int]],
        strength: float = 0.1,
    ) -> None:
        if not isinstance(layer, nn.Linear):
            fail(RuleError, "layer", type(layer).__name__, "a Linear", "pass the out-projection")
        if len(old) != len(new) or not old:
            fail(
                RuleError, "old, new", f"{len(old)} and {len(new)} runs", "as many of each",
                "pair each old run with a new one",
            )  # fmt: skip
        self.layer = layer
        self.inputs, _ = seen_at(layer, old)
        _, self.wanted = seen_at(layer, new)
        bias = 0 if layer.bias is None else layer.bias.detach()
        self.before = layer.weight.detach().clone()
        self.weight = rewritten(self.before, self.inputs, self.wanted - bias, strength)

    def apply(self) -> None:
        """Set the new weight."""
        with torch.no_grad():
            self.layer.weight.copy_(self.weight)

    def undo(self) -> None:
        """Restore the old weight."""
        with torch.no_grad():
            self.layer.weight.copy_(self.before)

    def __enter__(self) -> Self:
        self.apply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.undo()


def seen_at(layer: nn.Module, runs: Sequence[tuple[Run, int]]) -> tuple[Tensor, Tensor]:
    """Return inputs [runs, i] and outputs [runs, o] of a layer at the position of each run."""
    kept: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(
        lambda _, args, output: kept.append((args[0].detach(), _tensor(output).detach()))
    )
    found = []
    try:
        with torch.no_grad():
            for run, position in runs:
                kept.clear()
                run()
                if not kept:
                    fail(
                        RuleError, "layer", "a run that does not reach it", "a layer of the model",
                        "pass a layer that the runs go through",
                    )  # fmt: skip
                given, gave = kept[0]
                found.append((given[0, position], gave[0, position]))
    finally:
        handle.remove()
    return torch.stack([x for x, _ in found]), torch.stack([y for _, y in found])


def _tensor(output: Any) -> Tensor:
    """Return the first tensor of what a module gives."""
    first = output[0] if isinstance(output, tuple | list) else output
    first = getattr(first, "last_hidden_state", getattr(first, "sample", first))
    if not isinstance(first, Tensor):
        fail(
            RuleError, "module", f"one that gives {type(output).__name__}", "one of tensors",
            "pass a block, an attention, or an MLP",
        )  # fmt: skip
    return first


def _with(output: Any, x: Tensor) -> Any:
    """Return what a module gives, its first tensor replaced."""
    return (x, *output[1:]) if isinstance(output, tuple) else x
