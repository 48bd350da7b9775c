"""Tell tensors that would be on a GPU from tensors that would not, where there is none.

A tensor is on the pretended GPU if it was told so, made of one that is, or made with `device=`. An
operation on tensors of both kinds fails here as it would there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map_only

from regard.core.value import _shared

TAG = "_pretends_to_be_on_a_gpu"
# What takes tensors of the host, or moves them.
COPIES = {"copy_", "__setitem__", "set_", "index_put_"}
# What is only called where tensors are on a CPU in truth.
BY_DEVICE = {"embedding_bag"}
HOME = {"cpu", "tolist", "item", "numpy", "__bool__", "__float__", "__int__", "__index__"}


def on_gpu(x: Any) -> Any:
    """Put a tensor, or the parameters and buffers of a module, on the pretended GPU."""
    if isinstance(x, torch.nn.Module):
        for each in (*x.parameters(), *x.buffers()):
            setattr(each, TAG, True)
    else:
        setattr(x, TAG, True)
    return x


class Pretend(TorchFunctionMode):
    """Fail where tensors of two devices would meet."""

    def __enter__(self) -> Any:
        # What values share they made on the CPU that stands for the GPU: there it would be anew.
        _shared.clear()
        return super().__enter__()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        if name in ("__get__", "__set__") or name in HOME:
            return self._told(found, any(map(_told, tree_leaves(args)))) if "get" in name else found
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        some = [x for x in given if x.dim()]
        told = [_told(x) for x in some]
        moved = kwargs.get("device") is not None
        moved |= name == "to" and any(isinstance(x, torch.device | str) for x in args[1:])
        indexed = name in ("__getitem__", "index_put_") and told and told[0]
        if any(told) and not all(told) and not (moved or indexed or name in COPIES | BY_DEVICE):
            shapes = [(list(x.shape), _told(x)) for x in some]
            raise RuntimeError(f"{name} of tensors on two devices: {shapes}")
        return self._told(found, moved or any(map(_told, given)))

    @staticmethod
    def _told(found: Any, told: bool) -> Any:
        return tree_map_only(Tensor, lambda x: on_gpu(x) if told else x, found)


def _told(x: Any) -> bool:
    return isinstance(x, Tensor) and getattr(x, TAG, False)
