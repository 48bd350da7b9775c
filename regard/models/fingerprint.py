"""Identify a model by a hash of every weight and its config.

What is computed for a model (a calibration, keys of passages, measurements) is stored with this
hash, and reused for no other model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from regard.core.errors import DeviceError, fail

# Bytes that are copied to the CPU and hashed at a time.
BLOCK = 64 << 20
HALVES = (torch.float16, torch.bfloat16)
# Config entries that do not change what a model computes.
PASSING = {
    "transformers_version", "name_or_path", "dtype", "torch_dtype", "attn_implementation",
    "use_cache", "return_dict", "output_attentions", "output_hidden_states",
}  # fmt: skip
_known: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()


def fingerprint(model: torch.nn.Module) -> str:
    """Hash the weights, buffers, classes and config of a model: 32 hex digits.

    Every byte is read once. The last hash is returned while no tensor has changed, by its storage,
    its version counter and 16 of its values. Writes through `.data` do not count versions: one that
    misses those 16 values is noticed only by a new process. Half precision is hashed as float32.

    >>> a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    >>> fingerprint(a) == fingerprint(a), fingerprint(a) == fingerprint(b)
    (True, False)
    """
    tensors = _tensors(model)
    about = _about(model)
    state = _state(tensors, about)
    if state is not None and _known.get(model, (None, ""))[0] == state:
        return _known[model][1]
    found = hashlib.sha256(about.encode())
    for name, x in tensors.items():
        kind = torch.float32 if x.dtype in HALVES else x.dtype
        found.update(f"{name} {list(x.shape)} {kind}\n".encode())
        for block in _blocks(x):
            found.update(block)
    digest = found.hexdigest()[:32]
    if state is not None:
        _known[model] = state, digest
    return digest


def _tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return everything saved with a model, and its rotary frequencies, which are not."""
    found = {name: x.detach() for name, x in model.state_dict().items() if isinstance(x, Tensor)}
    for name, module in model.named_modules():
        # Some models change `inv_freq` with the length of a text, and keep the original.
        x = getattr(module, "original_inv_freq", getattr(module, "inv_freq", None))
        if isinstance(x, Tensor):
            found[f"{name}.inv_freq"] = x.detach()
    for name, x in found.items():
        if x.is_meta:
            fail(
                DeviceError, "model", f"{name} on the meta device", "weights that are there",
                "load the model first",
            )  # fmt: skip
    return found


def _about(model: torch.nn.Module) -> str:
    classes = [[name, type(x).__qualname__] for name, x in model.named_modules()]
    return json.dumps([classes, _plain(_config(model))], sort_keys=True)


def _config(model: Any) -> Any:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        return config.to_dict()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    return dict(config) if isinstance(config, Mapping) else None


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        kept = {str(k): v for k, v in x.items()}
        return {k: _plain(v) for k, v in kept.items() if k[:1] != "_" and k not in PASSING}
    if isinstance(x, list | tuple | set | frozenset):
        made = [_plain(y) for y in x]
        return sorted(made, key=repr) if isinstance(x, set | frozenset) else made
    if x is None or isinstance(x, bool | int | float | str):
        return x
    # Anything else in a config (a dtype, a function): by its name, never by its address.
    return getattr(x, "__qualname__", None) or f"a {type(x).__qualname__}"


def _blocks(x: Tensor) -> Any:
    flat = x.reshape(-1)
    step = max(BLOCK // x.element_size(), 1)
    for start in range(0, flat.numel(), step):
        block = flat[start : start + step].cpu()
        block = block.float() if x.dtype in HALVES else block
        raw: Any = block.contiguous().view(torch.uint8).numpy()
        yield memoryview(raw)


def _state(tensors: dict[str, Tensor], about: str) -> Any:
    """Return what changes when a model is modified; None where that is unknown."""
    found = []
    for name, x in tensors.items():
        if x.is_inference():
            return None
        flat = x.reshape(-1) if x.is_contiguous() else x[:0].reshape(-1)
        some = flat[:: max(1, flat.numel() // 16)][:16].cpu().contiguous()
        raw = some.view(torch.uint8).numpy().tobytes()
        found.append((name, x.data_ptr(), x._version, x.shape, x.stride(), x.dtype, raw))
    return about, tuple(found)
