"""A probe, a policy and a control at once, and attachments within attachments: order is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.core.support import Sinks, Support, Window
from regard.models import Edit, Null, Stage, attach

NEW = 6


class Probe(Stage):
    """Looks: at the entropy of what is run, the support it is handed, and the output it gets."""

    want = ("entropy",)

    def __init__(self, where: Any = None) -> None:
        super().__init__(where)
        self.entropies: list[Tensor] = []
        self.supports: list[Support] = []
        self.outputs: list[Tensor] = []
        self.steps: list[int] = []

    def before(self, call: Any) -> Any:
        self.supports.append(call.rule.support)
        self.steps.append(call.forward.step)
        return call

    def see(self, call: Any, result: Any) -> None:
        self.entropies.append(result.survey.entropy)

    def after(self, call: Any, partial: Any) -> Any:
        self.outputs.append(partial.out)
        return partial


class Policy(Stage):
    """Lets queries see the last tokens and the first one."""

    kept = Window(3) | Sinks(1)

    def before(self, call: Any) -> Any:
        return call.replace(rule=call.rule.replace(support=call.rule.support & self.kept))


class Control(Stage):
    """Turns some heads up."""

    def after(self, call: Any, partial: Any) -> Any:
        return partial._replace(out=partial.out * torch.tensor([1.0, 3.0, 1.0, 0.0])[:, None, None])


class Both(Stage):
    """What policy and control do, in one stage."""

    before, after = Policy.before, Control.after
    kept = Policy.kept


def llama() -> Any:
    pytest.importorskip("transformers")
    from tests.architectures import DECODERS, build

    return build("llama", DECODERS["llama"], causal=True)


def decode(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    said = model.generate(
        ids,
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return said.sequences, torch.stack(said.logits)


@pytest.mark.parametrize("order", ["probe policy control", "policy control probe"])
def test_three_at_once_under_generate(order: str, seed: int) -> None:
    model, ids, probe = llama(), torch.randint(5, 60, (2, 9)), Probe()
    stages = {"probe": probe, "policy": Policy(), "control": Control()}
    layers = model.config.num_hidden_layers
    plain, plain_logits = decode(model, ids)
    with attach(model, [Both()], check=False):
        expected, expected_logits = decode(model, ids)
    with attach(model, [stages[x] for x in order.split()], check=False):
        found, logits = decode(model, ids)
    assert torch.equal(found, expected)
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits, plain_logits, atol=1e-3)
    # One survey for each layer and forward, of what was run: at most 3 + 1 keys.
    assert len(probe.entropies) == layers * NEW
    assert probe.steps == [s for s in range(NEW) for _ in range(layers)]
    assert all(float(e.max()) <= torch.tensor(4.0).log() + 1e-5 for e in probe.entropies)
    # First in line, it is handed the call of the model; last, the narrowed one.
    narrowed = [Policy.kept in getattr(s, "parts", ()) for s in probe.supports[:layers]]
    assert all(narrowed) if order.startswith("policy") else not any(narrowed)
    # First in line, it gets the output last, with the last head silent.
    silent = [bool((out[:, 3] == 0).all()) for out in probe.outputs]
    assert not any(silent) if order.endswith("probe") else all(silent)
    again, again_logits = decode(model, ids)
    assert torch.equal(again, plain)
    assert torch.equal(again_logits, plain_logits)


def test_a_step_of_generate_is_chosen(seed: int) -> None:
    model, ids = llama(), torch.randint(5, 60, (1, 9))
    _, plain = decode(model, ids)
    for steps in ([0], [2, 3], range(NEW)):
        first = min(steps)
        with attach(model, [Edit("out", lambda o: -o, where={"steps": steps})], check=False):
            _, found = decode(model, ids)
            assert torch.equal(decode(model, ids)[1], found)  # a second run counts from 0 again
        close = [torch.allclose(a, b, atol=1e-5) for a, b in zip(found, plain, strict=True)]
        assert all(close[:first])
        assert not close[first]


def test_a_static_cache_counts_from_its_prompt(seed: int) -> None:
    model, ids, probe = llama(), torch.randint(5, 60, (1, 9)), Probe({"layers": 0})
    with attach(model, [probe], check=False):
        for _ in range(2):
            model.generate(
                ids,
                max_new_tokens=3,
                do_sample=False,
                cache_implementation="static",
                pad_token_id=0,
                eos_token_id=None,
            )
    assert probe.steps == [0, 1, 2, 0, 1, 2]


class Written(nn.Module):
    """Attention written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)


