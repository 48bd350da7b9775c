"""The check that is made when attaching: it holds where all is well, and names what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.models import Edit, Null, UnsupportedModelError, attach
from regard.models.checking import HookError
from regard.models.finding import main_input
from regard.models.functional import FunctionalHook


class Written(nn.Module):
    """Attention written by hand."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        k = x if y is None else y
        if self.kind == "by itself":
            return (x @ k.mT).softmax(-1) @ k
        out = F.scaled_dot_product_attention(x, k, k)
        return x if self.kind == "unused" else out


X = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("given", [X, (X,), (X, 2 * X), {"x": X}, {"x": X, "y": X}])
def test_an_input_may_be_given(given: Any) -> None:
    with attach(Written(), [Null()], check=given) as attached:
        assert attached.checked.startswith("1 of 1 sites reached, no-op differs by")


class Two(nn.Module):
    """Two outputs, of which one rests on attention: the second, unless it is to be the first."""

    def __init__(self, second: str = "") -> None:
        super().__init__()
        self.attention = Written()
        self.second = second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.attention(x)
        if self.second == "unused":
            out = x + 1
        return 2 * x, out


def test_an_output_that_rests_on_attention_is_felt_wherever_it_is() -> None:
    """As the decoder of MaskFormer, behind an encoder that no hook reaches."""
    with attach(Two(), [Null()], check=X) as attached:
        assert attached.checked.startswith("1 of 1 sites reached")
    with pytest.raises(HookError, match="all attention set to zero"):
        attach(Two("unused"), [Null()], check=X)


class Untrained(nn.Module):
    """Layers with a bias made of their queries, behind whose attention stands a zero (as Sam's)."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            bias = x @ torch.ones(8, 5)
            x = x + 0 * F.scaled_dot_product_attention(x, x, x, bias)
        return x


def test_a_nan_that_comes_back_as_a_bias_is_felt() -> None:
    """The check's NaN alone shows that attention is read, and a bias of NaN is refused."""
    with attach(Untrained(), [Null()], check=X) as attached:
        assert attached.checked.startswith("1 of 1 sites reached")


class Drifts(Two):
    """The second output is another one at each call."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls = getattr(self, "calls", 0) + 1
        first, second = super().forward(x)
        return first, second + self.calls


def test_every_output_must_stay_as_it_was() -> None:
    with pytest.raises(HookError, match="with a no-op"):
        attach(Drifts(), [Null()], check=X)


class Nowhere(Written):
    """An output without a number in it."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(x, y) * torch.nan


def test_outputs_without_a_number_are_no_proof() -> None:
    with pytest.raises(HookError, match="finite values"):
        attach(Nowhere(), [Null()], check=X)


def test_a_model_may_name_several_inputs() -> None:
    """As OneFormer does."""
    model = Written()
    model.main_input_name = ["pixel_values", "task_inputs"]  # type: ignore[assignment]
    assert main_input(model) == "pixel_values"


def test_without_an_input_it_is_told_that_there_was_no_check() -> None:
    assert attach(Written()).checked.startswith("not made")
    assert attach(Written(), check=False).checked == "left out"


def test_the_mode_and_the_random_state_are_left() -> None:
    model = nn.Sequential(Written(), nn.Dropout(0.5)).train()
    state = torch.get_rng_state()
    attach(model, check=X).detach()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())


def test_an_input_that_the_model_refuses_is_not_hidden() -> None:
    model = Written()
    with pytest.raises(TypeError):
        attach(model, [Null()], check={"nonsense": X})
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_silence_that_is_not_felt_is_an_error() -> None:
    with pytest.raises(HookError, match="set to zero"):
        attach(nn.Sequential(Written("unused")), check=X)


@pytest.mark.filterwarnings("ignore:.*ran without a call")
def test_attention_that_passes_by_is_an_error() -> None:
    model = nn.Sequential(Written())
    model[0].kind = "by itself"
    with pytest.raises(UnsupportedModelError, match="attends in 0"):
        attach(model, check=X)


def test_sites_that_are_not_reached_are_named() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = Written(), Written()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    assert attach(Half(), check=X).checked.endswith("not reached: idle")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, k, v: (q, k, 1.5 * v), "outputs that differ"),
        (lambda q, k, v: (q * 4, k, v), "outputs that differ"),
        (lambda q, k, v: (q, k.flip(2), v), "outputs that differ"),
    ],
)
def test_a_hook_that_changes_the_call_is_found(
    change: Callable[..., Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken reading of the arguments does not pass."""
    from regard.models import functional

    good = functional.call_of
    monkeypatch.setattr(
        functional, "call_of", lambda site, q, k, v, **more: good(site, *change(q, k, v), **more)
    )
    assert isinstance(functional.HOOK, FunctionalHook)
    with pytest.raises(HookError, match=said):
        attach(Written(), check=X)


def test_a_model_that_draws_its_masks_is_sound():
    """As masked autoencoders of images do, in evaluation too."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=4, decoder_hidden_size=32, decoder_num_attention_heads=4,
        decoder_num_hidden_layers=1,
    )  # fmt: skip
    model = transformers.ViTMAEModel(config).eval()
    before = torch.get_rng_state()
    with attach(model, Edit("out", lambda x: x)) as attached:
        assert "2 of 2 sites reached" in attached.checked
    assert torch.equal(torch.get_rng_state(), before)


def test_output_projections_of_zero_are_sound():
    """As layers begin that are added to a trained model: an edit is felt, behind weights of 0."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    with attach(model, Edit("out", lambda x: 2 * x)) as attached:
        assert "2 of 2 sites reached" in attached.checked


def test_the_check_tries_a_padded_row(monkeypatch):
    """What drops the padding of one row, and is right for whole rows, is found."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=64,
    )  # fmt: skip
    model = transformers.BertModel(config)
    with attach(model, Edit("out", lambda x: x)):
        pass
    from regard.models import attention_interface as interface

    plain = interface.rule_of
    monkeypatch.setattr(interface, "rule_of", lambda mask, *more: plain(None, *more))
    with pytest.raises(HookError, match="differ by"):
        attach(model, Edit("out", lambda x: x))
