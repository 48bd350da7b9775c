"""Weights written into prompts, parts repeated, documents cropped."""

import math
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.controls.prompt_edits import crop_documents, parse_weights, repeat_part
from regard.core.errors import RegardError
from regard.models.loading import load


@pytest.mark.parametrize(
    ("written", "text", "pieces"),
    [
        ("plain: text", "plain: text", ()),
        ("(a)", "a", ((0, 1, 1.1),)),
        ("((a)) b", "a b", ((0, 1, 1.21),)),
        ("(a:1.5) [b]", "a b", ((0, 1, 1.5), (2, 3, 0.909))),
        ("(a (b:2) c:0.5)", "a b c", ((0, 2, 0.5), (3, 5, 0.5))),
        (r"\(a\) \[b\]", "(a) [b]", ()),
        ("(time 12:30 pm)", "time 12:30 pm", ((0, 13, 1.1),)),
        ("", "", ()),
    ],
)
def test_what_is_written_is_what_is_read(written: str, text: str, pieces: Any) -> None:
    assert parse_weights(written) == (text, pieces)


@pytest.mark.parametrize("written", ["(a", "a)", "(a]", "[a)", "((a)", "(a:0)", "(a:-1)"])
def test_what_cannot_be_read_is_told(written: str) -> None:
    with pytest.raises(RegardError, match="Fix"):
        parse_weights(written)


def test_a_part_of_a_word_is_told() -> None:
    with pytest.raises(RegardError, match="whole words"):
        parse_weights("(cat:1.2)s").control()
    assert parse_weights("no weights").control() is None


def test_the_place_that_was_weighted_is_the_one_that_gains() -> None:
    model, tokenizer = load()
    asked = parse_weights("price and (price:3.0) and price")
    control = asked.control()
    assert control is not None
    assert [(x.keys.number, x.strength) for x in control.parts] == [(1, math.log(3.0))]
    inputs = tokenizer(asked.text, return_tensors="pt")
    with regard.steer(model, control, tokenizer=tokenizer, check=False) as one, torch.no_grad():
        model(**inputs)
    before, after = one.receipt.mass()
    assert after > before


def test_parts_are_repeated_and_documents_cropped() -> None:
    assert repeat_part("a b", "a", 3, " ") == "a b a a"
    assert repeat_part("a b a", "a") == "a b a"
    with pytest.raises(RegardError, match="part of the prompt"):
        repeat_part("a b", "c")

    def letters(text: str, **settings: Any) -> dict[str, list[str]]:
        return {"input_ids": list(text)}

    assert crop_documents(letters, ["aa", "bbb", "c"], [3.0, 2.0, 1.0], 3) == ("aa", "c")
    with pytest.raises(RegardError, match="at least 3"):
        crop_documents(letters, ["aaa", "b"], [1.0, 0.0], 2)
