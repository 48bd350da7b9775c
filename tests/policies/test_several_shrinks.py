"""Two shrinks of one model: what is refused says which one stands in the way, and since when."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

import regard  # noqa: E402
from regard.core.errors import CapabilityError  # noqa: E402
from tests.architectures import DECODERS, build  # noqa: E402

IDS = torch.arange(3, 15)[None]


@pytest.fixture
def model():
    return build("llama", DECODERS["llama"], causal=True)


def test_a_nested_shrink_names_the_one_that_is_attached(model):
    said = pytest.raises(CapabilityError, match=r"shrink\(snapkv\) still attached")
    with regard.shrink(model, "snapkv"), regard.shrink(model, "streaming"), said:
        model(IDS)


def test_a_left_over_shrink_is_named_and_can_be_ended(model):
    first = regard.shrink(model, "snapkv")
    said = pytest.raises(CapabilityError, match=r"end that one first \(its `with`, or detach")
    with regard.shrink(model, "streaming"), said:
        model(IDS)
    first.detach()
    with regard.shrink(model, "streaming"):
        assert model(IDS).logits.isfinite().all()


def test_a_cache_of_a_shrink_that_ended_is_no_nested_shrink(model):
    with regard.shrink(model, "snapkv"):
        cache = model(IDS).past_key_values
    said = pytest.raises(CapabilityError, match=r"shrink\(snapkv\), which has been detached")
    with regard.shrink(model, "streaming"), said:
        model(IDS, past_key_values=cache)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("5GB", 5 * 10**9), ("5GiB", 5 * 2**30), ("5 gb", 5 * 10**9), ("5gib", 5 * 2**30),
        ("1.5MB", 1_500_000), ("2MiB", 2**21), ("3kB", 3000), ("3KiB", 3072), ("700B", 700),
        ("2TB", 2 * 10**12), ("4 MBytes", 4_000_000), ("0.3kB", 300),
    ],
)  # fmt: skip
def test_units_mean_what_they_say(said, size):
    """GB is 10^9 bytes and GiB 2^30, and a label reads back as the same size."""
    from regard.policies.budget import Budget

    budget = Budget.of(said)
    assert budget.bytes == size
    assert Budget.of(budget.label) == budget
