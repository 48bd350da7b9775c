"""Attention that a module of transformers writes out, and how to call ours in its place.

These modules use neither the attention interface nor PyTorch's attention. Each is described once
here, by queries, keys, values and a bias; masks and the call are as for all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

from torch import Tensor, nn

from regard.models.attention_interface import attention
from regard.models.wrap import Around

# From a module and the arguments of its forward: the bias on scaled scores, or None.
Bias = Callable[[Any, Tensor | None, Tensor | None], Tensor | None]


def _scaled_bias(module: Any, rel_pos: Tensor | None, rel_2d_pos: Tensor | None) -> Tensor | None:
    """Return the sum of both tables over the root of the head size."""
    if not module.has_relative_attention_bias or rel_pos is None:
        return None
    if module.has_spatial_attention_bias and rel_2d_pos is not None:
        rel_pos = rel_pos + rel_2d_pos
    root: float = module.attention_head_size**-0.5
    return rel_pos * root


def _spatial_bias(module: Any, rel_pos: Tensor | None, rel_2d_pos: Tensor | None) -> Tensor | None:
    """Return the table of 2-D positions as it is, or else that of tokens over the root."""
    if rel_2d_pos is not None:
        return rel_2d_pos
    if not module.has_relative_attention_bias or rel_pos is None:
        return None
    root: float = module.attention_head_size**-0.5
    return rel_pos * root


# softmax((q k + bias) / √d + mask) v, with a softmax that is shifted and rescaled against overflow
# (CogView, arXiv 2105.13290, section 2.4), which changes nothing but rounding.
BIASES: dict[str, Bias] = {
    "LayoutLMv3SelfAttention": _scaled_bias,
    "PPDocLayoutV2ReadingOrderSelfAttention": _spatial_bias,
}


def is_written_out(module: nn.Module) -> bool:
    """Return whether a module writes out attention that is known here.

    >>> is_written_out(nn.Linear(2, 2))
    False
    """
    kind = type(module)
    return kind.__name__ in BIASES and kind.__module__.startswith("transformers.")


class CallOurs(Around):
    """Around the forward of such a module: its projections, and our attention."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.bias = ref(module), BIASES[type(module).__name__]

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the forward would have returned: out, and weights."""
        return self._attend(self.module(), *args, **kwargs)

    def _attend(
        self,
        module: Any,
        hidden_states: Tensor,
        attention_mask: Any = None,
        rel_pos: Tensor | None = None,
        rel_2d_pos: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return out [b, n, h * d], and weights if asked, for hidden states [b, n, dim]."""
        b, size = hidden_states.shape[0], module.attention_head_size
        q, k, v = (
            linear(hidden_states).view(b, -1, module.num_attention_heads, size).transpose(1, 2)
            for linear in (module.query, module.key, module.value)
        )
        out, weights = attention(
            module, q, k, v, attention_mask,
            dropout=module.dropout.p if module.training else 0.0, scaling=size**-0.5,
            is_causal=False, position_bias=self.bias(module, rel_pos, rel_2d_pos), **kwargs,
        )  # fmt: skip
        return out.flatten(2), weights
