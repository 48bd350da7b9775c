"""Make a model attend more to one word, and see by how much: text, masses, and a receipt.

Run it: python examples/steer_a_word.py
"""

import regard
from regard.controls.side_by_side import sweep
from regard.models.loading import load

PROMPT = "def total(price, count):\n    return"


def main():
    """Print what the model says at four strengths, and what was moved."""
    model, tokenizer = load()
    model = model.float()
    control = regard.controls.control("emphasis", which="price")
    for one in sweep(model, tokenizer, control, [0, 1, 2, 4], PROMPT, "x = 1\n" * 20, tokens=12):
        strength = "without" if one.strength is None else f"{one.strength:g}"
        print(f"{strength:>8}  KL {one.kl:.4f}  {one.text!r}")
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with regard.steer(model, control, strength=2.0, tokenizer=tokenizer) as steered:
        model(**inputs)
    print(steered.receipt)


if __name__ == "__main__":
    main()
