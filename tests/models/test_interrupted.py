"""Detaching is exact whatever is raised, at any line, in any thread; copies are plain models."""

from __future__ import annotations

import copy
import io
import os
import random
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regard
from regard.models import Edit, Null, Stage, attach, current_forward, removal
from regard.run.counting import COUNT
from tests.models.test_leaks import Made, Written, diffusion, llama, registrations, written

HOME = tuple(str(Path(regard.__file__).parent / room) for room in ("models", "run"))


def own() -> Made:
    torch.manual_seed(0)
    model = regard.model(["gqa", "mha"], dim=16, heads=2, kv_heads=1, vocab=10)
    ids = torch.arange(6)[None]
    return model, lambda: model(ids)


MODELS = [written, llama, diffusion, own]


class Interrupt(BaseException):
    """What no `except Exception` catches, as a KeyboardInterrupt."""


class Interrupting:
    """Raise at the line of `regard.models` or `regard.run` whose turn it is, while entered."""

    def __init__(self, line: int) -> None:
        self.line, self.passed, self.at = line, 0, ""

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        if event == "line":
            self.passed += 1
            if self.passed == self.line:
                self.at = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                sys.settrace(None)
                raise Interrupt
        return self._trace

    def __enter__(self) -> Interrupting:
        self.before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(self.before)


class Seen(Stage):
    """Counts the calls that come, and raises at one of them."""

    def __init__(self, raises_at: int = 0, error: type[BaseException] = Interrupt) -> None:
        super().__init__()
        self.calls, self.raises_at, self.error, self.ended = 0, raises_at, error, 0

    def before(self, call: Any) -> Any:
        self.calls += 1
        if self.calls == self.raises_at:
            raise self.error
        return call

    def end(self) -> None:
        self.ended += 1


def clean() -> bool:
    """Whether this thread is in no forward, no function mode, and a strange model is left alone."""
    x = torch.randn(1, 2, 3, 4)
    strange = F.scaled_dot_product_attention(x, x, x)
    return (
        current_forward() is None
        and torch._C._len_torch_function_stack() == 0
        and COUNT.depth == 0
        and not removal._LOCK._is_owned()
        and strange.shape == x.shape
    )


def session(model: nn.Module, run: Callable[[], Any], stage: Stage, line: int) -> Interrupting:
    """Attach and run, interrupted at a line."""
    tracing = Interrupting(line)
    try:
        with tracing, attach(model, [Null(), stage], check=False):
            run()
    except Interrupt:
        pass
    return tracing


@pytest.mark.filterwarnings("ignore:.*dropped")
@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_an_interruption_at_any_line_leaves_nothing(make: Callable[[], Made], seed: int) -> None:
    """Forty lines of each, drawn anew each run; nightly, all of them (9,494 in all)."""
    model, run = make()
    model.eval()
    with torch.no_grad():
        plain = run()
        session(model, run, Seen(), 0)
        before = registrations(model)
        lines = session(model, run, Seen(), 0).passed
        some = lines if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else min(lines, 40)
        tries = sorted(random.Random(seed).sample(range(1, lines + 1), some))
        for line in tries:
            stage = Seen()
            interrupted = session(model, run, stage, line)
            assert interrupted.at, line
            assert registrations(model) == before, interrupted.at
            assert clean(), interrupted.at
            calls = stage.calls
            assert torch.equal(run(), plain), interrupted.at
            assert stage.calls == calls, interrupted.at


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, KeyError])
@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_what_a_stage_raises_is_gone_within_the_with(
    make: Callable[[], Made], error: type[BaseException]
) -> None:
    """Caught inside of the `with`: another model of the thread is not sent through the stages."""
    model, run = make()
    other, x = nn.Sequential(Written()).eval(), torch.randn(2, 5, 8)
    stage = Seen(2, error)
    with torch.no_grad(), attach(model.eval(), [stage], check=False):
        with pytest.raises(error):
            run()
        assert clean()
        other(x)
        assert stage.calls == 2
        run()
        assert stage.calls > 2
    assert clean()


