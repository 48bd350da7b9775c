"""Run a model on the inputs that its probes need, one pass for each kind of input."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, fail, shape_of
from regard.core.result import Result
from regard.models.attach import attach, hook_of
from regard.models.finding import main_input
from regard.models.longest_text import longest, positions_of
from regard.models.site import Site
from regard.models.stage import Stage
from regard.probes.base import Probe
from regard.probes.chance import Baselines
from regard.probes.importance import Importance
from regard.probes.maps import DeepHeads, Maps
from regard.probes.reading import Reading
from regard.probes.stimuli import needle, repeated

# Called with the title of a pass, and the sites done and in total.
Progress = Callable[[str, int, int], None]
LOSS_TOKENS = 512
DEPTHS = (0.1, 0.35, 0.6, 0.85)


@dataclass
class Look:
    """A model, its inputs, and a callback for progress."""

    model: Any
    readings: Sequence[Reading]
    tokenizer: Any = None
    where: Any = None
    seed: int = 0
    progress: Progress | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    # Called with the inputs in place of the model: a pipeline around it.
    runs: Callable[[Mapping[str, Any]], Any] | None = None

    def run(self, probes: Sequence[Probe], maps: Maps | None) -> None:
        """Run every pass; Ctrl-C keeps the results so far."""
        by_stimulus: dict[str, list[Probe]] = {}
        kinds = {site.kind for site in hook_of(self.model)[1]}
        for probe in probes:
            if not probe.named and not kinds & set(probe.kinds):
                self._skip([probe], f"the model has no {' or '.join(probe.kinds)} attention")
                continue
            kind = probe.stimulus
            if kind == "repeated" and probe.definition != "stripe":
                kind = "text"
            by_stimulus.setdefault(kind, []).append(probe)
        try:
            shown: list[Stage] = [*by_stimulus.pop("text", []), *([maps] if maps else [])]
            for reading in self.readings if shown else ():
                self.forward("text", reading, shown)
            for kind, some in by_stimulus.items():
                getattr(self, f"_{kind}")(some)
        except KeyboardInterrupt:
            self.interrupted = True

    def forward(self, title: str, reading: Reading, stages: Sequence[Stage]) -> Any:
        """Run one forward with some stages attached."""
        probes = [stage for stage in stages if isinstance(stage, Probe)]
        idle = Baselines.of(probe.want for probe in probes if not probe.chance_free)
        for probe in probes:
            probe.show(reading, idle)
        device = next(iter(self.model.parameters())).device
        inputs = {
            name: x.to(device) if isinstance(x, Tensor) else x for name, x in reading.inputs.items()
        }
        counter = Counter(title, self.progress)
        with attach(self.model, [*stages, counter], check=False), torch.no_grad():
            if self.runs is not None:
                return self.runs(inputs)
            # Under stages attention is looked at, and what is said next is not.
            return run_on(self.model, inputs, logits=not stages)

    def deep(self, heads: Sequence[tuple[Site, int]], maps: Maps) -> DeepHeads:
        """Keep chosen heads in full, of the first reading: from what was kept of it, or again."""
        stage = DeepHeads(heads)
        try:
            if maps.kept is not None:
                for call in maps.kept.values():
                    stage.keep(call)
            elif heads and self.readings:
                with contextlib.suppress(_Enough):
                    self.forward("chosen heads", self.readings[0], [stage, _Until(stage)])
        except KeyboardInterrupt:
            self.interrupted = True
        return stage

    def _weights(self, probes: Sequence[Probe]) -> None:
        """Attach probes that read weights, and need no forward."""
        for probe in probes:
            try:
                with attach(self.model, probe, check=False):
                    pass
            except CapabilityError as error:
                if probe.named:
                    raise
                self._skip([probe], str(error.got))

    def _repeated(self, probes: Sequence[Probe]) -> None:
        config = getattr(self.model, "config", None)
        vocabulary = getattr(config, "vocab_size", None)
        if vocabulary is None or not self._reads_ids_alone():
            return self._skip(probes, "only a model that reads tokens alone can be shown repeats")
        reading = repeated(
            int(vocabulary), first=_start(self.tokenizer), seed=self.seed,
            period=max(4, min(64, (positions_of(config) or 128) // 2 - 1)),
        )  # fmt: skip
        self.forward("repeated tokens", reading, probes)
        return None

    def _needle(self, probes: Sequence[Probe]) -> None:
        if not _caches(self.model):
            return self._skip(probes, "only a language model can be asked to recall a needle")
        if self.tokenizer is None:
            return self._skip(probes, "a needle is made of text: pass a tokenizer")
        text = " ".join("".join(r.words) for r in self.readings if r.words)
        if not text:
            return self._skip(probes, "there is no text to hide a needle in")
        recalled = 0
        for number, depth in enumerate(DEPTHS):
            reading = needle(
                self.tokenizer, text, depth=depth, seed=self.seed + number,
                length=min(512, longest(self.model)),
            )  # fmt: skip
            logits = self.forward("needles, recalled or not", reading, ()).logits[0]
            said = reading.spans["answer"]
            guessed = logits[said.start - 1 : said.stop - 1].argmax(-1).cpu()
            assert reading.tokens is not None
            if (guessed == reading.tokens[0, said]).double().mean() > 0.5:
                recalled += 1
                self.forward("needles", reading, probes)
        if not recalled:
            self._skip(probes, f"none of {len(DEPTHS)} needles was recalled by the model")
        return None

    def _loss(self, probes: Sequence[Probe]) -> None:
        ids = [r.tokens for r in self.readings if r.tokens is not None]
        if not ids or not _caches(self.model):
            return self._skip(probes, "only a language model has a loss on its own text")
        pieces = ids[0][:, : min(LOSS_TOKENS, longest(self.model))]
        device = next(iter(self.model.parameters())).device
        counter = Counter("gradients", self.progress)
        with attach(self.model, [*probes, counter], check=False), torch.enable_grad():
            for row in pieces:
                tokens = row[None].to(device)
                loss = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss
                gates = [g for p in probes if isinstance(p, Importance) for g in p.gates.values()]
                for gate, grad in zip(gates, torch.autograd.grad(loss, gates), strict=True):
                    gate.grad = grad
                for probe in probes:
                    if isinstance(probe, Importance):
                        probe.learn()
        return None

    def _reads_ids_alone(self) -> bool:
        """Return whether ids are all that the model needs."""
        if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
            return False
        main = main_input(self.model, "input_ids")
        given = set(self.readings[0].inputs) if self.readings else set()
        return main == "input_ids" and given <= {"input_ids", "attention_mask"}

    def _skip(self, probes: Sequence[Probe], why: str) -> None:
        self.skipped.update({probe.name: why for probe in probes})


class _Enough(Exception):
    """Ends a forward once the chosen heads were seen."""


class _Until(Stage):
    """End a forward when the chosen heads were seen: later layers need not run."""

    def __init__(self, chosen: DeepHeads) -> None:
        super().__init__()
        self.chosen = chosen

    def see(self, call: Call, result: Result) -> None:
        """End the forward if all heads were found."""
        if len(self.chosen.found) == len(set(self.chosen.heads)):
            raise _Enough


class Counter(Stage):
    """Report the number of sites that have run."""

    def __init__(self, title: str, progress: Progress | None) -> None:
        super().__init__()
        self.title, self.progress, self.done, self.sites = title, progress, 0, 0

    def begin(self, model: Any, sites: Any) -> None:
        """Count the sites."""
        self.sites = len(sites)

    def see(self, call: Call, result: Result) -> None:
        """Count a site."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.title, self.done, max(self.sites, self.done))


