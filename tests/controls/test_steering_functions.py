"""Words, roles and regions are found; functions of prompts and of decoding keep their laws."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import regard
from regard import controls as c
from regard.controls.deep_thinking import think
from regard.controls.document_ranking import assemble, rerank, sort_documents
from regard.controls.hallucination import decode_truthfully
from regard.controls.prompt import Prompt, read
from regard.controls.read_or_write import simultaneous
from regard.controls.steps_back import decode_with_steps_back
from regard.controls.vision_heads import vision_heads
from regard.models.loading import load
from regard.probes.wordpieces import whole_maps
from tests.architectures import PAIRS, build, sharp_llama

# ---- words ----


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    model, tokenizer = load(None)
    return model.float(), tokenizer


def test_words_are_found_where_they_stand(shipped: Any) -> None:
    _, tokenizer = shipped
    text = "def wrap(text, width):\n    return text\nnaïve = 'text'"
    ids = tokenizer(text, return_tensors="pt").input_ids
    prompt = Prompt(ids, tokenizer)
    found, spans = read(tokenizer, ids[0].tolist())
    assert text in found
    for word in ("text", "width", "naïve"):
        chosen = c.Phrase(word).find(prompt)[0]
        inside = {i for (a, b), own in zip(spans, chosen, strict=True) if own for i in range(a, b)}
        assert word in "".join(found[i] for i in sorted(inside))
    assert int(c.Phrase("text", 1).find(prompt).sum()) < int(c.Phrase("text").find(prompt).sum())


def test_roles_and_documents_are_found(shipped: Any) -> None:
    _, tokenizer = shipped
    text = "Be brief.\nfirst text\nsecond text\nWhat is said?"
    prompt = Prompt(
        tokenizer(text, return_tensors="pt").input_ids, tokenizer,
        messages=[{"role": "system", "content": "Be brief."},
                  {"role": "user", "content": "What is said?"}],
        documents=["first text", "second text"],
    )  # fmt: skip
    for part, words in (
        (c.PromptPart("system"), "Be brief."),
        (c.PromptPart("document", 1), "second text"),
        (c.PromptPart("user"), "What is said?"),
    ):
        chosen = part.find(prompt)[0]
        said, spans = prompt.rows[0]
        inside = [s for s, own in zip(spans, chosen, strict=True) if own]
        assert said[inside[0][0] : inside[-1][1]] == words


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (1, 9), (5, 2)])
def test_regions_lie_on_any_grid(grid: tuple[int, int]) -> None:
    left, right = c.Region(box=(0, 0, 1, 0.5)).on(grid), c.Region(box=(0, 0.5, 1, 1)).on(grid)
    assert bool((left ^ right).all())
    mask = torch.zeros(64, 64)
    mask[:, :32] = 1
    assert torch.equal(c.Region(pixels=mask).on(grid), left)


# ---- functions ----


def test_a_blank_query_scores_every_document_nothing(shipped: Any) -> None:
    model, tokenizer = shipped
    found = rerank(model, "N/A", ["def a(): pass", "x = 3"], tokenizer=tokenizer)
    assert found.scores == (0.0, 0.0)


def test_rows_of_the_query_alone_equal_full_maps(shipped: Any) -> None:
    from regard.controls.attended import attended

    model, tokenizer = shipped
    made = assemble(tokenizer, ["def a(): pass", "x = 3"], "what is x?")
    seen = attended(model, made.inputs, made.question)
    maps = whole_maps(model, **made.inputs)
    assert len(maps) == len(seen.found)
    for own, whole in zip(seen.found.values(), maps.values(), strict=True):
        assert torch.allclose(own, whole[:, :, made.question].mean(2), atol=1e-5)
    assert float(seen.summed().sum()) == pytest.approx(4 * 8, rel=1e-4)


def test_sorting_no_round_leaves_the_order(shipped: Any) -> None:
    model, tokenizer = shipped
    documents = ["def a(): pass", "x = 3", "y = 4"]
    assert sort_documents(model, documents, "x?", tokenizer=tokenizer, rounds=0).order == (0, 1, 2)
    found = sort_documents(model, documents, "x?", tokenizer=tokenizer, rounds=4)
    assert sorted(found.order) == [0, 1, 2]
    assert sum(found.scores) < 1


def test_reading_once_is_the_usual_cache_and_momentum_is_that_of_the_formula() -> None:
    model = sharp_llama(1)
    ids, query = torch.randint(5, 60, (1, 6)), torch.randint(5, 60, (1, 3))
    with torch.no_grad():
        plain = model(query, past_key_values=model(ids, use_cache=True).past_key_values).logits
        for settings in ({"rounds": 1}, {"rounds": 4, "step": 0.0}):
            cache = think(model, ids, **settings)
            assert torch.equal(model(query, past_key_values=cache).logits, plain)
        x = model(ids, use_cache=True).past_key_values.layers[0].keys.clone()
        once = think(model, ids, rounds=2, step=1.0, momentum=0.0).layers[0].keys
        again = model(ids, past_key_values=think(model, ids, rounds=1), use_cache=True)
        new = again.past_key_values.layers[0].keys[:, :, 6:]
        assert torch.allclose(once, new, atol=1e-6)
        step = think(model, ids, rounds=2, step=0.01).layers[0].keys
        assert torch.allclose(step, x + 0.01 * (new - x), atol=1e-6)


def test_steps_back_equal_a_fresh_run_and_never_choose_what_was_banned() -> None:
    model = sharp_llama(2)
    ids = torch.randint(5, 60, (1, 6), generator=torch.Generator().manual_seed(3))
    plain = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    same = decode_with_steps_back(model, ids, tokens=6, go_back=lambda d, p: None)
    assert torch.equal(same.ids, plain)
    bad = int(plain[0, 8])
    found = decode_truthfully(model, ids, lambda d: float(d[-1] == bad), tokens=6, threshold=0.5)
    assert found.back
    with torch.no_grad():
        logits = model(found.ids).logits[0]
    place, token = found.back[-1]
    assert int(found.ids[0, 6 + place]) != token
    for at in range(6, 12):  # each token is the best of a fresh run, but for what was banned
        row = logits[at - 1].clone()
        for where, gone in found.back:
            if where == at - 6:
                row[gone] = -torch.inf
        assert int(row.argmax()) == int(found.ids[0, at])
    calm = decode_truthfully(model, ids, lambda d: 1.0, tokens=6, threshold=1.0)
    assert torch.equal(calm.ids, plain)


def test_simultaneous_writing_has_its_two_limits() -> None:
    name = "bart" if "bart" in PAIRS else next(iter(PAIRS))
    model = build(name, PAIRS[name])
    source = torch.randint(5, 60, (1, 12), generator=torch.Generator().manual_seed(1))
    pieces = list(source.split(3, 1))
    settings = {"start": [2], "end": -1, "tokens": 6, "newest": 2}
    late = simultaneous(model, pieces, threshold=0.0, **settings)
    offline = simultaneous(model, [source], threshold=0.0, **settings)
    early = simultaneous(model, pieces, threshold=1.1, **settings)
    assert late.ids == offline.ids
    assert set(late.known) == {12}
    assert set(early.known) == {3}
    lags = [
        sum(simultaneous(model, pieces, threshold=t, **settings).known)
        for t in (0.0, 0.1, 0.3, 0.6, 1.1)
    ]
    assert lags == sorted(lags, reverse=True)


def test_a_head_that_cannot_see_the_image_is_never_chosen() -> None:
    model = sharp_llama(2)
    g = torch.Generator().manual_seed(0)
    text = torch.randint(5, 60, (1, 8), generator=g)
    image = torch.randint(5, 60, (1, 4), generator=g)
    inputs = {"input_ids": torch.cat((image, text), 1)}
    # The text stands where it stands behind the image, which is hidden from all.
    without = {**inputs, "attention_mask": (torch.arange(12) >= 4).long()[None]}
    with torch.no_grad():
        blind = c.Edits(c.Forbid(c.TokenPositions((0, 1, 2, 3))), where={"heads": [(0, 1)]})
        with regard.steer(model, blind, check=False):
            found = vision_heads(model, inputs, without)
    assert (0, 1) not in found.heads
    assert float(found.divergence[0][1]) < 1e-5
    assert found.heads
    assert found.of_token > 0


def test_scaling_an_output_is_scaling_columns_of_the_projection() -> None:
    model = sharp_llama(2)
    ids = torch.randint(5, 60, (1, 8))
    control = c.Edits(c.ScaleTensor("out", 2.0), where={"heads": [(1, 1)]})
    with torch.no_grad():
        with regard.steer(model, control, check=False):
            steered = model(ids).logits
        weight = model.model.layers[1].self_attn.o_proj.weight
        size = weight.shape[1] // model.config.num_attention_heads
        weight[:, size : 2 * size] *= 2
        assert torch.allclose(steered, model(ids).logits, atol=1e-5)


# ---- images in a prompt, and decoding ----


class _WithImages:
    """A Llama whose id 7 stands for a patch of an image."""

    def __init__(self) -> None:
        self.model = sharp_llama(2)
        self.model.config.image_token_id = 7
        g = torch.Generator().manual_seed(0)
        text = torch.randint(10, 60, (1, 6), generator=g)
        self.ids = torch.cat((text[:, :2], torch.full((1, 9), 7), text[:, 2:]), 1)


def test_image_tokens_and_regions_of_a_prompt_are_found() -> None:
    one = _WithImages()
    sets = c.Edits(c.AddBias(c.ImageTokens() & c.Region(box=(0, 0, 0.34, 1)), 3.0))
    with regard.steer(one.model, sets, check=False, grid=(3, 3), measure="all") as steered:
        one.model(one.ids)
    assert steered.receipt.fired == 2
    chosen = c.TokenPositions((2, 3, 4))
    with regard.steer(one.model, c.AddBias(chosen, 3.0), check=False, measure="all") as other:
        one.model(one.ids)
    masses = [next(iter(x.receipt.calls[0].after.values())) for x in (steered, other)]
    assert torch.allclose(masses[0], masses[1])


def test_visual_sinks_keep_rows_and_ratios_and_leave_heads_that_do_not_look() -> None:
    from regard.controls.visual_sinks import VisualSinks

    one = _WithImages()
    with torch.no_grad():  # a patch with a massive activation in channel 3
        one.model.model.embed_tokens.weight[8] = one.model.model.embed_tokens.weight[7]
        one.model.model.embed_tokens.weight[8, 3] = 100.0
    ids = one.ids.clone()
    ids[0, 5] = 8
    kinds = (one.ids == 7).long()
    plain = one.model(ids, use_cache=False).logits
    maps = whole_maps(one.model, input_ids=ids)

    def steered(**settings: Any) -> tuple[Any, dict[Any, Tensor]]:
        control = VisualSinks((3,), above=5.0, **{"least": 0.05, "most": 1.0, **settings})
        prompt = Prompt(ids, images=kinds.bool())
        with regard.steer(
            one.model, control, check=False, prompt=prompt, measure="all", must_move=False
        ) as found:
            new = whole_maps(one.model, input_ids=ids)
        return found, new

    found, new = steered()
    first = next(iter(maps))
    old, now = maps[first], new[first]
    assert torch.allclose(now.sum(-1), torch.ones(()), atol=1e-5)
    rest = [i for i in range(2, 11) if i != 5]
    looks = (old[..., 2:11].sum(-1) >= 0.05)[:, :, 11:]
    assert bool(looks.any())
    assert torch.allclose(now[:, :, 11:, 5][looks], 0.6 * old[:, :, 11:, 5][looks], atol=1e-5)
    assert torch.equal(now[:, :, :11], old[:, :, :11])
    assert torch.allclose(now[:, :, 11:][~looks], old[:, :, 11:][~looks], atol=1e-6)
    a, b = (x[:, :, 11:][looks][:, rest] for x in (old, now))
    assert torch.allclose(a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True), atol=1e-4)
    assert found.receipt.fired
    _, new = steered(least=1.1)
    assert torch.allclose(new[first], old, atol=1e-6)
    _, new = steered(strength=0.0)
    assert torch.equal(new[first], old)
    assert torch.equal(one.model(ids, use_cache=False).logits, plain)


def test_a_column_that_is_trusted_grows_and_others_fade() -> None:
    from regard.controls.over_trust import decode_without_over_trust, over_trust

    window = torch.zeros(12, 12)
    window[:, 2] = 0.1
    window[torch.arange(12), torch.arange(12)] = 0.001
    scores = [over_trust(window[:n, :n]) for n in range(4, 13)]
    assert {place for _, place in scores} == {2}
    assert all(a < b for (a, _), (b, _) in pairwise(scores))
    assert over_trust(torch.full((9, 9), 0.001).tril())[0] < 1e-8
    model = sharp_llama(2)
    ids = torch.randint(5, 60, (1, 6), generator=torch.Generator().manual_seed(3))
    plain = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    same = decode_without_over_trust(model, ids, tokens=6, strength=0.0, patience=999)
    assert torch.equal(same.ids, plain)
    searched = model.generate(
        ids, max_new_tokens=6, num_beams=3, do_sample=False, eos_token_id=None
    )
    several = decode_without_over_trust(model, ids, tokens=6, beams=3, strength=0.0, patience=999)
    assert torch.equal(several.ids, searched)
    assert several.forwards == 7, "all candidates of all beams are run at once"
    with pytest.raises(regard.RegardError, match="beams"):
        decode_without_over_trust(model, ids, tokens=6, beams=0)
    back = decode_without_over_trust(model, ids, tokens=8, strength=0.0, patience=2, early=2)
    for place, token in back.back:
        assert place >= 0
        assert int(back.ids[0, 6 + place]) != token or len(back.back) > 1


def test_context_tokens_gain_as_much_as_the_model_is_unsure() -> None:
    from regard.controls.context_guided import ContextGuided, guided, train_use_detector

    model = sharp_llama(2)
    ids = torch.randint(5, 60, (1, 10), generator=torch.Generator().manual_seed(3))
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    plain = model.generate(ids, **settings)
    guide = ContextGuided([2, 3, 4], ((0, 1), (1, 2)), (4.0, 2.0), strength=8.0, top=60)
    with regard.steer(model, guide, check=False) as one:
        changed = model.generate(ids, **settings)
    assert not torch.equal(changed, plain)
    assert set(changed[0, 10:].tolist()) <= set(ids[0, 2:5].tolist()) | set(range(60))
    assert one.receipt.fired
    with regard.steer(model, guide.replace(strength=0.0), check=False, must_move=False):
        assert torch.equal(model.generate(ids, **settings), plain)
    sure = torch.tensor([0.0, 1e4, 0.0])
    assert torch.equal(guided(sure, torch.ones(1), torch.tensor([0]), 2.0), sure.softmax(-1))
    g = torch.Generator().manual_seed(0)
    used = torch.rand(400, generator=g) < 0.5
    noise = torch.rand(400, 12, generator=g)
    noise[:, 5] = used.float() * 0.6 + 0.2 * noise[:, 5]
    found = train_use_detector(noise, used, [(0, h) for h in range(12)], many=3)
    assert found.heads[0] == (0, 5)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_words_of_an_encoder_are_keys_of_cross_attention_alone(name: str) -> None:
    model = build(name, PAIRS[name])
    source = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    begin = torch.full((2, 4), 2)
    control = c.AddBias(c.TokenPositions((3, 4)), 3.0)
    with torch.no_grad(), regard.steer(model, control, check=False, measure="all") as one:
        model(input_ids=source, decoder_input_ids=begin)
    moved = {(x.site.kind, "decoder" in x.site.module): 0.0 for x in one.receipt.calls if x.site}
    for x in one.receipt.calls:
        if x.site is not None:
            key = (x.site.kind, "decoder" in x.site.module)
            moved[key] = max(moved[key], x.moved or 0.0)
    assert moved["cross", True] > 0
    assert moved["self", False] > 0
    assert moved["self", True] < 1e-6
    for control, kinds in (("decoded", {True}), ("prompt", {False})):
        edits = c.Edits(c.AddBias(c.TokenPositions((3, 4)), 3.0), phase=control)
        with torch.no_grad(), regard.steer(model, edits, check=False, measure="all") as one:
            model(input_ids=source, decoder_input_ids=begin)
        assert {"decoder" in x.site.module for x in one.receipt.calls if x.site} == kinds