def test_generate_is_interrupted_sixty_times() -> None:
    pytest.importorskip("transformers")
    model, _ = llama()
    before = registrations(model)
    for at in range(1, 61):
        with (
            pytest.raises(KeyboardInterrupt),
            attach(model, [Seen(at, KeyboardInterrupt)], check=False),
        ):
            model.generate(torch.arange(5, 10)[None], max_new_tokens=32, pad_token_id=0)
        assert registrations(model) == before
        assert clean()


class Waits(Stage):
    """Says that a call has come, and waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.came, self.go = threading.Event(), threading.Event()

    def before(self, call: Any) -> Any:
        self.came.set()
        assert self.go.wait(60)
        return call


@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_detaching_under_another_thread_s_forward(make: Callable[[], Made]) -> None:
    model, run = make()
    model.eval()
    with torch.no_grad():
        plain = run()
    with attach(model, [Null()], check=False):
        pass
    before = registrations(model)
    for _ in range(3):
        stage, found = Waits(), []

        def work(found: list[Any] = found) -> None:
            try:
                with torch.no_grad():
                    found += [run(), clean()]
            except BaseException as e:
                found.append(e)

        attached, thread = attach(model, [stage], check=False), threading.Thread(target=work)
        thread.start()
        assert stage.came.wait(60)
        attached.detach()
        stage.go.set()
        thread.join()
        assert registrations(model) == before
        assert len(found) == 2, found
        torch.testing.assert_close(found[0], plain)
        assert found[1]


@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_attaching_and_detaching_under_forwards_of_other_threads(make: Callable[[], Made]) -> None:
    """Two threads run the model the while: no forward raises or differs, and nothing is left."""
    model, run = make()
    model.eval()
    with torch.no_grad():
        plain = run()
    with attach(model, [Null()], check=False):
        pass
    before, wrong, over = registrations(model), [], threading.Event()

    def work() -> None:
        try:
            while not over.is_set():
                with torch.no_grad():
                    torch.testing.assert_close(run(), plain)
                assert clean()
        except BaseException as e:
            wrong.append(e)

    threads = [threading.Thread(target=work) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for _ in range(60):
            with attach(model, [Null()], check=False), attach(model, [Null()], check=False):
                pass
            assert not wrong, wrong
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert registrations(model) == before
    assert not wrong, wrong


class Slow(Written):
    """Waits between the beginning of its forward and its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.came, self.go = threading.Event(), threading.Event()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.came.set()
        assert self.go.wait(60)
        return super().forward(x)


def test_a_forward_whose_stages_are_taken_before_its_attention_is_sound() -> None:
    model, x, found = nn.Sequential(Slow()).eval(), torch.randn(2, 5, 8), []
    model[0].go.set()
    with torch.no_grad():
        plain = model(x)
    model[0].go.clear()
    model[0].came.clear()

    def work() -> None:
        try:
            with torch.no_grad():
                found.append(model(x))
        except BaseException as e:
            found.append(e)

    attached, thread = attach(model, [Null()], check=False), threading.Thread(target=work)
    thread.start()
    assert model[0].came.wait(60)
    attached.detach()
    model[0].go.set()
    thread.join()
    assert torch.equal(found[0], plain)


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def saved(model: nn.Module) -> nn.Module:
    there = io.BytesIO()
    torch.save(model, there)
    there.seek(0)
    loaded: nn.Module = torch.load(there, weights_only=False)
    return loaded


@pytest.mark.parametrize("way", [copied, saved])
@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_a_copy_of_an_attached_model_is_plain(
    make: Callable[[], Made], way: Callable[[nn.Module], nn.Module]
) -> None:
    model, _ = make()
    model.eval()
    inputs = INPUTS[make]()
    with torch.no_grad():
        plain, stage = inputs(model), Seen()
        with attach(model, [stage], check=False) as attached:
            with pytest.warns(UserWarning, match="the copy has no stages"):
                twin = way(model)
            alone = inputs(twin)
            assert stage.calls == 0
            inputs(model)
            assert stage.calls
        for found in (alone, inputs(twin)):
            assert torch.equal(found, plain)
        stage.calls = 0
        with attach(twin, [stage], check=False):
            inputs(twin)
        assert stage.calls
        assert torch.equal(inputs(twin), plain)
        assert not attached._undo.pending


