"""What compiled code asks about the rule of a layer. Importing this loads the compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from regard.layers.attention import Attention


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # as torch has it
def rule_is_fixed(layer: Attention) -> bool:
    """Build the rule of a layer outside of the graph that is traced; return whether it stays.

    Rules with tensors, which may be learned, do not: they are built anew in each call.
    """
    layer.rule()
    return layer._fixed is not None
