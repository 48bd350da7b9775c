"""A model with a stage that does nothing is the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")


from regard.models import Edit, Null, attach  # noqa: E402
from regard.models.checking import first_tensor  # noqa: E402
from tests.architectures import (  # noqa: E402
    DECODERS,
    ENCODERS,
    IMAGE_TOKENS,
    IMAGES,
    OTHERS,
    PAIRS,
    REFUSED,
    build,
    other,
)

ROOM = 2e-5


def words(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [2, 9] of which the first row begins with three of padding."""
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return ids, mask


def run(model: Any, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        found = first_tensor(model(**inputs))
    assert found is not None
    return found


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=ROOM, rtol=ROOM)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_is_itself(name: str) -> None:
    model = build(name, DECODERS[name], causal=True)
    ids, mask = words()
    more = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False, "pad_token_id": 0}
    plain, padded = run(model, input_ids=ids), run(model, input_ids=ids, attention_mask=mask)
    right = run(model, input_ids=ids, attention_mask=mask.flip(1))
    said = model.generate(ids, attention_mask=mask, **more)
    with attach(model, [Null()]) as attached:
        assert "sites reached" in attached.checked
        assert "not reached" not in attached.checked
        same(run(model, input_ids=ids), plain)
        same(run(model, input_ids=ids, attention_mask=mask)[mask.bool()], padded[mask.bool()])
        real = mask.flip(1).bool()
        same(run(model, input_ids=ids, attention_mask=mask.flip(1))[real], right[real])
        assert torch.equal(model.generate(ids, attention_mask=mask, **more), said)
    assert torch.equal(run(model, input_ids=ids), plain)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_itself(name: str) -> None:
    model = build(name, ENCODERS[name])
    ids, mask = words()
    real = mask.flip(1)
    plain, padded = run(model, input_ids=ids), run(model, input_ids=ids, attention_mask=real)
    with attach(model, [Null()]) as attached:
        assert "sites reached" in attached.checked
        same(run(model, input_ids=ids), plain)
        same(run(model, input_ids=ids, attention_mask=real)[real.bool()], padded[real.bool()])


@pytest.mark.parametrize("name", IMAGES)
def test_a_vision_model_is_itself(name: str) -> None:
    model = build(name, IMAGES[name])
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    plain = run(model, pixel_values=image)
    with attach(model, [Null()]) as attached:
        assert "sites reached" in attached.checked
        torch.manual_seed(0)
        same(run(model, pixel_values=image), plain)


@pytest.mark.parametrize("name", PAIRS)
def test_an_encoder_and_decoder_are_themselves(name: str) -> None:
    model = build(name, PAIRS[name])
    ids, mask = words()
    real = mask.flip(1)
    inputs = {"input_ids": ids, "attention_mask": real, "decoder_input_ids": ids[:, :5]}
    plain = run(model, **inputs)
    more = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    said = model.generate(ids, attention_mask=real, **more)
    with attach(model, [Null()]) as attached:
        assert {s.kind for s in attached.sites} == {"self", "cross"}
        same(run(model, **inputs), plain)
        assert torch.equal(model.generate(ids, attention_mask=real, **more), said)


def test_cycles_leave_nothing_behind() -> None:
    model = build("llama", DECODERS["llama"], causal=True)
    ids, _ = words()
    before = run(model, input_ids=ids)
    names = set(transformers.AttentionInterface._global_mapping)
    asked = model.config._attn_implementation
    for i in range(1000):
        try:
            with attach(model, [Null()], check=False):
                if i % 5 == 0:
                    raise KeyError(i)
        except KeyError:
            pass
    assert set(transformers.AttentionInterface._global_mapping) == names
    assert model.config._attn_implementation == asked
    assert torch.equal(run(model, input_ids=ids), before)


def test_attachments_stack_and_leave_in_any_order() -> None:
    model = build("llama", DECODERS["llama"], causal=True)
    ids, _ = words()
    plain = run(model, input_ids=ids)
    first = attach(model, [Edit("out", lambda x: 2 * x)])
    doubled = run(model, input_ids=ids)
    second = attach(model, [Edit("out", lambda x: x / 2)])
    same(run(model, input_ids=ids), plain)
    first.detach()
    assert not torch.allclose(run(model, input_ids=ids), plain)
    second.detach()
    assert torch.equal(run(model, input_ids=ids), plain)
    assert not torch.allclose(doubled, plain)