@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_a_shallow_copy_of_an_attached_model_is_its_own(make: Callable[[], Made]) -> None:
    """Its parts are shared; what it is itself is bound to it, and not to the original."""
    model, _ = make()
    model.eval()
    inputs = INPUTS[make]()
    with torch.no_grad():
        plain = inputs(model)
        with (
            attach(model, [Seen()], check=False),
            pytest.warns(UserWarning, match="the copy has no stages"),
        ):
            twin = copy.copy(model)
        assert "forward" not in vars(twin)
        assert vars(twin).keys() == vars(model).keys()
        assert torch.equal(inputs(twin), plain)
        assert twin.forward.__self__ is twin


def _inputs_of(make: Callable[[], Made]) -> Callable[[], Callable[[Any], torch.Tensor]]:
    def inputs() -> Callable[[Any], torch.Tensor]:
        if make is written:
            x = torch.randn(2, 5, 8)
            return lambda m: m[1](*3 * [m[0](x)])[0]
        if make is llama:
            return lambda m: m(torch.arange(5, 10)[None]).logits
        if make is own:
            return lambda m: m(torch.arange(6)[None])
        from tests.diffusion import build, wan

        given = build(wan)[1]
        return lambda m: m(timestep=torch.tensor([1]), return_dict=False, **given)[0]

    return inputs


INPUTS = {make: _inputs_of(make) for make in MODELS}


class BadEnd(Stage):
    """Raises when it is to let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def end(self) -> None:
        self.asked += 1
        raise KeyError("told to")


def test_a_stage_that_raises_in_end_keeps_none_from_ending() -> None:
    model, run = written()
    before = registrations(model)
    stages = [Seen(), BadEnd(), Seen(), BadEnd()]
    with pytest.raises(KeyError), attach(model, stages, check=False):
        run()
    assert [s.ended for s in stages if isinstance(s, Seen)] == [1, 1]
    assert all(s.asked for s in stages if isinstance(s, BadEnd))
    assert registrations(model) == before


def test_what_is_thrown_away_is_detached_and_said() -> None:
    model, run = written()
    before, stage = registrations(model), Seen()
    with pytest.warns(UserWarning, match="dropped without detach"):
        attach(model, [stage], check=False)
    assert stage.ended == 1
    assert registrations(model) == before
    run()
    assert stage.calls == 0


def test_a_shrink_that_is_thrown_away_is_detached_and_said() -> None:
    pytest.importorskip("transformers")
    model, run = llama()
    plain = run()
    before = registrations(model)
    with pytest.warns(UserWarning, match="dropped without detach"):
        regard.shrink(model, "streaming", keep=4)
    assert registrations(model) == before
    assert torch.equal(run(), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = regard.shrink(model, "streaming", keep=4)
        kept.detach()
        gone = weakref.ref(kept)
        del kept
        assert gone() is None


def test_edits_of_another_thread_are_not_met(seed: int) -> None:
    """Two models in two threads, interrupted at random: neither sees the stages of the other."""
    both = [written() for _ in range(2)]
    plain = [run() for _, run in both]
    wrong: list[Any] = []

    def work(number: int) -> None:
        model, run = both[number]
        rng = random.Random(seed + number)
        for _ in range(30):
            stage = Seen(rng.choice((0, 1, 2)))
            try:
                with attach(model, [stage, Edit("out", lambda o: 2 * o)], check=False):
                    run()
            except Interrupt:
                pass
            if not (clean() and torch.equal(run(), plain[number])):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    with torch.no_grad():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
