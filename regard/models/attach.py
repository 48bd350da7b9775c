"""Attach stages to a model: a context manager, and a handle."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from regard.core.errors import RuleError, fail, shape_of
from regard.models.engine import Engine
from regard.models.hook import Hook, UnsupportedModelError
from regard.models.moment import by_cache, follow
from regard.models.site import Site, Sites
from regard.models.stage import Stage

_lock = threading.RLock()


class Attached:
    """Stages at work on a model, until `detach()` or the end of the `with`.

    `sites` is a list that prints as a table; `checked` says what the check found, or why there
    was none.
    """

    def __init__(
        self,
        model: Any,
        sites: Sites,
        stages: tuple[Stage, ...],
        hook: str,
        removals: list[Callable[[], None]],
        checked: str,
    ) -> None:
        self.model, self.sites, self.stages = model, sites, stages
        self.hook, self.checked = hook, checked
        self._removals: list[Callable[[], None]] | None = removals

    def detach(self) -> None:
        """Give the model back as it was; more than once does no harm."""
        with _lock:
            removals, self._removals = self._removals, None
            if removals is None:
                return
            try:
                for remove in reversed(removals):
                    remove()
            finally:
                for stage in reversed(self.stages):
                    stage.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        names = ", ".join(s.name for s in self.stages) or "no stage"
        state = "attached" if self._removals is not None else "detached"
        return f"Attached({names} at {len(self.sites)} sites by {self.hook}: {state})"


def attach(model: Any, stages: Sequence[Stage] | Stage = (), *, check: Any = True) -> Attached:
    """Send every attention of a model through stages.

    Works on `transformers` and `diffusers` models and on any module that attends through
    `F.scaled_dot_product_attention`. One small forward checks that each site is reached, that a
    stage which does nothing changes nothing, and that an edit is felt; `check=False` leaves it out.
    Where no small input is known, pass one: `check=x`, `check=(x, y)` or `check={"ids": ids}`.

        with regard.attach(model, [Edit("out", lambda x: 0 * x, where={"layers": 3})]):
            model(ids)
    """
    many = (stages,) if isinstance(stages, Stage) else stages
    if not isinstance(many, Sequence) or isinstance(many, str):
        fail(RuleError, "stages", shape_of(stages), "a list of stages", "pass [stage, ...]")
    engine = Engine(many)
    with _lock:
        hook, sites = hook_of(model)
        chosen = [_chosen(stage, sites) for stage in engine.stages]
        checked = "left out"
        if check is not False and check is not None:
            from regard.models.checking import check_hook

            checked = check_hook(model, hook, sites, None if check is True else check)
        begun: list[Stage] = []
        try:
            for stage, its_sites in zip(engine.stages, chosen, strict=True):
                begun.append(stage)
                stage.begin(model, its_sites)
            removals = [hook.install(model, sites, engine)]
            if engine.stages:
                read, listen = getattr(hook, "read", by_cache), getattr(hook, "listen", None)
                removals.append(follow(model, read, listen))
        except BaseException:
            for stage in reversed(begun):
                stage.end()
            raise
        return Attached(model, sites, engine.stages, hook.name, removals, checked)


def _chosen(stage: Stage, sites: Sites) -> Sites:
    """Give the sites of a stage; a choice that means none is an error."""
    place = getattr(stage, "where", None)
    if place is None:
        fail(
            RuleError,
            f"{stage.name}.where",
            "nothing",
            "a choice of sites",
            "call super().__init__(where) in the stage",
        )
    from regard.models.site import Place

    return sites.select(None if place == Place() else place)


def hook_of(model: Any) -> tuple[Hook, Sites]:
    """Find the way into a model, and its sites."""
    tried: list[str] = []
    for name, home in (
        ("regard.layers", "regard.models.own"),
        ("transformers", "regard.models.transformers"),
        ("diffusers", "regard.models.diffusers"),
        ("functional", "regard.models.functional"),
    ):
        if name != "functional" and name not in sys.modules:
            continue  # the model cannot be of a library that nobody has imported
        try:
            hook: Hook = importlib.import_module(home).HOOK
        except ModuleNotFoundError as missing:
            if missing.name != home:
                raise
            continue
        found: list[Site] = hook.find(model)
        if found:
            return hook, Sites(found)
        tried.append(name)
    if not isinstance(model, nn.Module):
        parts = ("transformer", "unet", "model")  # of a pipeline
        inside = next((x for x in parts if isinstance(getattr(model, x, None), nn.Module)), None)
        fail(
            UnsupportedModelError,
            "model",
            shape_of(model) if not isinstance(model, torch.Tensor) else "a tensor",
            "a torch.nn.Module",
            f"pass its {inside}" if inside else "pass the model itself",
        )
    from regard.models.finding import own_attention

    guess = own_attention(model) or [
        f"{n} ({type(m).__name__})"
        for n, m in model.named_modules()
        if "attn" in n.lower() or "attention" in type(m).__name__.lower()
    ]
    where = f"attends in {guess[0]} in a way no hook reaches" if guess else "attends nowhere"
    return fail(
        UnsupportedModelError,
        "model",
        f"{type(model).__name__}, which {where}",
        f"attention through one of: {', '.join(tried)}",
        "call F.scaled_dot_product_attention in that module, or regard.attend",
    )
