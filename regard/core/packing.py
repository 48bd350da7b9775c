"""Serialize tensors and plain values to bytes and back, without pickle, for files and sockets.

The layout is the length of a header (8 bytes), the header (JSON: the values, and the dtype, shape
and device of each tensor), then the numbers of the tensors, one after another. Nothing that is
read names code, and no tensor can be larger than the bytes that came.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import RuleError, fail

Buffer = bytes | bytearray | memoryview
# Bytes of JSON that a header may have: values are few beside tensors.
HEADER = 64 << 20
DTYPES = {
    str(x).removeprefix("torch."): x
    for x in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
    )
}  # fmt: skip


class PackedError(ValueError):
    """Bytes are not what `pack` writes. Readers turn it into their own error."""


def pack(content: Any) -> list[Buffer]:
    """Write None, bool, int, float, str, bytes, lists, tuples, dicts and tensors as buffers.

    The tensors are not copied where they are contiguous and on the CPU.

    >>> unpack(b"".join(pack({"x": torch.ones(2), 3: (1.5, None)})))
    {'x': tensor([1., 1.]), 3: (1.5, None)}
    """
    tensors: list[Tensor] = []
    tree = _plain(content, tensors)
    about = [[_dtype(x), list(x.shape), str(x.device)] for x in tensors]
    text = json.dumps({"tree": tree, "tensors": about}, ensure_ascii=False)
    header = text.encode("utf-8", "surrogatepass")
    return [len(header).to_bytes(8, "little"), header, *(_bytes(x) for x in tensors)]


def unpack(body: Buffer) -> Any:
    """Read what `pack` wrote; tensors go to the device they were on, or to the CPU without it."""
    found = memoryview(body)
    size = int.from_bytes(found[:8], "little")
    if len(found) < 8 or size > min(len(found) - 8, HEADER):
        raise PackedError("its header is cut off")
    header = json.loads(bytes(found[8 : 8 + size]).decode("utf-8", "surrogatepass"))
    tensors, at = [], 8 + size
    for dtype, shape, device in header["tensors"]:
        if not all(type(n) is int and n >= 0 for n in shape):
            raise PackedError(f"a tensor of shape {shape}")
        stop = at + math.prod(shape) * DTYPES[dtype].itemsize
        if stop > len(found):
            raise PackedError("its tensors are cut off")
        tensors.append(_tensor(found[at:stop], dtype, shape, device))
        at = stop
    if at != len(found):
        raise PackedError(f"{len(found) - at} bytes too many")
    return _built(header["tree"], tensors)


def _dtype(x: Tensor) -> str:
    name = str(x.dtype).removeprefix("torch.")
    if name not in DTYPES or x.layout is not torch.strided or x.is_meta:
        fail(
            RuleError, "content", f"a tensor of {x.dtype} ({x.layout}, {x.device})",
            f"a dense one of {', '.join(DTYPES)}", "convert it first",
        )  # fmt: skip
    return name


def _bytes(x: Tensor) -> Buffer:
    x = x.detach().cpu().contiguous().resolve_conj().resolve_neg()
    raw: Any = x.reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def _tensor(raw: memoryview, dtype: str, shape: list[int], device: str) -> Tensor:
    kind = DTYPES[dtype]
    if not raw.nbytes:  # torch.frombuffer refuses an empty buffer
        return torch.empty(shape, dtype=kind)
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    x = (flat != 0 if kind is torch.bool else flat.view(kind)).view(shape)
    return x.to(device) if device != "cpu" and _is_there(device) else x


def _is_there(device: str) -> bool:
    kind, _, index = device.partition(":")
    found = kind == "cuda" and torch.cuda.is_available()
    return found and int(index or 0) < torch.cuda.device_count()


def _plain(x: Any, tensors: list[Tensor]) -> Any:
    if x is None or isinstance(x, bool | str):
        return x
    if isinstance(x, int):
        return int(x)
    if isinstance(x, float):
        return float(x) if math.isfinite(x) else {"float": repr(float(x))}
    if isinstance(x, list):
        return [_plain(y, tensors) for y in x]
    if isinstance(x, tuple):
        return {"tuple": [_plain(y, tensors) for y in x]}
    if isinstance(x, Mapping):
        return {"dict": [[_plain(k, tensors), _plain(y, tensors)] for k, y in x.items()]}
    if isinstance(x, Tensor):
        tensors.append(x)
        return {"tensor": len(tensors) - 1}
    if isinstance(x, bytes):
        return {"bytes": base64.b64encode(x).decode()}
    return fail(
        RuleError, "content", f"a {type(x).__name__}", "tensors, numbers, text, lists and dicts",
        "turn it into these first",
    )  # fmt: skip


def _built(x: Any, tensors: list[Tensor]) -> Any:
    if isinstance(x, list):
        return [_built(y, tensors) for y in x]
    if not isinstance(x, dict):
        return x
    ((kind, held),) = x.items()
    if kind == "tensor":
        if type(held) is not int or held < 0:
            raise PackedError(f"tensor {held}")
        return tensors[held]
    if kind == "dict":
        return {_built(k, tensors): _built(y, tensors) for k, y in held}
    if kind == "tuple":
        return tuple(_built(y, tensors) for y in held)
    if kind == "float":
        return float(held)
    if kind == "bytes":
        return base64.b64decode(held, validate=True)
    raise PackedError(f"a value of kind {kind!r}")
