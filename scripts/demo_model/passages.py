"""Passages beside the text: what makes heads that copy, look up and fetch worth having.

Each function returns one row of exactly `length` token ids. The random generator is passed in, so
a row is a function of its seed.
"""

import random

import numpy as np
from tokenizers import Tokenizer

WORDS = """
apple bridge castle desert engine forest garden harbor island jungle kettle ladder marble
needle orange planet quartz ribbon silver temple valley window yellow zipper anchor basket
candle dragon falcon guitar hammer insect jacket lemon mirror napkin oyster pencil rocket
"""
NAMES = WORDS.split()


class Passages:
    """Makers of rows over one tokenizer and one body of text.

    Parameters
    ----------
    tokenizer:
        The tokenizer of the text.
    text:
        Token ids `[n]`, each document from its start token to its end token.

    """

    def __init__(self, tokenizer: Tokenizer, text: np.ndarray):
        self.tokenizer, self.text = tokenizer, text
        self.start = tokenizer.token_to_id("<s>")
        self.first = len([s for s in ("<s>", "</s>", "<pad>") if tokenizer.token_to_id(s) < 3])
        self.vocabulary = tokenizer.get_vocab_size()

    def ids(self, words: str) -> list[int]:
        """The tokens of some words."""
        return self.tokenizer.encode(words).ids

    def excerpt(self, length: int, rng: random.Random) -> list[int]:
        """A start token, then text from a random place."""
        place = rng.randrange(len(self.text) - length)
        return [self.start, *self.text[place : place + length - 1].tolist()]

    def repeated(self, length: int, rng: random.Random) -> list[int]:
        """A stretch of random tokens, or of text, again and again."""
        period = rng.randint(8, length // 2)
        if rng.random() < 0.6:
            stretch = [rng.randrange(self.first, self.vocabulary) for _ in range(period)]
        else:
            stretch = self.excerpt(period + 1, rng)[1:]
        return [self.start, *(stretch * (length // period + 1))][:length]

    def pass_keys(self, length: int, rng: random.Random, keys: int | None = None) -> list[int]:
        """Pass keys hidden in text, and asked for at the end until the row is full."""
        names = rng.sample(NAMES, keys or rng.choice((1, 1, 2, 4, 6)))
        facts = {name: "".join(rng.choices("0123456789", k=5)) for name in names}
        order = rng.sample(names, min(len(names), 4))
        tail = [t for name in order for t in self.ids(asked(name) + told(name, facts[name]))]
        hidden = [self.ids(told(name, key)) for name, key in facts.items()]
        room = length - len(tail) - sum(map(len, hidden))
        filler = self.excerpt(room, rng)
        for place, fact in zip(
            sorted((rng.randrange(1, room) for _ in hidden), reverse=True), hidden, strict=True
        ):
            filler[place:place] = fact
        return filler + tail

    def pairs(self, length: int, rng: random.Random) -> list[int]:
        """Pairs of a key and its value, then the keys again in another order."""
        count = min(rng.randint(4, 64), (length - 1) // 4)
        keys = rng.sample(range(self.first, self.vocabulary), count)
        values = [rng.randrange(self.first, self.vocabulary) for _ in keys]
        table = list(zip(keys, values, strict=True))
        row = [self.start]
        while len(row) < length:
            row += [token for pair in table for token in pair]
            table = rng.sample(table, count)
        return row[:length]

    def row(self, length: int, rng: random.Random) -> list[int]:
        """One row of the mixture the model is trained on."""
        draw = rng.random()
        if draw < 0.10:
            return self.repeated(length, rng)
        if draw < 0.20:
            return self.pass_keys(length, rng)
        if draw < 0.25:
            return self.pairs(length, rng)
        return self.excerpt(length, rng)


def told(name: str, key: str) -> str:
    """The sentence that hides a key."""
    return f"\nThe pass key of {name} is {key}.\n"


def asked(name: str) -> str:
    """The question that asks for it."""
    return f"\nWhat is the pass key of {name}?"