Made = tuple[nn.Module, Callable[[], Tensor]]


def with_llama() -> Made:
    model, ids = llama(), torch.arange(5, 12)[None]
    return model, lambda: model(ids).logits


def with_written() -> Made:
    x = torch.randn(1, 4, 7, 8)
    model = nn.Sequential(Written(), Written())
    return model, lambda: model(x)


def with_diffusion() -> Made:
    pytest.importorskip("diffusers")
    from tests.diffusion import build, flux

    model, inputs = build(flux)
    return model, lambda: model(timestep=torch.tensor([1]), return_dict=False, **inputs)[0]


MAKERS = [with_llama, with_written, with_diffusion]


class Twice(Stage):
    """Doubles the output."""

    def after(self, call: Any, partial: Any) -> Any:
        return partial._replace(out=partial.out * 2)


class More(Stage):
    """Adds one to the output."""

    def after(self, call: Any, partial: Any) -> Any:
        return partial._replace(out=partial.out + 1)


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_attachments_within_attachments_are_one_list(make: Callable[[], Made], seed: int) -> None:
    model, run = make()
    with torch.no_grad():
        plain = run()
        found = {}
        for names, stages in (("more twice", [More(), Twice()]), ("twice more", [Twice(), More()])):
            with attach(model, stages):
                found[names] = run()
            with attach(model, stages[:1]), attach(model, stages[1:]):
                torch.testing.assert_close(run(), found[names], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found["more twice"], found["twice more"])
        assert torch.equal(run(), plain)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_attachments_end_in_any_order(make: Callable[[], Made], first: int, seed: int) -> None:
    model, run = make()
    stages = [More(), Twice()]
    with torch.no_grad():
        plain = run()
        with attach(model, [stages[1 - first]]):
            expected = run()
        attached = [attach(model, [s]) for s in stages]
        attached[first].detach()
        assert torch.equal(run(), expected)
        attached[first].detach()  # again: no harm
        assert torch.equal(run(), expected)
        attached[1 - first].detach()
        assert torch.equal(run(), plain)


def test_a_stage_may_stand_twice_and_in_two_models(seed: int) -> None:
    model, run = with_written()
    other, run_other = with_written()
    twice = Twice()
    with attach(model, [twice, twice]), attach(other, [twice]), torch.no_grad():
        once, doubled = run_other(), run()
    with torch.no_grad(), attach(model, [Edit("out", lambda o: 4 * o)]):
        torch.testing.assert_close(doubled, run())
    assert not torch.allclose(once, run_other())


def test_begin_and_end_go_in_pairs(seed: int) -> None:
    """Stages begin in order and end in reverse, by an exception too."""
    book: list[str] = []

    class Diary(Null):
        def __init__(self, label: str) -> None:
            super().__init__()
            self.label = label

        def begin(self, model: Any, sites: Any) -> None:
            book.append(f"+{self.label}")

        def end(self) -> None:
            book.append(f"-{self.label}")

    def fails() -> None:
        model, _ = with_written()
        with attach(model, [Diary("a"), Diary("b")]), attach(model, [Diary("c")]):
            raise KeyError("told to")

    with pytest.raises(KeyError):
        fails()
    assert book == ["+a", "+b", "+c", "-c", "-b", "-a"]


def test_whoever_looks_at_results_is_shown_them(seed: int) -> None:
    """By a method of its class, one that it inherits, or one of the instance alone."""
    seen: list[str] = []

    class Looks(Null):
        def see(self, call: Any, result: Any) -> None:
            seen.append("class")

    class Inherits(Looks):
        pass

    own = Null()
    own.see = lambda call, result: seen.append("instance")  # type: ignore[method-assign]
    model, run = with_written()
    with attach(model, [Looks(), own, Null(), Inherits()]), torch.no_grad():
        seen.clear()
        run()
    assert seen
    assert seen == ["class", "instance", "class"] * (len(seen) // 3)