def readings_of(model: Any, inputs: Any, tokenizer: Any) -> list[Reading]:
    """Read inputs: text, texts, ids [b, n], a dict of inputs, or pixels."""
    if isinstance(inputs, Reading):
        need_ids(model, inputs.tokens)
        return [inputs]
    if isinstance(inputs, str) or (
        isinstance(inputs, Sequence) and inputs and all(isinstance(x, str) for x in inputs)
    ):
        if tokenizer is None:
            fail(
                RuleError, "inputs", "text, without a tokenizer", "a tokenizer beside the text",
                "pass tokenizer=..., or token ids",
            )  # fmt: skip
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        return [_read_text(text, tokenizer, longest(model)) for text in texts]
    if isinstance(inputs, Tensor):
        name = main_input(model, "input_ids")
        if not inputs.is_floating_point():
            name = "input_ids"
        inputs = {name: inputs}
    if not isinstance(inputs, Mapping):
        fail(
            RuleError, "inputs", shape_of(inputs), "text, token ids, or a dict of model inputs",
            "pass a string, ids [b, n], or what the model's processor gives",
        )  # fmt: skip
    words: list[str] = []
    ids = inputs.get("input_ids")
    need_ids(model, ids)
    # A model that hears or sees, and writes, has no other words than those it is to go on from.
    shown = inputs.get("decoder_input_ids") if ids is None else ids
    if tokenizer is not None and isinstance(shown, Tensor):
        words = words_of(tokenizer, shown[0].tolist())
    return [Reading(dict(inputs), words=words)]