@pytest.mark.parametrize("part", ["q", "k", "v", "bias", "prob", "out"])
def test_an_edit_is_felt_at_its_heads_alone(part: str) -> None:
    model = build("llama", DECODERS["llama"], causal=True)
    ids, _ = words()
    plain = run(model, input_ids=ids)
    with attach(model, [Edit(part, lambda x: x.clone(), where={"heads": [0]})], check=False):
        same(run(model, input_ids=ids), plain)
    with attach(model, [Edit(part, lambda x: x * 0.25, where={"heads": [0]})], check=False):
        assert not torch.allclose(run(model, input_ids=ids), plain)
    # One layer deep, so that what a head says is read before any other head hears of it.
    out: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hold(x: torch.Tensor) -> torch.Tensor:
            out[name] = x.detach().clone()
            return x

        return hold

    first = {"layers": 0}
    with attach(model, [Edit("out", keep("plain"), where=first)], check=False):
        run(model, input_ids=ids)
    edits = [
        Edit("out", keep("edited"), where=first),
        Edit(part, lambda x: x * 0.25, where={"heads": [0], **first}),
    ]
    with attach(model, edits, check=False):
        run(model, input_ids=ids)
    assert not torch.allclose(out["edited"][:, 0], out["plain"][:, 0])
    # A key head serves its whole group of query heads; all else is one head's own.
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    alone = group if part in ("k", "v") else 1
    assert torch.allclose(out["edited"][:, alone:], out["plain"][:, alone:], atol=1e-6)


def test_weights_are_shown_as_the_stages_made_them() -> None:
    model = build("llama", DECODERS["llama"], causal=True)
    ids, _ = words()
    with attach(model, [Edit("q", lambda x: 0 * x)], check=False):
        weights = model(input_ids=ids, output_attentions=True).attentions[0]
    n = ids.shape[1]
    uniform = torch.tril(torch.ones(n, n)) / torch.arange(1, n + 1)[:, None]
    assert torch.allclose(weights, uniform.expand_as(weights), atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_sound_and_of_images_are_themselves(name: str) -> None:
    model, inputs = other(name)
    plain = run(model, **inputs)
    with attach(model, [Null()], check=inputs) as attached:
        assert "sites reached" in attached.checked
        assert "not reached" not in attached.checked
        same(run(model, **inputs), plain)
    with attach(model, [Edit("out", lambda x: 0 * x)], check=False):
        assert not torch.allclose(run(model, **inputs), plain, atol=1e-3)
    assert torch.equal(run(model, **inputs), plain)


@pytest.mark.parametrize("name", ["llava", "paligemma", "qwen2_vl", "whisper"])
def test_generation_with_sound_or_images_goes_on(name: str) -> None:
    model, inputs = other(name)
    inputs.pop("decoder_input_ids", None)
    more = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    said = model.generate(**inputs, **more)
    with attach(model, [Null()], check=False):
        assert torch.equal(model.generate(**inputs, **more), said)


@pytest.mark.parametrize("name", REFUSED)
def test_attention_that_no_hook_reaches_is_named(name: str) -> None:
    from regard.models.hook import UnsupportedModelError

    with pytest.raises(UnsupportedModelError, match="Attention"):
        attach(build(name, REFUSED[name]))


def modalities(model: Any) -> dict[str, Any]:
    with attach(model, check=False) as attached:
        return {site.module: (site.modality, site.grid) for site in attached.sites}


def test_sites_say_what_they_look_at() -> None:
    found = modalities(other("llava")[0])
    assert {x for name, x in found.items() if "vision" in name} == {("image", (4, 4))}
    assert {x for name, x in found.items() if "language" in name} == {("text", None)}
    found = modalities(other("whisper")[0])
    assert {x for name, x in found.items() if ".encoder." in name} == {("audio", None)}
    assert {x for name, x in found.items() if ".decoder." in name} == {("text", None)}
    assert set(modalities(build("vit", IMAGES["vit"])).values()) == {("image", (4, 4))}
    assert set(modalities(build("bert", ENCODERS["bert"])).values()) == {("text", None)}


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_image_tokens_of_a_prompt_are_marked(name: str) -> None:
    class Watch(Null):
        def before(self, call: Any) -> Any:
            if call.site.modality == "text":
                seen.append(call.forward.image_tokens)
            return call

    model, inputs = other(name)
    seen: list[Any] = []
    with attach(model, [Watch()], check=False):
        run(model, **inputs)
    assert seen
    assert all(torch.equal(x, inputs["input_ids"] == 63) for x in seen)
    assert int(seen[0].sum()) == 2 * IMAGE_TOKENS[name]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_half_precision_stays_within_its_own_error(name: str) -> None:
    """No further from float32 than the model's own bfloat16 is, give or take a half."""
    model = build(name, DECODERS[name], causal=True)
    ids, _ = words()
    exact = run(model, input_ids=ids)
    model = model.bfloat16()
    own = (run(model, input_ids=ids).float() - exact).abs().max()
    with attach(model, [Null()]):
        ours = (run(model, input_ids=ids).float() - exact).abs().max()
    assert ours <= 1.5 * own
