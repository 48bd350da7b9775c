"""Refuse models whose layers are cut over another dimension than the tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from regard.core.errors import CapabilityError, fail


def need_whole_layers(model: nn.Module) -> None:
    """Raise for tensor parallelism: a rank's heads are not those of the model there.

    FSDP2 cuts parameters too, and puts them together before a layer runs: that is no matter.
    """
    try:
        from torch.distributed.fsdp import FSDPModule
        from torch.distributed.tensor import DTensor
    except ImportError:  # a torch that was built without distributed
        return
    gathered: set[int] = set()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            gathered |= {id(x) for x in module.parameters()}
    for name, x in model.named_parameters():
        if not isinstance(x, DTensor):
            continue
        cuts = [place for place in x.placements if not place.is_replicate()]
        if len(cuts) > (id(x) in gathered):
            fail(
                CapabilityError, "the model", f"`{name}` cut over a mesh {_of(x.device_mesh)}",
                "whole layers on every rank, or FSDP2 alone",
                "leave tensor parallelism out: spread over its ranks too",
            )  # fmt: skip


def _of(mesh: Any) -> str:
    names = mesh.mesh_dim_names or [""] * mesh.ndim
    return " x ".join(f"{name} {mesh.size(i)}".strip() for i, name in enumerate(names))


__all__ = ["need_whole_layers"]
