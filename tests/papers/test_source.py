"""A hash changes with what code says, and with nothing else."""

import pytest

from regard.papers.source import hash_of_text

PLAIN = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    "same",
    [
        "def f(x): return x + 1",
        '"""Module."""\ndef f(x):\n    """Say."""\n    return x + 1  # why\n',
        "def f(\n    x,\n):\n    return (x + 1)\n",
    ],
)
def test_comments_docstrings_and_layout_do_not_count(same):
    assert hash_of_text(same) == hash_of_text(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n    return x + 2\n",
        "def f(x):\n    return x - 1\n",
        "def f(x=None):\n    return x + 1\n",
        "def g(x):\n    return x + 1\n",
        "@wrap\ndef f(x):\n    return x + 1\n",
        "async def f(x):\n    return x + 1\n",
        "def f(x):\n    'not a docstring' + x\n    return x + 1\n",
    ],
)
def test_what_code_says_counts(other):
    assert hash_of_text(other) != hash_of_text(PLAIN)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("raise ValueError('no')", "raise ValueError('not that')"),
        ("raise ValueError(f'{x} is bad')", "raise ValueError(f'give {y}, not {x}')"),
        ("raise ValueError('a' + 'b') from e", "raise ValueError('a' + 'c') from e"),
    ],
)
def test_words_of_errors_do_not_count(was, now):
    assert hash_of_text(was) == hash_of_text(now)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("raise ValueError('no')", "raise TypeError('no')"),
        ("raise ValueError('no', 1)", "raise ValueError('no', 2)"),
        ("raise ValueError('no', x)", "raise ValueError('no', y)"),
        ("raise ValueError('no') from e", "raise ValueError('no') from None"),
        ("raise ValueError('no')", "print('no')"),
        ("print('no')", "print('not that')"),
    ],
)
def test_what_an_error_is_counts(was, now):
    assert hash_of_text(was) != hash_of_text(now)
