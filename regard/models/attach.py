"""Attach stages to a model: a context manager and a handle."""

from __future__ import annotations

import importlib
import sys
import warnings
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from regard.core.errors import RuleError, fail, shape_of
from regard.models.engine import Engine
from regard.models.forward import by_cache, follow
from regard.models.hook import Hook, UnsupportedModelError
from regard.models.removal import Removal, exclusive
from regard.models.site import Site, Sites
from regard.models.stage import Stage


class Attached:
    """Stages attached to a model, until `detach()`, the end of the `with`, or garbage collection.

    `sites` is a list that prints as a table; `checked` is the result of the check, or why there was
    none; `unreached` names the modules whose attention no hook reaches.
    """

    def __init__(
        self,
        model: Any,
        sites: Sites,
        stages: tuple[Stage, ...],
        hook: str,
        undo: Removal,
        checked: str,
        unreached: tuple[str, ...] = (),
    ) -> None:
        self.model, self.sites, self.stages = model, sites, stages
        self.hook, self.checked, self.unreached = hook, checked, unreached
        self._undo = undo
        names = ", ".join(s.name for s in stages)
        weakref.finalize(self, _thrown_away, undo, names).atexit = False

    def detach(self) -> None:
        """Restore the model; calling it again does nothing.

        An exception meanwhile (Ctrl-C, or an error in the `end` of a stage) is raised after
        everything has been restored.
        """
        try:
            self._undo()
        finally:
            self._undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self.detach()
        finally:
            self._undo()

    def __repr__(self) -> str:
        names = ", ".join(s.name for s in self.stages) or "no stage"
        state = "attached" if self._undo.pending else "detached"
        return f"Attached({names} at {len(self.sites)} sites by {self.hook}: {state})"


def _thrown_away(undo: Removal, names: str) -> None:
    if not undo.pending:
        return
    try:
        undo()
    finally:
        undo()
    if names:
        warnings.warn(
            f"{names}: attached, and dropped without detach(): the model is restored. "
            "Fix: with regard.attach(...): or keep what it returns, and call detach()",
            stacklevel=2,
        )


def attach(model: Any, stages: Sequence[Stage] | Stage = (), *, check: Any = True) -> Attached:
    """Run every attention of a model through stages.

    Works on `transformers` and `diffusers` models and on any module that attends through
    `F.scaled_dot_product_attention`. One small forward checks that each site is reached, that a
    stage which does nothing changes nothing, and that an edit changes the output; `check=False`
    skips it. Where no small input is known, pass one: `check=x`, `check=(x, y)` or `check={"ids":
    ids}`.

        with regard.attach(model, [Edit("out", lambda x: 0 * x, where={"layers": 3})]):
            model(ids)
    """
    many = (stages,) if isinstance(stages, Stage) else stages
    if not isinstance(many, Sequence) or isinstance(many, str):
        fail(RuleError, "stages", shape_of(stages), "a list of stages", "pass [stage, ...]")
    engine, undo = Engine(many), Removal()
    hook, sites = hook_of(model)
    chosen = [_chosen(stage, sites) for stage in engine.stages]
    unreached = _unreached(model, sites)
    checked = "left out"
    if check is not False and check is not None:
        from regard.models.checking import check_hook

        checked = check_hook(model, hook, sites, None if check is True else check)
    try:
        _install(model, hook, sites, chosen, engine, undo)
        return Attached(model, sites, engine.stages, hook.name, undo, checked, unreached)
    except BaseException:
        undo()
        raise


@exclusive
def _install(
    model: Any, hook: Hook, sites: Sites, chosen: list[Sites], engine: Engine, undo: Removal
) -> None:
    """Begin every stage at its sites, and install the hook."""
    for stage, its_sites in zip(engine.stages, chosen, strict=True):
        undo.add(stage.end)
        stage.begin(model, its_sites)
    hook.install(model, sites, engine, undo)
    if engine.stages:
        arrivals = (getattr(stage, "arrive", None) for stage in engine.stages)
        given = tuple(x for x in arrivals if x is not None)
        follow(model, getattr(hook, "read", by_cache), undo, given)


def _unreached(model: Any, sites: Sites) -> tuple[str, ...]:
    """Name the modules whose attention no hook reaches, and warn about them."""
    from regard.models.finding import out_of_reach

    found = tuple(out_of_reach(model, {site.module for site in sites}))
    if found:
        more = f", and {len(found) - 4} more" if len(found) > 4 else ""
        warnings.warn(
            f"{type(model).__name__} is reached in part: no hook reaches the attention of "
            f"{', '.join(found[:4])}{more}; stages do not run there (attached.unreached names all)",
            stacklevel=3,
        )
    return found


def _chosen(stage: Stage, sites: Sites) -> Sites:
    """Return the sites of a stage; a choice of none is an error."""
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
    """Return the hook of a model, and its sites."""
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
