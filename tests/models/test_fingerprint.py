"""A model is named by all that it is made of: another number or rope base is another model."""

from typing import Any

import pytest
import torch
from torch import nn

from regard.models.fingerprint import fingerprint


def net(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30, bias=bias), nn.ReLU(), nn.Linear(30, 7))


def change_one_number(model: nn.Module, data: bool = False) -> None:
    """Change a number that a sample of 16 per tensor does not reach."""
    weight = model[0].weight
    (weight.data if data else weight.detach())[17, 11] += 1


CHANGES: dict[str, Any] = {
    "one number": change_one_number,
    "every number, through .data": lambda m: m[2].weight.data.mul_(2),
    "one bit of a buffer": lambda m: m.flag.logical_not_(),
    "another config": lambda m: m.config.update(rope_theta=5e5),
    "another nested config": lambda m: m.config["rope_scaling"].update(factor=4.0),
    "another class": lambda m: m.__setitem__(1, nn.GELU()),
    "a dtype": lambda m: m[2].bfloat16(),
    "another tensor": lambda m: m[0].__setattr__("bias", nn.Parameter(torch.randn(30))),
    "other frequencies": lambda m: m.inv_freq.mul_(0.5),
}


def made() -> nn.Module:
    model = net()
    model.register_buffer("flag", torch.tensor(True))
    model.register_buffer("inv_freq", torch.ones(4), persistent=False)
    model.config = {"rope_theta": 1e4, "rope_scaling": {"factor": 2.0}, "activation": torch.relu}
    return model


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_another_name(change: str) -> None:
    model = made()
    before = fingerprint(model)
    assert fingerprint(model) == before == fingerprint(made())
    with torch.no_grad():
        CHANGES[change](model)
    assert fingerprint(model) != before


def test_how_a_model_is_run_is_no_part_of_its_name() -> None:
    model = made()
    before = fingerprint(model)
    model.config |= {"_attn_implementation": "regard", "use_cache": False, "dtype": "float32"}
    model.eval().requires_grad_(False)
    assert fingerprint(model) == before


def test_a_model_in_half_precision_is_the_same_in_float32() -> None:
    model = net().bfloat16()
    before = fingerprint(model)
    assert fingerprint(model.float()) == before
    assert fingerprint(net()) != before  # its numbers were not rounded


def test_strided_empty_and_inference_weights_have_a_name() -> None:
    model = nn.Linear(3, 3)
    model.weight = nn.Parameter(torch.arange(9.0).view(3, 3).T)
    model.register_buffer("none", torch.empty(0, 3))
    twin = nn.Linear(3, 3)
    twin.weight, twin.bias = nn.Parameter(torch.arange(9.0).view(3, 3).T.contiguous()), model.bias
    twin.register_buffer("none", torch.empty(0, 3))
    assert fingerprint(model) == fingerprint(twin)
    with torch.inference_mode():
        made = net()
        before = fingerprint(made)
        made[0].weight.data[17, 11] += 1
        assert fingerprint(made) != before


def test_it_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    first = fingerprint(model)

    def never(x: Any) -> Any:
        raise AssertionError("hashed again")

    monkeypatch.setattr("regard.models.fingerprint._blocks", never)
    assert fingerprint(model) == first


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(net())
    monkeypatch.setattr("regard.models.fingerprint.BLOCK", 100)
    assert fingerprint(net()) == first


def test_a_model_that_is_not_loaded_is_refused() -> None:
    from regard.core.errors import DeviceError

    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(DeviceError, match="load the model first"):
        fingerprint(model)


def test_models_of_a_hub_keep_their_name_while_they_run() -> None:
    pytest.importorskip("transformers")
    import regard
    from tests.architectures import DECODERS, build

    model = build("llama", DECODERS["llama"], causal=True)
    before = fingerprint(model)
    with regard.attach(model, check=False), torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
        assert fingerprint(model) == before
    assert fingerprint(model) == before
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 77.0}
    assert fingerprint(model) != before
