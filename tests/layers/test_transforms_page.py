"""The table of transforms is of every layer, and says what layers declare."""

import pytest

from regard.layers import registry
from tests.scripts import script


@pytest.fixture(scope="module")
def page():
    return script("scripts/transforms_page.py")


def own():
    """Layers of the package; other tests may have registered theirs."""
    return [n for n in registry.names() if registry.get(n).__module__.startswith("regard.layers.")]


def test_every_layer_has_its_row(page):
    assert list(page.written()) == sorted(own())
    assert all(word != "wrong" for words in page.written().values() for word in words)


@pytest.mark.parametrize("name", own())
def test_a_row_is_what_the_layer_does(page, name):
    assert page.written()[name][:4] == page.quick(name)


def test_a_compiled_row_is_what_the_layer_does(page):
    name, tried = next((n, w) for n, w in page.written().items() if page.UNTRIED not in w)
    assert tried[4:] == page.slow(name)
