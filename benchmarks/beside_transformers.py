"""Quantized and offloaded keys beside transformers' own caches: quality, bytes and CPU time.

    pip install optimum-quanto ninja hqq termcolor --no-deps --target peers
    PYTHONPATH=peers:. python benchmarks/beside_transformers.py --save beside-transformers

On the model that ships, one thread. Both sides keep the newest tokens exact: as many.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from beside_kvpress import loaded, quality, times
from side_by_side import save
from torch import Tensor

import regard
from regard.bench.shrunk_models import Setting, texts
from regard.policies import policy

RESIDUAL, GROUP = 32, 32


class Caching:
    """A model that starts every text with a cache of a kind."""

    def __init__(self, model: Any, make: Callable[[], Any]) -> None:
        self.model, self.make = model, make

    def __call__(self, ids: Tensor, past_key_values: Any = None, **_: Any) -> Any:
        cache = past_key_values
        if cache is None:
            cache = self.make()
            # Their quantized tensors cannot be copied: a copy is made by reading the text again.
            again = {"__deepcopy__": lambda *_: self(ids).past_key_values}
            cache.__class__ = type("Again", (type(cache),), again)
        return self.model(ids, past_key_values=cache, use_cache=True)


def held(x: Any, seen: dict[int, int] | None = None) -> int:
    """Bytes of every tensor that an object reaches: codes, scales and shifts."""
    seen = {} if seen is None else seen
    inner = [getattr(x, n) for n in ("_data", "_scale", "_shift") if hasattr(x, n)]
    if inner:
        for one in inner:
            held(one, seen)
    elif isinstance(x, Tensor):
        seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    elif isinstance(x, dict):
        for one in x.values():
            held(one, seen)
    elif isinstance(x, list | tuple):
        for one in x:
            held(one, seen)
    elif type(x).__module__.startswith(("transformers", "optimum", "hqq")):
        held(vars(x), seen)
    return sum(seen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    from transformers import DynamicCache, QuantizedCache

    setting = Setting(draws=8)
    model, tokenizer = loaded(eager=False)
    whole = loaded(eager=False)[0]
    ids = texts(tokenizer, setting.length)
    rows: list[dict[str, Any]] = []

    def note(by: str, what: str, one: Any, size: Callable[[], tuple[int, int]]) -> None:
        found = quality(one, tokenizer, setting) | times(one, whole, ids)
        memory, files = size()
        rows.append({"by": by, "what": what, **found, "bytes": memory, "file_bytes": files})
        print(rows[-1], flush=True)

    def theirs(what: str, make: Callable[[], Any]) -> None:
        one = Caching(model, make)
        try:
            note("transformers", what, one, lambda: (held(one(ids).past_key_values.layers), 0))
        except Exception as error:  # any way in which a peer's cache breaks is a row of the result
            said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            rows.append({"by": "transformers", "what": what, "refused": said})
            print(rows[-1], flush=True)

    def ours(what: str, name: str, **settings: Any) -> None:
        with regard.shrink(model, policy(name, **settings), check=False) as shrunk:

            def size() -> tuple[int, int]:
                model(ids)
                report = shrunk.report()
                return report.bytes, sum(x.file_bytes for x in report.layers)

            note("regard", what, model, size)

    with torch.no_grad():
        theirs("everything", lambda: DynamicCache(config=model.config))
        for bits in (4, 2):
            for backend in ("quanto", "hqq"):
                make = {
                    "backend": backend, "config": model.config, "nbits": bits,
                    "q_group_size": GROUP, "residual_length": RESIDUAL,
                    **({"axis_key": 1, "axis_value": 1} if backend == "hqq" else {}),
                }  # fmt: skip
                theirs(f"{bits} bits, {backend}", lambda make=make: QuantizedCache(**make))
            ours(f"{bits} bits", "quantized", bits=bits, group=GROUP, residual=RESIDUAL)
        ours("8 bits", "quantized", bits=8, group=GROUP, residual=RESIDUAL)
        theirs("offloaded", lambda: DynamicCache(config=model.config, offloading=True))
        ours("offloaded to files", "offloaded")
    if arguments.save:
        save(
            arguments.save, rows, length=setting.length, group=GROUP, residual=RESIDUAL,
            transformers="5.23.0", quanto="0.2.7", hqq="0.2.8", seconds="CPU seconds, medians of 9",
        )  # fmt: skip


if __name__ == "__main__":
    main()
