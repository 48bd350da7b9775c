"""What the demo model can do, and what its heads are for: writes its card and its numbers.

    python scripts/demo_model/evaluate.py --model out/demo/model --corpus out/demo

Bits per byte on text it never saw; copying; needles by depth and length; and whether the heads
that score as induction and retrieval heads are those that copying and fetching need: taken out,
against as many random heads (`taken_out.py`, which runs alone where there is no corpus).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from passages import Passages
from taken_out import ablations
from tokenizers import Tokenizer

import regard
from regard.models.loading import load

LENGTHS, DEPTHS = (256, 512, 1024, 2048), (0.1, 0.5, 0.9)


def bits_per_byte(model: Any, tokenizer: Tokenizer, tokens: np.ndarray, rows: int = 40) -> float:
    """Bits a byte of held-out text, in windows of 2,048 tokens."""
    nats, size = 0.0, 0
    for row in range(rows):
        part = torch.tensor(tokens[row * 2048 : row * 2048 + 2048].astype(np.int64))[None]
        nats += float(model(input_ids=part, labels=part).loss) * (part.shape[1] - 1)
        size += len(tokenizer.decode(part[0, 1:].tolist()).encode())
    return nats / math.log(2) / size


def copying(model: Any, vocabulary: int, period: int = 128) -> tuple[float, float]:
    """Accuracy and loss on the second showing of random tokens."""
    torch.manual_seed(0)
    stretch = torch.randint(3, vocabulary, (8, period))
    tokens = torch.cat([torch.zeros(8, 1).long(), stretch, stretch], 1)
    logits = model(input_ids=tokens).logits[:, period + 1 : -1]
    wanted = tokens[:, period + 2 :]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    return float((logits.argmax(-1) == wanted).float().mean()), float(loss)


def needles(model: Any, passages: Passages, length: int, depth: float, rows: int = 8) -> float:
    """Share of pass keys said right, all five digits of each."""
    right = 0
    for row in range(rows):
        tokens, answer = needle_row(passages, length, depth, random.Random(f"{length}{depth}{row}"))
        logits = model(input_ids=torch.tensor([tokens])).logits[0]
        guessed = logits[len(tokens) - len(answer) - 1 : -1].argmax(-1).tolist()
        right += guessed == answer
    return right / rows


def needle_row(passages: Passages, length: int, depth: float, rng: random.Random) -> Any:
    """One pass key in held-out text, and the question; the tokens end with the answer."""
    from passages import NAMES, asked, told

    name, key = rng.choice(NAMES), "".join(rng.choices("0123456789", k=5))
    fact, answer = passages.ids(told(name, key)), passages.ids(key)
    question = passages.ids(asked(name) + f"\nThe pass key of {name} is ")
    # The space before the digits belongs to the words, as it does where the fact is told.
    room = length - len(fact) - len(question) - len(answer)
    text = passages.excerpt(room, rng)
    cut = max(1, int(depth * room))
    return text[:cut] + fact + text[cut:] + question + answer, answer


def stability(model: Any, tokenizer: Any, texts: list[str]) -> dict[str, float]:
    """Largest change of each score of a head between kinds of text."""
    looks = [regard.see(model, text, ["roles"], tokenizer=tokenizer, heads=0) for text in texts]
    shared = set.intersection(*(set(look.scores) for look in looks))
    return {
        name: round(
            float(np.nanmax(np.ptp([look.scores[name].array() for look in looks], axis=0))), 3
        )
        for name in sorted(shared)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--corpus", type=Path, default=Path("out/demo"))
    parser.add_argument("--save", type=Path, default=None)
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model)
    model = model.float()
    raw = Tokenizer.from_file(str(arguments.corpus / "tokenizer.json"))
    held_out = np.load(arguments.corpus / "held_out.npy")
    passages = Passages(raw, held_out)
    texts = [raw.decode(held_out[i : i + 1500].tolist()) for i in (20_000, 400_000, 800_000)]
    with torch.no_grad():
        accuracy, loss = copying(model, model.config.vocab_size)
        facts: dict[str, Any] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "bits per byte, held out": round(bits_per_byte(model, raw, held_out), 3),
            "copy accuracy": round(accuracy, 3),
            "loss on repeats": round(loss, 3),
            "needles": {
                str(n): {str(d): needles(model, passages, n, d) for d in DEPTHS} for n in LENGTHS
            },
        }
    seen = regard.see(model, texts[0], tokenizer=tokenizer, heads=0)
    with torch.no_grad():
        facts["ablation"] = ablations(model, tokenizer)
    facts["change of scores between three texts"] = stability(model, tokenizer, texts)
    facts["findings"] = seen.findings()
    facts["machine"] = f"{platform.machine()}, torch {torch.__version__}"
    text = json.dumps(facts, indent=2)
    print(text)
    if arguments.save is not None:
        arguments.save.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
