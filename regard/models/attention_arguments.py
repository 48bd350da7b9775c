"""The keyword arguments that models pass to their attention: read, ignored (and why), or refused.

`tests/models/test_attention_arguments.py` finds every call of the attention interface in
transformers, and every comparison of the name of an implementation, and requires each here.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import fail, shape_of
from regard.models.hook import UnsupportedModelError

# Read by `regard.models.attention_interface.attention`.
READ = (
    "module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal",
    "position_bias", "softcap", "s_aux", "output_attentions", "indices", "block_indices", "cache",
)  # fmt: skip
_FLASH = "for kernels of packed texts; eager attention and SDPA leave it out, and cut or mask"
# Passed and not read: what each is, and why ignoring it changes nothing.
HARMLESS = {
    "sliding_window": "for flash attention; the mask, which is read, has the window",
    "cu_seq_lens_q": _FLASH,
    "cu_seq_lens_k": _FLASH,
    "max_length_q": _FLASH,
    "max_length_k": _FLASH,
    "position_ids": "for flash attention, to find packed texts; the mask, which is read, has them",
    "deterministic": "for flash attention's backward pass",
    "seq_idx": "for scans over packed texts",
    **dict.fromkeys(
        ("use_cache", "cache_position", "past_key_values", "output_hidden_states",
         "output_router_logits", "num_items_in_batch", "return_dict", "logits_to_keep"),
        "for the model around attention, which passes on all of its arguments",
    ),
}  # fmt: skip
# Changes scores in a way that no rule expresses.
REFUSED = {
    "sinks": "a sink for each query and head",
    "head_mask": "a factor on the weights of each head",
}

# What is read or harmless, whatever it holds.
NEED_NO_LOOK = frozenset((*READ, *HARMLESS))


def need_known(module: nn.Module, given: dict[str, Any]) -> None:
    """Raise for an argument that a model passes to its attention, and that would be ignored.

    A name in no table is refused where the model's own code passes it, or where the attention that
    is replaced reads it. What a caller gave to the model, which passes it on with everything else,
    is ignored, as the replaced attention does.

    >>> need_known(nn.Identity(), {"deterministic": True, "num_items_in_batch": 3})
    >>> need_known(nn.Identity(), {"head_mask": torch.ones(4)})
    Traceback (most recent call last):
      ...
    regard.models.hook.UnsupportedModelError: `head_mask`: got a tensor of shape [4] ...
    """
    kind: Any = type(module)
    for name, x in given.items():
        if x is None or name in HARMLESS or name in READ:
            continue
        if name in REFUSED or _is_passed(kind, name):
            what = REFUSED.get(name, "an argument that Regard does not know")
            fail(
                UnsupportedModelError, name, f"{shape_of(x)} ({what})",
                "scores that a mask, a bias, a soft cap or a sink for each head change",
                "use the model without Regard, which would ignore this",
            )  # fmt: skip


@lru_cache(maxsize=4096)
def _is_passed(kind: type, name: str) -> bool:
    """Return whether the code of a class, or the eager attention beside it, names an argument."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "builtins"):
            continue
        for function in vars(base).values():
            code = getattr(inspect.unwrap(function), "__code__", None)
            if isinstance(code, CodeType) and _names(code, name):
                return True
        home = inspect.getmodule(base)
        for label, function in vars(home).items() if home is not None else ():
            if label.endswith("attention_forward") and inspect.isfunction(function):
                known = inspect.signature(function).parameters
                if name in known and known[name].kind is not inspect.Parameter.VAR_KEYWORD:
                    return True
    return False


def _names(code: CodeType, name: str) -> bool:
    """Return whether code has a keyword among its constants: alone, or in the names of a call."""
    return any(
        name == x or (isinstance(x, tuple) and name in x and all(isinstance(y, str) for y in x))
        for x in code.co_consts
    )


def chosen_keys(
    module: Any, q: Tensor, m: int, indices: Tensor | None, block_indices: Tensor | None
) -> Tensor:
    """Return the keys that a model has chosen for each query, bool [b, 1 or h, n, m].

    `indices` [b, n, c] are keys; `block_indices` [b, g, n, c] are blocks of keys, for groups of
    heads. Negative entries choose nothing.

    >>> q = torch.zeros(1, 2, 2, 4)
    >>> chosen_keys(None, q, 3, torch.tensor([[[0, -1], [0, 2]]]), None).int().tolist()
    [[[[1, 0, 0], [1, 0, 1]]]]
    """
    chosen = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=q.device)
    if indices is not None:
        chosen = _listed(indices[:, None], m)
    if block_indices is not None:
        size = module.indexer.block_size
        blocks = _listed(block_indices, -(-m // size)).repeat_interleave(size, 3)[..., :m]
        chosen = chosen & blocks.repeat_interleave(q.shape[1] // blocks.shape[1], 1)
    return chosen


def _listed(index: Tensor, count: int) -> Tensor:
    """Return which of `count` indices are listed: [b, h, n, c] to bool [b, h, n, count]."""
    safe = index.long().masked_fill(index < 0, count)
    found = torch.zeros((*index.shape[:3], count + 1), dtype=torch.bool, device=index.device)
    return found.scatter(3, safe, True)[..., :count]