def need_ids(model: Any, ids: Any) -> None:
    """Raise unless ids [b, n] are within the vocabulary and the positions of the model."""
    if ids is None:
        return
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.numel():
        fail(
            RuleError, "inputs", f"input_ids of {shape_of(ids)}", "ids [b, n], one token at least",
            "pass ids[None] for one text",
        )  # fmt: skip
    if ids.is_floating_point() or ids.dtype is torch.bool:
        fail(RuleError, "inputs", f"input_ids of {ids.dtype}", "whole numbers", "pass ids.long()")
    table = None
    with contextlib.suppress(NotImplementedError):  # a multimodal model has several tables
        table = getattr(model, "get_input_embeddings", lambda: None)()
    known = getattr(table, "num_embeddings", None)
    low, high = int(ids.min()), int(ids.max())
    if known is not None and not 0 <= low <= high < known:
        fail(
            RuleError, "inputs", f"ids from {low} to {high}", f"ids from 0 to {known - 1}",
            "use the tokenizer of this model",
        )  # fmt: skip
    most = longest(model)
    if ids.shape[1] > most:
        fail(
            RuleError, "inputs", f"{ids.shape[1]:,} ids in a row",
            f"at most {most:,}, the positions that the model was made for", f"pass ids[:, :{most}]",
        )  # fmt: skip


def picture_of(reading: Reading) -> np.ndarray | None:
    """The first picture that a model is shown, uint8 [rows, columns, 3], its colors stretched to
    what a screen shows; None where it is shown none.
    """
    pixels = reading.inputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.dim() != 4 or pixels.shape[1] not in (1, 3):
        return None
    x = pixels[0].detach().float().cpu().expand(3, -1, -1).permute(1, 2, 0)
    low, high = x.amin((0, 1)), x.amax((0, 1))
    return ((x - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8).numpy()


def _read_text(text: str, tokenizer: Any, most: int) -> Reading:
    if not text.strip():
        fail(RuleError, "inputs", "empty text", "some words", "pass text to read")
    ids = tokenizer(text, truncation=True, max_length=most)["input_ids"]
    start = tokenizer.bos_token_id
    added = start is not None and bool(ids) and ids[0] != start
    if added:
        ids = [start, *ids][:most]
    whole = len(ids)
    if len(ids) >= most:  # count with the special tokens
        whole = len(tokenizer(text, verbose=False)["input_ids"]) + added
    tensor = torch.tensor([ids])
    return Reading(
        {"input_ids": tensor}, words=words_of(tokenizer, ids),
        whole=whole if whole > len(ids) else None,
    )  # fmt: skip


def words_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return how tokens read one by one, with the spaces between them, so that they make a text."""
    read = [tokenizer.decode([t]) for t in ids]
    words = read[:1]
    for i in range(1, len(ids)):  # a space may show only between two tokens
        pair = tokenizer.decode(list(ids[i - 1 : i + 1]), clean_up_tokenization_spaces=False)
        there = pair.startswith(read[i - 1])
        words.append(pair[len(read[i - 1]) :] if there else read[i])
    return words


def _start(tokenizer: Any) -> int | None:
    found = getattr(tokenizer, "bos_token_id", None)
    return found if isinstance(found, int) else None


def _takes(model: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether a model takes these inputs by name; a lone tensor may be passed without one."""
    known = inspect.signature(model.forward).parameters
    if set(inputs) <= set(known) or len(inputs) > 1:
        return True
    first = next(iter(known.values()), None)
    return first is None or first.default is not first.empty or first.kind is first.VAR_KEYWORD


def run_on(model: Any, inputs: Mapping[str, Any], *, logits: bool = True) -> Any:
    """Run a model once on named inputs; a lone one may have another name in the model.

    Without `logits` a language model says what comes after the last token alone, if it can.
    """
    if not _takes(model, inputs):
        return model(*inputs.values())
    if not logits and "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs = {"logits_to_keep": 1, **inputs}
    # Keep no keys: nothing is decoded.
    return model(**({"use_cache": False} if _keeps(model) else {}) | dict(inputs))


def _keeps(model: Any) -> bool:
    """Return whether a model keeps keys and values by default."""
    wishes = getattr(getattr(model, "config", None), "use_cache", False)
    return bool(wishes) and "use_cache" in inspect.signature(model.forward).parameters


def _caches(model: Any) -> bool:
    """Return whether it is a language model that predicts what comes next."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    return bool(getattr(model, "can_generate", lambda: False)())


@contextlib.contextmanager
def quiet(model: Any) -> Iterator[None]:
    """Put a model in evaluation mode, without dropout, and restore its mode."""
    was = getattr(model, "training", False)
    if was:
        model.eval()
    try:
        yield
    finally:
        if was:
            model.train()


def need_sites(sites: Sequence[Site]) -> None:
    """Raise if no attention was reached."""
    if not sites:
        fail(
            CapabilityError, "inputs", "a forward that reached no attention", "some attention",
            "pass the inputs the model's attention needs",
        )  # fmt: skip
