"""What it costs to free several tokens at once at small budgets: bits a byte of the demo model.

    python benchmarks/small_budgets.py --save small-budgets     # a few minutes of one core

Policies that evict at every step free 4 tokens at a time (no more than an eighth of the budget), so
that most steps evict nothing. Here they do, and beside that free only what must go; the texts end
with tokens that are read one at a time.
"""

from __future__ import annotations

import argparse
import time
from typing import Any
from unittest import mock

import torch
from side_by_side import save

import regard
from regard.bench.shrunk_models import Setting, full_text
from regard.bench.shrunk_texts import divergence
from regard.models.loading import load
from regard.policies import kinds, policy

METHODS, BUDGETS = ("streaming", "tova", "h2o"), (16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=256, help="tokens that are read one by one")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load()
    model = model.float()
    setting = Setting(length=given.length, texts=given.texts, steps=given.steps)
    whole = full_text(model, tokenizer, setting)
    rows: list[dict[str, Any]] = [{"policy": "full", "bits": round(whole.bits, 4)}]
    print(rows[0], flush=True)
    for name in METHODS:
        for keep in BUDGETS:
            row: dict[str, Any] = {"policy": name, "tokens": keep}
            for said, freed in (("one", 0), ("some", kinds.FREED)):
                with (
                    mock.patch.object(kinds, "FREED", freed),
                    regard.shrink(model, policy(name), keep=keep, check=False),
                ):
                    start = time.thread_time()
                    own = full_text(model, tokenizer, setting)
                    row[f"bits_{said}"] = round(own.bits, 4)
                    row[f"kl_{said}"] = round(divergence(whole.words, own.words), 4)
                    row[f"seconds_{said}"] = round(time.thread_time() - start, 2)
            row["bits_more"] = round(row["bits_some"] - row["bits_one"], 4)
            rows.append(row)
            print(row, flush=True)
    if given.save:
        save(given.save, rows, length=given.length, steps=given.steps, texts=given.texts)


if __name__ == "__main__":
    main()
