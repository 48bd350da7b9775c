"""What every control must do: nothing at neutral strength, the same with a cache, and no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard import controls
from regard.controls import Control, Edits, NothingMoved, PerRow, TokenPositions
from regard.controls.base import PHASES
from regard.core.errors import RegardError
from regard.core.value import Value
from regard.models import Null
from regard.models.attach import attach
from regard.models.stage import Stage
from tests.architectures import sharp_llama

IDS = torch.randint(5, 60, (2, 24), generator=torch.Generator().manual_seed(0))
LENGTH = 16
PROMPT = IDS[:, :LENGTH]
WORDS = TokenPositions((3, 4, 9))
# What a control must be told to act on random tokens.
NEEDED: dict[str, dict[str, Any]] = {
    "emphasis": {"which": WORDS},
    "split_softmax": {"which": WORDS},
    "sink_calibration": {"times": 1.5},
    "token_emphasis": {"which": WORDS, "salient": TokenPositions((7,))},
    "context_guided": None,  # acts within generate: test_defining_effects
    "anchored_options": {"options": (TokenPositions((3,)), TokenPositions((9,)))},
    "visual_sinks": None,  # needs images: test_images
    "attention_transition": {"many": 4, "strength": 0.6},
}
# Edits by themselves, each at a strength that does something.
EDITS = {
    "AddBias": controls.AddBias(WORDS, 2.0),
    "AddBias by query": controls.AddBias(WORDS, 2.0, TokenPositions((12, 15))),
    "Forbid": controls.Forbid(WORDS),
    "only_keys": controls.only_keys(WORDS | TokenPositions((0,))),
    "ScaleScores": controls.ScaleScores(0.5),
    "RaiseScores": controls.RaiseScores(WORDS, 0.7),
    "MoveMass": controls.MoveMass(WORDS, TokenPositions((0, 1)), 0.6),
    "MoveMass to all": controls.MoveMass(WORDS, None, 0.6),
    "ShareToPower": controls.ShareToPower(WORDS, 0.5),
    "SetShare": controls.SetShare(WORDS, 0.3),
    "EvenOut": controls.EvenOut((TokenPositions((3,)), TokenPositions((0,)))),
    "ScaleTensor out": controls.ScaleTensor("out", 2.0),
    "ScaleTensor v": controls.ScaleTensor("v", 2.0, WORDS),
    "ScaleTensor q": controls.ScaleTensor("q", 0.5),
    "RemoveDirection": controls.RemoveDirection("out", torch.ones(8)),
    "MixBranch": controls.MixBranch(controls.Forbid(WORDS), -0.5),
    "ExtraKeys": controls.ExtraKeys(
        controls.GivenKeys(torch.zeros(1, 2, 3, 8), torch.ones(1, 2, 3, 8)), 1.0
    ),
    "ReplaceKeys": controls.ReplaceKeys(
        controls.GivenKeys(torch.zeros(1, 2, 3, 8), torch.ones(1, 2, 3, 8))
    ),
}
NAMED = sorted(
    {
        kind.name
        for kind in controls.known().values()
        if kind.__module__.startswith("regard.controls.") and kind.models == "language"
    }
)
CASES = [n for n in NAMED if NEEDED.get(n, {}) is not None] + list(EDITS)
every = pytest.mark.parametrize("name", CASES)
named = pytest.mark.parametrize("name", [n for n in CASES if n not in EDITS])


def made(name: str, **settings: Any) -> Control:
    """The control of a case."""
    if name in EDITS:
        return Edits(EDITS[name], **settings)
    settings = {**NEEDED.get(name, {}), **settings}
    return controls.control(name, **settings)


@pytest.fixture(scope="module")
def model() -> Any:
    return sharp_llama(2)


@pytest.fixture(scope="module")
def plain(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def steered(model: Any, control: Control, **settings: Any) -> Any:
    settings = {"prompt": PROMPT, "check": False, **settings}
    return regard.steer(model, control, **settings)


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS, **given: Any) -> torch.Tensor:
    found: torch.Tensor = model(ids, **given).logits
    return found


class Weights(Stage):
    """Keeps the weights of every call."""

    want = ("weights",)

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, torch.Tensor] = {}

    def see(self, call: Any, result: Any) -> None:
        self.found[call.site.layer] = result.weights


def test_every_control_is_tried() -> None:
    assert set(NEEDED) <= set(controls.known())
    assert set(NAMED) <= set(CASES) | {name for name, x in NEEDED.items() if x is None}


@every
def test_it_does_something_and_says_so(name: str, model: Any, plain: torch.Tensor) -> None:
    with steered(model, made(name), measure="all") as one:
        changed = logits(model)
    assert not torch.equal(changed, plain)
    assert one.receipt.fired > 0
    assert one.receipt.moved > 1e-4
    assert one.receipt.control in str(one.receipt)
    assert "<table" in one.receipt._repr_html_()
    assert one.receipt.as_dict()["fired"] == one.receipt.fired


@every
def test_it_leaves_no_trace(name: str, model: Any, plain: torch.Tensor) -> None:
    with steered(model, made(name)):
        logits(model)
    assert torch.equal(logits(model), plain)


@every
def test_an_exception_restores(name: str, model: Any, plain: torch.Tensor) -> None:
    class Broken(Stage):
        def before(self, call: Any) -> Any:
            if call.site.layer == 1:
                raise KeyboardInterrupt
            return call

    with (
        pytest.raises(KeyboardInterrupt),
        steered(model, made(name)),
        attach(model, Broken(), check=False),
    ):
        logits(model)
    assert torch.equal(logits(model), plain)
    with steered(model, made(name)):  # and nothing is left of the call that was broken off
        assert not torch.equal(logits(model), plain)


@named
def test_neutral_strength_changes_nothing(name: str, model: Any, plain: torch.Tensor) -> None:
    kind = type(made(name))
    if kind.neutral is None:
        pytest.fail(f"{name} has no neutral strength")
    control = made(name, strength=kind.neutral)
    assert control.is_neutral
    with steered(model, control, must_move=False):
        assert torch.equal(logits(model), plain)


@every
def test_zero_effect_raises(name: str, model: Any) -> None:
    """A control where the model never comes: step 99."""
    control = made(name, where={"steps": [99]})
    with pytest.raises(NothingMoved, match="fired 0 times"), steered(model, control):
        logits(model)
    with steered(model, control, must_move=False):
        logits(model)
    with steered(model, control):
        pass  # the model did not run: nothing to complain of


@named
def test_a_neutral_strength_that_was_asked_for_raises_too(name: str, model: Any) -> None:
    control = made(name, strength=type(made(name)).neutral)
    with pytest.raises(NothingMoved), steered(model, control):
        logits(model)


@every
def test_decoded_tokens_alone_are_steered_alike_with_a_cache(name: str, model: Any) -> None:
    """What is found in a prompt is found there, though no token of it is changed."""
    control = made(name, phase="decoded")
    if any(x.for_all_queries for x in control.edits()):
        return
    with steered(model, control, must_move=False), torch.no_grad():
        whole = logits(model)
    with steered(model, control, must_move=False), torch.no_grad():
        cache = model(PROMPT, use_cache=True).past_key_values
        each = [
            model(IDS[:, i : i + 1], past_key_values=cache, use_cache=True).logits
            for i in range(LENGTH, IDS.shape[1])
        ]
    assert torch.allclose(torch.cat(each, 1), whole[:, LENGTH:], atol=2e-4)


@every
@pytest.mark.parametrize("phase", PHASES)
def test_rows_sum_to_one(name: str, phase: str, model: Any) -> None:
    seen = Weights()
    control = made(name, phase=phase)
    if phase != "both" and any(x.for_all_queries for x in control.edits()):
        with pytest.raises(RegardError, match="all queries share them"):
            steered(model, control)
        return
    with steered(model, control, must_move=False), attach(model, seen, check=False):
        logits(model)
    for weights in seen.found.values():
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)


@every
def test_with_a_cache_equals_without(name: str, model: Any) -> None:
    """The prompt at once, then token by token; and all at once."""
    with steered(model, made(name)):
        whole = logits(model)
    with steered(model, made(name)), torch.no_grad():
        got = [(first := model(PROMPT, use_cache=True)).logits]
        cache = first.past_key_values
        for t in range(LENGTH, IDS.shape[1]):
            got.append(model(IDS[:, t : t + 1], past_key_values=cache).logits)
    assert torch.allclose(torch.cat(got, 1), whole, atol=2e-4), (
        (torch.cat(got, 1) - whole).abs().max()
    )


@every
def test_it_generates_alike_with_and_without_a_cache(name: str, model: Any) -> None:
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with regard.steer(model, made(name), check=False) as one:
        cached = model.generate(PROMPT, **settings)
        assert one.receipt.at_steps
        whole = model.generate(PROMPT, use_cache=False, **settings)
        beams = model.generate(PROMPT, num_beams=2, **settings)
    assert torch.equal(cached, whole)
    assert beams.shape == cached.shape


@every
def test_a_row_in_a_batch_equals_the_row_alone(name: str, model: Any) -> None:
    with steered(model, made(name)):
        both = logits(model)
    for row in range(2):
        with steered(model, made(name), prompt=PROMPT[row : row + 1]):
            alone = logits(model, IDS[row : row + 1])
        assert torch.allclose(both[row], alone[0], atol=2e-4)


@every
def test_left_padding_changes_nothing(name: str, model: Any) -> None:
    """Tokens by number are moved with the padding; the rest finds its own way."""
    pad = 5
    ids = torch.cat((torch.zeros(2, pad, dtype=torch.long), IDS), 1)
    mask = torch.ones_like(ids)
    mask[:, :pad] = 0
    with steered(model, made(name, phase="both"), prompt=None):
        # All of it is the prompt here.
        bare = logits(model)
    moved = moved_by(made(name, phase="both"), pad)
    with steered(model, moved, prompt=None):
        padded = logits(model, ids, attention_mask=mask)[:, pad:]
    assert torch.allclose(bare, padded, atol=2e-4), (bare - padded).abs().max()


def moved_by(x: Any, pad: int) -> Any:
    """The same value with every number of a token moved."""
    if isinstance(x, TokenPositions):
        return TokenPositions(tuple(n + pad for n in x.numbers))
    if isinstance(x, tuple):
        return tuple(moved_by(y, pad) for y in x)
    if isinstance(x, Value):
        changed = {n: moved_by(y, pad) for n, y in x.fields() if isinstance(y, Value | tuple)}
        return x.replace(**changed) if changed else x
    return x


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(name: str, dtype: torch.dtype, model: Any) -> None:
    import copy

    control = made(name)
    if name in ("sink_calibration", "attention_transition", "vision_heads"):
        control = made(name, strength=0.1 if name != "vision_heads" else 1.1)
    half = copy.deepcopy(model).to(dtype)
    with steered(model, control):
        exact = logits(model)
    with steered(half, control):
        near = logits(half).float()
    with torch.no_grad():
        usual = (half(IDS).logits.float() - model(IDS).logits).abs().mean()
    assert near.isfinite().all()
    assert (near - exact).abs().mean() < 4 * usual + 1e-3


@every
def test_json_and_python_read_back(name: str) -> None:
    control = made(name, where={"layers": [1], "heads": [0, 1]}, phase="both")
    assert Value.from_json(control.to_json()) == control
    names = {kind.__name__: kind for kind in _values(control)}
    assert eval(repr(control), {"torch": torch, **names}) == control
    for act in control.describe():
        assert act["point"]
        assert act["law"]
        assert act["where"] == {"layers": (1,), "heads": (0, 1)}


def _values(x: Any) -> list[type]:
    if isinstance(x, tuple):
        return [kind for y in x for kind in _values(y)]
    if not isinstance(x, Value):
        return []
    return [type(x), *(kind for _, y in x.fields() for kind in _values(y))]


@every
def test_it_works_beside_a_probe_and_a_policy(name: str, model: Any, plain: torch.Tensor) -> None:
    """A policy that keeps everything changes nothing; one that keeps less is steered as well."""
    with steered(model, made(name)):
        alone = logits(model)
    for first in ("policy", "control"):
        with (
            steered(model, made(name))
            if first == "control"
            else regard.shrink(model, "snapkv", keep=1.0, check=False),
            attach(model, Weights(), check=False),
            regard.shrink(model, "snapkv", keep=1.0, check=False)
            if first == "control"
            else steered(model, made(name)),
        ):
            both = logits(model)
        assert torch.allclose(both, alone, atol=2e-4), first


@every
def test_it_works_on_what_a_policy_keeps(name: str, model: Any) -> None:
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with (
        regard.shrink(model, "streaming", keep=12, check=False),
        steered(model, made(name), prompt=None) as one,
    ):
        model.generate(PROMPT, **settings)
    assert one.receipt.at_steps


@every
def test_only_the_chosen_layers_and_heads_change(name: str, model: Any) -> None:
    """In layer 0 all is as it was, in layer 1 the heads that were not named."""

    class Outs(Stage):
        def __init__(self) -> None:
            super().__init__()
            self.found: dict[int, torch.Tensor] = {}

        def after(self, call: Any, result: Any) -> Any:
            self.found[call.site.layer] = result.out
            return result

    seen, bare = Outs(), Outs()
    with attach(model, bare, check=False):
        logits(model)
    with (
        attach(model, seen, check=False),
        steered(model, made(name, where={"layers": [1], "heads": [0, 1]})) as one,
    ):
        logits(model)
    assert torch.equal(seen.found[0], bare.found[0])
    others = [h for h in range(seen.found[1].shape[1]) if h > 1]
    assert torch.allclose(seen.found[1][:, others], bare.found[1][:, others], atol=1e-5)
    assert not torch.allclose(seen.found[1][:, :2], bare.found[1][:, :2], atol=1e-5)
    assert one.receipt.heads == ((1, 0), (1, 1))


@named
def test_a_strength_for_each_row(name: str, model: Any, plain: torch.Tensor) -> None:
    one = made(name)
    kind = type(one)
    control = made(name, strength=PerRow((kind.neutral, one.strength)))
    with steered(model, one):
        all_rows = logits(model)
    with steered(model, control):
        mixed = logits(model)
    assert torch.allclose(mixed[0], plain[0], atol=1e-4)
    assert torch.allclose(mixed[1], all_rows[1], atol=1e-4)


@every
def test_the_receipt_agrees_with_the_weights(name: str, model: Any) -> None:
    """The mass after, read from the weights of a probe, at the queries that were looked at."""
    seen, bare = Weights(), Weights()
    with attach(model, bare, check=False), attach(model, Null(), check=False):
        logits(model)
    with steered(model, made(name), measure="all") as one, attach(model, seen, check=False):
        logits(model)
    checked = 0
    for fired in one.receipt.calls:
        assert fired.rows is not None
        weights = seen.found[fired.site.layer]
        index = fired.rows[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[3])
        rows = weights.gather(2, index)
        for label, after in fired.after.items():
            if label != str(WORDS):
                continue
            mass = rows[..., list(WORDS.numbers)].sum(-1).mean(2)
            assert torch.allclose(after, mass, atol=1e-5), label
            checked += 1
            if fired.site.layer == 0:
                old = bare.found[0].gather(2, index[..., : bare.found[0].shape[3]])
                mass = old[..., list(WORDS.numbers)].sum(-1).mean(2)
                assert torch.allclose(fired.before[label], mass, atol=1e-5), label
    about_words = any(str(x) == str(WORDS) for e in made(name).edits() for x in e.sets())
    assert bool(checked) == about_words


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(RegardError, match="emphasis"):
        controls.control("emphasise")
