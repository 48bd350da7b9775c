"""The check made when attaching: every site is reached, a no-op changes nothing, an edit does."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RegardError, ValueRangeError, fail
from regard.core.result import Result
from regard.models.engine import Engine
from regard.models.finding import main_input
from regard.models.hook import Hook
from regard.models.removal import Removal
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.models.weights import closed_weights


class HookError(RegardError):
    """A hook does not work on a model as it should."""


class _Witness(Stage):
    """Record which sites were reached, and whether rows of weights sum to one at each."""

    def __init__(self) -> None:
        super().__init__()
        self.fired: dict[Any, int] = {}
        self.wrong: list[str] = []

    def before(self, call: Call) -> Call:
        self.fired[call.site] = self.fired.get(call.site, 0) + 1
        if call.n * call.m <= 2**16 and not call.rule.weigh.has_sink and not call.rule.weigh.sums:
            sums = closed_weights(call, "check").sum(-1)
            one_or_none = (sums - 1).abs().lt(1e-3) | sums.eq(0)
            if not bool(one_or_none.all()):
                self.wrong.append(call.site.module if isinstance(call.site, Site) else "a site")
        return call


class _Instead(Stage):
    """Replace all outputs by one number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def after(self, call: Call, partial: Result) -> Result:
        return partial._replace(out=torch.full_like(partial.out, self.number))


def check_hook(model: Any, hook: Hook, sites: Sites, given: Any = None) -> str:
    """Run the model three times on a tiny input; raise `HookError`, or return what was checked.

    `given` is the user's input: named arguments, a tuple, or a single one. The random state and the
    mode of the model are restored.
    """
    tried = list(trial_inputs(model)) if given is None else [given]
    if not tried:
        return "not made: no tiny input is known for this model"
    modes = [(m, m.training) for m in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices, key=str)):
            for inputs in tried:
                try:
                    plain = _run(model, inputs)
                    break
                except Exception as trouble:
                    if given is not None:
                        raise
                    refused = type(trouble).__name__
            else:
                return f"not made: the model refused a tiny input ({refused})"
            witness = _Witness()
            with_nothing = _with(model, hook, sites, Engine([witness]), inputs)
            with_silence = _with(model, hook, sites, Engine([_Instead(0.0)]), inputs)
            unfelt = _same(with_silence, with_nothing)
            if unfelt:  # zero output projections, as before training, hide all but a NaN
                unfelt = not _feels_nan(model, hook, sites, inputs, with_nothing)
    finally:
        for module, mode in modes:
            module.training = mode
    missed = [s.module for s in sites if s not in witness.fired]
    if not witness.fired:
        fail(
            HookError,
            "model",
            f"no call at {missed[0]}",
            "every site to be reached",
            "report the architecture; attach(..., check=False) skips the check",
        )
    if witness.wrong:
        fail(
            HookError,
            witness.wrong[0],
            "rows of weights that do not sum to one",
            "sums of one",
            "report the architecture; its masks are not read correctly",
        )
    if len(plain) != len(with_nothing) or not any(bool(x.isfinite().any()) for x in plain):
        fail(
            HookError,
            "model",
            f"{len(with_nothing)} tensors with a no-op, {len(plain)} without, or all NaN",
            "equally many, with finite values",
            "pass an input with finite outputs: check={...}",
        )
    error = 0.0
    for x, y in zip(plain, with_nothing, strict=True):
        if given is None:
            x, y = _at_real_tokens(x, inputs), _at_real_tokens(y, inputs)
        gap, room = _gap(x, y)
        error = max(error, gap)
        if not gap <= room:
            fail(
                HookError,
                "model",
                f"outputs that differ by {gap:.2g} with a no-op",
                f"at most {room:.2g}",
                "report the architecture; its masks are not read correctly",
            )
    if unfelt:
        fail(
            HookError,
            "model",
            "the same output with all attention set to zero",
            "a different output",
            "report the architecture; its calls bypass the hook",
        )
    unreached = f"; not reached: {', '.join(missed)}" if missed else ""
    reached = f"{len(sites) - len(missed)} of {len(sites)} sites reached"
    return f"{reached}, no-op differs by {error:.2g}{unreached}"


