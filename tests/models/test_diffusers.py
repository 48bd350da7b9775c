"""A diffusion model with a stage that does nothing is the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")

from regard.models import Edit, Null, Stage, UnsupportedModelError, attach  # noqa: E402
from regard.models.diffusers import timestep  # noqa: E402
from tests.diffusion import MAKERS, Made, build, sd3, unet  # noqa: E402

TIME = torch.tensor([7])


class Witness(Stage):
    """Notes which sites are reached, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[Any] = []
        self.times: list[Any] = []

    def before(self, call: Any) -> Any:
        self.sites.append(call.site)
        self.times.append(timestep())
        return call


def run(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    time = "timesteps" if "HiDream" in type(model).__name__ else "timestep"
    with torch.no_grad():
        found: Tensor = model(**{time: TIME}, return_dict=False, **inputs)[0]
    return found


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_a_diffusion_model_is_itself(make: Callable[..., Made], seed: int) -> None:
    model, inputs = build(make)
    plain = run(model, inputs)
    processors = [getattr(m, "processor", None) for m in model.modules()]
    with attach(model) as attached:
        assert torch.equal(run(model, inputs), plain)
        assert attached.hook == "diffusers"
        assert {s.kind for s in attached.sites} == MAKERS[make]
    size = max(1.0, float(plain.abs().max()))
    with attach(model, [Null()]):
        torch.testing.assert_close(run(model, inputs), plain, atol=1e-5 * size, rtol=1e-5)
    witness = Witness()
    with attach(model, [witness, Edit("out", lambda o: 0 * o)]) as attached:
        assert not torch.allclose(run(model, inputs), plain)
        assert set(witness.sites) == set(attached.sites)
        assert all(t is TIME for t in witness.times)
    with pytest.raises(TypeError), attach(model, [Null()]):
        model(nonsense=1)
    assert torch.equal(run(model, inputs), plain)
    after = [getattr(m, "processor", None) for m in model.modules()]
    assert all(a is b for a, b in zip(processors, after, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "cache_context" not in vars(model)
    assert timestep() is None


def test_a_processor_out_of_reach_is_named() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    model, _ = unet()
    model.set_attn_processor(AttnProcessor())
    with pytest.raises(UnsupportedModelError, match=r"AttnProcessor at .*attn"):
        attach(model)


def test_a_processor_of_ones_own_is_taken_by_what_it_calls() -> None:
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    class CustomAttnProcessor(AttnProcessor2_0):
        pass

    class NamedLikeAGoodOne2_0(AttnProcessor):
        pass

    model, inputs = build(unet)
    model.set_attn_processor(CustomAttnProcessor())
    plain = run(model, inputs)
    with attach(model, [Edit("out", lambda o: 0 * o)]):
        assert not torch.allclose(run(model, inputs), plain)
    model.set_attn_processor(NamedLikeAGoodOne2_0())
    with pytest.raises(UnsupportedModelError, match="NamedLikeAGoodOne2_0 at "):
        attach(model)


def test_sliced_attention_is_named() -> None:
    model, _ = unet()
    model.set_attention_slice(2)
    with pytest.raises(UnsupportedModelError, match="Sliced"):
        attach(model)


def test_a_backend_out_of_reach_is_named() -> None:
    from diffusers.models.attention_dispatch import attention_backend

    model, _ = build(next(m for m in MAKERS if m.__name__ == "flux"))
    with attention_backend("flex"), pytest.raises(UnsupportedModelError, match="flex"):
        attach(model)
    attach(model).detach()


def test_dual_attention_is_not_joint() -> None:
    with attach(sd3()[0]) as attached:
        kinds = {s.module: s.kind for s in attached.sites}
    assert kinds["transformer_blocks.0.attn"] == "joint"
    assert kinds["transformer_blocks.0.attn2"] == "self"
