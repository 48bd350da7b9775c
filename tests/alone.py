"""Which modules attend by themselves while a model runs, beside whatever is attached to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode


class Alone(TorchFunctionMode):
    """Notes the modules called attention that take a softmax while no call of ours is run."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[nn.Module] = []
        self.found: set[nn.Module] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "softmax" in getattr(func, "__name__", "") and self.inside:
            self.found.add(self.inside[-1])
        return func(*args, **(kwargs or {}))

    def watch(self, model: nn.Module, run: Callable[[], Any]) -> set[str]:
        """Run, and name the modules."""
        hooks = [
            nn.modules.module.register_module_forward_pre_hook(lambda m, _: self.inside.append(m)),
            nn.modules.module.register_module_forward_hook(lambda *_: self.inside.pop() and None),
        ]
        try:
            with self:
                run()
        finally:
            for hook in hooks:
                hook.remove()
        names = {m: f"{n} ({type(m).__name__})" for n, m in model.named_modules()}
        # A router within a module called attention is none.
        return {names[m] for m in self.found if "attention" in names[m].rpartition(".")[2].lower()}
