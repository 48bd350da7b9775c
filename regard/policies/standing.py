"""Modules that policies stand in for: a whole module is run otherwise, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from regard.models.site import Site, Sites

if TYPE_CHECKING:
    from regard.policies.shrinking import Shrinking


def stand(model: Any, sites: Sites, stage: Shrinking) -> Callable[[], None]:
    """Let policies run the modules of the sites they stand in for; give what undoes it."""
    undo: list[Callable[[], None]] = []
    places: dict[str, Site | None] = {site.module: site for site in sites}
    for module, site in {**places, "": None}.items():
        kind = "model" if site is None else site.kind
        willing = [p for p in stage.policies if kind in p.stands]
        if willing:
            undo.append(_wrap(model.get_submodule(module), site, willing, stage))

    def remove() -> None:
        for step in reversed(undo):
            step()

    return remove


def _wrap(
    module: nn.Module, site: Site | None, policies: list[Any], stage: Shrinking
) -> Callable[[], None]:
    """Put policies around the forward of one module, the first outermost."""

    def forward(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if stage.paused:
            return plain(*args, **kwargs)
        ran, counted = False, stage.costs.calls

        def whole(*given: Any, **named: Any) -> Any:
            nonlocal ran
            ran = True
            return plain(*given, **named)

        run: Callable[..., Any] = whole
        for one in reversed(policies):
            run = partial(_asked, one, site, run)
        out = run(*args, **kwargs)
        # A policy may have attended by itself, which was counted.
        if not ran and stage.costs.calls == counted:
            stage.costs.skip("" if site is None else site.module)
        return out

    return put_before(module, forward)


def put_before(module: nn.Module, ours: Callable[..., Any]) -> Callable[[], None]:
    """Run `ours(forward, ...)` in place of a module's own forward; give what undoes it."""
    own, plain = module.__dict__.get("forward"), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return ours(plain, *args, **kwargs)

    # What runs a module reads names of its arguments off its forward.
    # So that `inspect.signature` still sees what the module takes.
    forward.__wrapped__ = plain  # type: ignore[attr-defined]
    module.__dict__["forward"] = forward

    def remove() -> None:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = own

    return remove


def _asked(policy: Any, site: Site | None, run: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    return policy.stand_in(site, run, args, kw)


__all__ = ["put_before", "stand"]
