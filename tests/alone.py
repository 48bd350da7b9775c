"""Which modules attend by themselves while a model runs, beside whatever is attached to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class Alone(TorchFunctionMode):
    """Notes the modules called attention that read a softmax of their own while none of ours runs.

    A softmax that nothing reads, as Sam2 computes beside its call, weighs nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[nn.Module] = []
        self.found: set[nn.Module] = set()
        # Weights that nothing has read yet, by their number, with the module that made them.
        self.unread: dict[int, tuple[Any, nn.Module]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), (args, kwargs or {})
        if name == "__get__":  # a shape or a dtype
            return func(*args, **(kwargs or {}))
        leaves = tree_leaves(given) if self.unread else []
        read = [self.unread.pop(id(x)) for x in leaves if id(x) in self.unread]
        out = func(*args, **(kwargs or {}))
        if name in ("to", "type_as", "contiguous") and read and out is not None:
            self.unread[id(out)] = (out, read[0][1])
        else:
            self.found |= {module for _, module in read}
        if "softmax" in name and self.inside:
            self.unread[id(out)] = (out, self.inside[-1])
        return out

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
