"""Values as text: Python that reads back, a short form for messages, and JSON."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import RegardError, RuleError, fail

Show = Callable[[Any], str]
Trusted = Sequence[str | ModuleType]

# Tensors of more entries are shown by their shape; PyTorch leaves entries out from here on too.
SPELLED = 1000


def arguments(x: Any, show: Show) -> str:
    """Write the arguments of a value that differ from their defaults."""
    said, positional = [], True
    for f in dataclasses.fields(x):
        part = getattr(x, f.name)
        if f.default is not dataclasses.MISSING and _is_default(part, f.default):
            positional = False
            continue
        positional = positional and not isinstance(part, bool)
        said.append(show(part) if positional else f"{f.name}={show(part)}")
    return ", ".join(said)


def _is_default(part: Any, default: Any) -> bool:
    if part is default or isinstance(part, Tensor):
        return part is default
    return bool(type(part) is type(default) and part == default)


def exactly(x: Any) -> str:
    """Write x as Python that reads back, given `torch` and the names of the library.

    >>> exactly((1.0, torch.tensor([0.5, -torch.inf])))
    '(1.0, torch.tensor([0.5, -torch.inf]))'
    """
    if isinstance(x, Tensor):
        return _spelled(x) if x.numel() <= SPELLED and x.device.type != "meta" else _shape(x)
    if isinstance(x, float) and not math.isfinite(x):
        return _number(x)
    return _inside(x, exactly) if isinstance(x, tuple) else _other(x, repr)


def briefly(x: Any) -> str:
    """Write x for a message: tensors by their shape.

    >>> briefly((1, torch.zeros(2, 3)))
    '(1, <float32 2x3>)'
    """
    if isinstance(x, Tensor):
        return _shape(x)
    return _inside(x, briefly) if isinstance(x, tuple) else _other(x, str)


def _other(x: Any, write: Show) -> str:
    if hasattr(x, "fields"):
        return write(x)
    return getattr(x, "__qualname__", repr(x)) if callable(x) else repr(x)


def _inside(x: tuple[Any, ...], show: Show) -> str:
    inside = ", ".join(show(y) for y in x)
    return f"({inside},)" if len(x) == 1 else f"({inside})"


def _shape(x: Tensor) -> str:
    kind = str(x.dtype).removeprefix("torch.")
    return f"<{kind} {'x'.join(map(str, x.shape)) or 'scalar'}>"


def _spelled(x: Tensor) -> str:
    usual = {torch.float32, torch.int64, torch.bool}
    dtype = "" if x.dtype in usual else f", dtype={x.dtype}"
    if x.numel() == 0:
        kind = "" if x.dtype == torch.float32 else f", dtype={x.dtype}"
        return f"torch.empty({tuple(x.shape)}{kind})"
    return f"torch.tensor({_listed(x.detach().cpu().tolist())}{dtype})"


def _listed(x: Any) -> str:
    if isinstance(x, list):
        return f"[{', '.join(map(_listed, x))}]"
    return _number(x) if isinstance(x, float) else repr(x)


def _number(x: float) -> str:
    if math.isfinite(x):
        return repr(x)
    return "torch.nan" if math.isnan(x) else "torch.inf" if x > 0 else "-torch.inf"


def to_json(x: Any) -> str:
    """Write a value as JSON text."""
    return json.dumps(plain(x))


def plain(x: Any, tensor: Callable[[Tensor], Any] | None = None, name: str = "value") -> Any:
    """Reduce the part `name` to what JSON can hold; `tensor` says what becomes of a tensor."""
    if hasattr(x, "fields"):
        return {"type": type(x).__name__, **{f: plain(y, tensor, f) for f, y in x.fields()}}
    if isinstance(x, Tensor):
        return tensor(x) if tensor else _bytes(x)
    if isinstance(x, tuple):
        return {"tuple": [plain(y, tensor, name) for y in x]}
    if x is None or isinstance(x, bool | int | float | str):
        return x if not isinstance(x, float) or math.isfinite(x) else {"float": repr(x)}
    if callable(x):
        return {"function": _importable(x, name)}
    return fail(RuleError, name, type(x).__name__, "a part that JSON can hold", "use a value")


def _bytes(x: Tensor) -> dict[str, Any]:
    flat = x.detach().cpu().contiguous()
    raw = flat.view(torch.uint8) if flat.dim() else flat.reshape(1).view(torch.uint8)
    return {
        "tensor": base64.b64encode(raw.numpy().tobytes()).decode(),
        "dtype": str(x.dtype).removeprefix("torch."),
        "shape": list(x.shape),
    }


def _importable(x: Any, argument: str) -> str:
    """Return `module:name` of a function that importing that name gives back."""
    module, name = getattr(x, "__module__", None), getattr(x, "__qualname__", None)
    if module and name and module != "__main__" and "<" not in name:
        try:
            if _found(module, name) is x:
                return f"{module}:{name}"
        except (ImportError, AttributeError):
            pass
    return fail(
        RuleError,
        argument,
        f"the function {name or repr(x)[:80]}",
        "a function that can be imported by name",
        "define it at the top of a module, without closure or partial; or write a Step or Support",
    )


def _found(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def from_json(text: str, types: dict[str, Any], trust: Trusted = ()) -> Any:
    """Read what `to_json` wrote; functions only from modules that are trusted."""
    try:
        return built(json.loads(text), types, trust)
    except (
        *(json.JSONDecodeError, TypeError, ValueError, KeyError, RecursionError),
        *(AttributeError, ImportError, RuntimeError, OverflowError),
    ) as broken:
        if isinstance(broken, RegardError):
            raise
        raise RuleError(
            "text",
            f"{str(text)[:40]!r} ({broken})",
            "JSON written by to_json",
            "pass the text unchanged",
        ) from broken


def built(x: Any, types: dict[str, Any], trust: Trusted = (), held: Sequence[Tensor] = ()) -> Any:
    """Build what `plain` reduced; `{"held": 3}` is the fourth of the tensors `held`."""
    if not isinstance(x, dict):
        if isinstance(x, list):
            raise ValueError("a list stands where a part was expected")
        return x
    if "type" in x:
        return _value(x, types, trust, held)
    if "held" in x:
        return held[x["held"]]
    if "tensor" in x:
        return _tensor(x)
    if "tuple" in x:
        return tuple(built(y, types, trust, held) for y in x["tuple"])
    if "float" in x:
        return float(x["float"])
    if "function" in x:
        return _function(x["function"], trust)
    raise ValueError(f"{str(x)[:40]} says not what it is")


def _value(x: dict[str, Any], types: dict[str, Any], trust: Trusted, held: Sequence[Tensor]) -> Any:
    kind = types.get(x.get("type", ""))
    if kind is None:
        fail(
            RuleError,
            "type",
            repr(x.get("type")),
            f"one of {', '.join(sorted(types))}",
            "import the module that defines it first",
        )
    return kind(**{name: built(y, types, trust, held) for name, y in x.items() if name != "type"})


def _tensor(x: dict[str, Any]) -> Tensor:
    dtype, shape = getattr(torch, x["dtype"]), [int(n) for n in x["shape"]]
    if not isinstance(dtype, torch.dtype) or min(shape, default=0) < 0:
        raise ValueError(f"no tensor of {x['dtype']} {shape}")
    raw = bytearray(base64.b64decode(x["tensor"], validate=True))
    if len(raw) != math.prod(shape) * dtype.itemsize:  # before anything of that size is made
        raise ValueError(f"{len(raw)} bytes for a tensor of {x['dtype']} {shape}")
    if not raw:  # torch.frombuffer refuses an empty buffer
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(shape)


def _function(said: str, trust: Trusted) -> Any:
    """Import a function of a trusted module, and nothing that only passes through one."""
    module, _, name = said.partition(":")
    trusted = [m.__name__ if isinstance(m, ModuleType) else m for m in trust]
    if module not in trusted:
        fail(
            RuleError,
            "text",
            f"the function {said!r:.80}",
            f"functions of trusted modules alone ({', '.join(trusted) or 'none was named'})",
            f"pass trust=({module!r:.60},) to from_json if you trust that module's code",
        )
    found = _found(module, name)
    own = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if not callable(found) or own != (module, name):
        raise ValueError(f"{said} is no function defined there")
    return found
