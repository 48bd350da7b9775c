"""Patches that policies put on whole modules, to run them differently or not at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from regard.models.removal import Removal
from regard.models.site import Site, Sites
from regard.models.wrap import put_before
from regard.policies.kinds import ModulePatch

if TYPE_CHECKING:
    from regard.policies.shrinking import Shrinking


def patch_modules(model: Any, sites: Sites, stage: Shrinking) -> Removal:
    """Route the modules that policies patch through them; return a function that undoes it."""
    undo = Removal()
    patching = [p for p in stage.policies if isinstance(p, ModulePatch)]
    places: dict[str, Site | None] = {site.module: site for site in sites}
    for module, site in {**places, "": None}.items():
        kind = "model" if site is None else site.kind
        willing = [p for p in patching if kind in p.patches]
        if willing:
            undo.add(_wrap(model.get_submodule(module), site, willing, stage))
    return undo


def _wrap(
    module: nn.Module, site: Site | None, policies: list[ModulePatch], stage: Shrinking
) -> Removal:
    """Wrap the forward of one module in policies, the first outermost."""

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
        # A policy may have computed the attention itself, which was counted.
        if not ran and stage.costs.calls == counted:
            stage.costs.skip("" if site is None else site.module)
        return out

    return put_before(module, forward)


def _asked(
    policy: ModulePatch, site: Site | None, run: Callable[..., Any], *args: Any, **kw: Any
) -> Any:
    return policy.patch(site, run, args, kw)