def _gap(plain: Tensor, attached: Tensor) -> tuple[float, float]:
    """Return the difference of two outputs, and the tolerance.

    Infinite and NaN values must agree.
    """
    room = 4 * torch.finfo(plain.dtype).eps ** 0.5
    if plain.shape != attached.shape:
        return torch.inf, room
    finite = torch.isfinite(plain)
    if not _equal(plain[~finite], attached[~finite]) or not bool(attached[finite].isfinite().all()):
        return torch.inf, room
    x, y = plain[finite], attached[finite]
    gap, size = (float(z.abs().max()) if z.numel() else 0.0 for z in (x - y, x))
    return gap, room * max(size, 1.0)


def _equal(x: Tensor, y: Tensor) -> bool:
    """Return whether two tensors are equal, NaN included."""
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(_equal, some, others))


def _with(model: Any, hook: Hook, sites: Sites, engine: Engine, inputs: Any) -> list[Tensor]:
    undo = Removal()
    try:
        try:
            hook.install(model, sites, engine, undo)
            return _run(model, inputs)
        finally:
            undo()
    finally:
        undo()


def _feels_nan(model: Any, hook: Hook, sites: Sites, inputs: Any, plain: list[Tensor]) -> bool:
    """Return whether NaN in place of attention reaches the outputs or the bias of a later site.

    A bias computed from the queries (relative positions in Sam) is rejected where it is NaN.
    Nothing was rejected without the NaN, so it got through.
    """
    try:
        marked = _with(model, hook, sites, Engine([_Instead(torch.nan)]), inputs)
    except ValueRangeError:
        return True
    return not _same(marked, plain)


def _at_real_tokens(x: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Drop the outputs at padding, which mean nothing."""
    real = inputs.get("attention_mask")
    return x if real is None or x.shape[:2] != real.shape else x[real.bool()]


def _run(model: Any, inputs: Any) -> list[Tensor]:
    torch.manual_seed(0)  # a model may draw random masks
    if isinstance(inputs, Mapping):
        return list(tensors_of(model(**inputs)))
    return list(tensors_of(model(*inputs) if isinstance(inputs, tuple) else model(inputs)))


def first_tensor(x: Any) -> Tensor | None:
    """Return the first floating tensor in an output."""
    return next(tensors_of(x), None)


def tensors_of(x: Any) -> Iterator[Tensor]:
    """Yield the floating tensors in an output.

    The first may depend on no site: an encoder that no hook reaches, before a decoder.

    >>> [x.shape[0] for x in tensors_of({"a": torch.ones(2), "b": (torch.ones(3), None)})]
    [2, 3]
    """
    if isinstance(x, Tensor):
        if x.is_floating_point():
            yield x
        return
    if isinstance(x, dict):
        x = [x[name] for name in x]
    elif hasattr(x, "sample"):
        x = [x.sample]
    if isinstance(x, list | tuple):
        for part in x:
            yield from tensors_of(part)


def trial_inputs(model: Any) -> Iterator[dict[str, Any]]:
    """Yield tiny inputs for a transformers model, the best first: text with a padded row."""
    made = tiny_inputs(model)
    if made is None:
        return
    ids = made.get("input_ids")
    takes = inspect.signature(type(model).forward).parameters
    if ids is not None and "attention_mask" in takes:
        two = {name: x.expand(2, -1) for name, x in made.items()}
        real = torch.ones(2, ids.shape[1], dtype=torch.long, device=ids.device)
        real[1, -3:] = 0
        yield {**two, "attention_mask": real}
    yield made


def tiny_inputs(model: Any) -> dict[str, Any] | None:
    """Build a tiny input for a transformers model; None where none is known."""
    main, config = main_input(model), getattr(model, "config", None)
    if not main or config is None:
        return None
    parameter = next(iter(model.parameters()), None)
    device = "cpu" if parameter is None else parameter.device
    dtype = torch.float32 if parameter is None else parameter.dtype
    if main == "input_ids":
        words = getattr(config, "vocab_size", None)
        if not isinstance(words, int) or words < 16:
            return None
        ids = torch.arange(5, 13, device=device)[None] % words
        made: dict[str, Any] = {"input_ids": ids}
        if getattr(config, "is_encoder_decoder", False):
            made["decoder_input_ids"] = ids[:, :5]
        return made
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None)
    if main == "pixel_values" and size is not None:
        high, wide = (size, size) if isinstance(size, int) else tuple(size)
        channels = getattr(vision, "num_channels", 3)
        image = torch.linspace(-1, 1, channels * high * wide, device=device, dtype=dtype)
        return {"pixel_values": image.view(1, channels, high, wide)}
    return None
