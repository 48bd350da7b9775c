"""The hook into transformers: its attention and mask interfaces, under a name of our own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from torch import Tensor, nn

from regard.core.errors import fail
from regard.models.attention_interface import NAME, Name, held, refuse_batching
from regard.models.configs import asks_for_weights, stored
from regard.models.engine import Engine
from regard.models.finding import calls_attention, main_input
from regard.models.forward import Forward, by_cache, given_to
from regard.models.functional import HOOK as FUNCTIONAL
from regard.models.hook import Held, UnsupportedModelError
from regard.models.removal import Removal, exclusive
from regard.models.site import Site, Sites
from regard.models.versions import supported
from regard.models.wrap import Around, hold
from regard.models.written_out import CallOurs, is_written_out


class TransformersHook:
    """Hook into models whose attention uses `ALL_ATTENTION_FUNCTIONS`, or is written out."""

    name = "transformers"

    def find(self, model: Any) -> list[Site]:
        """Find every module whose code calls the attention interface, or PyTorch's attention."""
        if not isinstance(model, nn.Module):
            return []
        modules = list(model.named_modules())
        if not any(_ours(m) for _, m in modules):
            return []
        supported("transformers")
        found = [(n, m) for n, m in modules if _ours(m) or calls_attention(m)]
        homes = {n: m for n, m in model.named_modules() if hasattr(m, "main_input_name")}
        return [_placed(site_of(name, module), homes) for name, module in found]

    def read(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], kept: dict[Any, Any]
    ) -> Forward:
        """Count steps by the cache, and mark image placeholder tokens."""
        now = by_cache(model, args, kwargs, kept)
        config: Any = getattr(model, "config", None)
        shown = kwargs.get("output_attentions")
        if shown is None and args:
            shown = given_to(model, args, kwargs).get("output_attentions")
        if asks_for_weights(config) if shown is None else shown:
            now = replace(now, weights=True)
        number = _image_token(config)
        ids = kwargs.get("input_ids", args[0] if args else None)
        if number is None or not isinstance(ids, Tensor) or ids.is_floating_point():
            return now
        return replace(now, image_tokens=ids == number)

    @exclusive
    def install(self, model: nn.Module, sites: Sites, engine: Engine, undo: Removal) -> None:
        """Set the configs of the model to our name, and attach the engine to its modules."""
        modules = [(model.get_submodule(site.module), site) for site in sites]
        asking = [(m, site) for m, site in modules if _ours(m)]
        configs = _configs_of(model)
        undo.add(lambda: _let_go(asking, configs, engine))
        for module, site in asking:
            one = held.get(module) or Held(site)
            held[module] = one.by((*one.engines, engine))
            if is_written_out(module) and engine.stages:
                hold(module, "forward", partial(CallOurs, module), engine, undo)
        for name, refuse in (
            ("generate_batch", refuse_batching), ("set_attn_implementation", _refuse_other),
        ):  # fmt: skip
            if hasattr(model, name):
                hold(model, name, partial(_Refuse, refuse), engine, undo)
        for config in configs:
            there = config._attn_implementation_internal
            ours = there if isinstance(there, Name) else Name(there)
            ours.holders = (*ours.holders, engine)
            config._attn_implementation_internal = ours
        # Last, and so removed first: other threads may be inside a forward meanwhile.
        hold(model, "forward", partial(_NeedOurs, configs), engine, undo)
        others = Sites(site for m, site in modules if not _ours(m))
        if others:
            FUNCTIONAL.install(model, others, engine, undo)


HOOK = TransformersHook()
IMAGE_TOKEN = ("image_token_id", "image_token_index")


def _image_token(config: Any) -> Any:
    """Return the number that stands for an image in a prompt; None where there is none.

    To ask a config for what it lacks takes it long, and each forward asks.
    """
    own: dict[str, Any] = stored(config)
    kind: Any = type(config)
    known = own and IMAGE_TOKEN[0] not in own and IMAGE_TOKEN[1] not in own  # without any: ask
    if config is None or (known and _plain(kind)):
        return None
    return getattr(config, IMAGE_TOKEN[0], getattr(config, IMAGE_TOKEN[1], None))


@lru_cache(maxsize=256)
def _plain(kind: type) -> bool:
    """Whether the class of a config says nothing of image tokens, by whatever name."""
    names = getattr(kind, "attribute_map", {})
    if hasattr(kind, "__getattr__"):
        return False
    return not any(hasattr(kind, x) or x in names for x in IMAGE_TOKEN)


def _let_go(modules: list[tuple[nn.Module, Site]], configs: list[Any], engine: Engine) -> None:
    for config in configs:
        ours = config._attn_implementation_internal
        if isinstance(ours, Name):  # else another one was set meanwhile, which stays
            ours.holders = tuple(x for x in ours.holders if x is not engine)
            if not ours.holders:
                config._attn_implementation_internal = ours.replaced
    for module, _ in modules:
        one = held.get(module)
        engines = () if one is None else tuple(x for x in one.engines if x is not engine)
        if one is not None and engines:
            held[module] = one.by(engines)
        else:
            held.pop(module, None)


class _Refuse(Around):
    """Replace a method that an attached model does not support."""

    def __init__(self, refuse: Callable[..., None]) -> None:
        super().__init__()
        self.refuse = refuse

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.refuse(*args, **kwargs)


class _NeedOurs(Around):
    """Around the forward of a model: raise if a config no longer uses our attention."""

    def __init__(self, configs: list[Any]) -> None:
        super().__init__()
        # What they hold: a config takes long to read an attribute, and each forward asks.
        self.states = [stored(config) for config in configs]

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for state in self.states:
            if state["_attn_implementation_internal"] != NAME and self.holders:
                _refuse_other(state["_attn_implementation_internal"])
        return plain(*args, **kwargs)


def _refuse_other(asked: Any = None, *_: Any, **__: Any) -> None:
    fail(
        UnsupportedModelError,
        "attn_implementation",
        f"{asked!r} while stages are attached, which would disable them",
        "the implementation that the model had when stages were attached",
        "detach first, then model.set_attn_implementation(...), then attach again",
    )


def _ours(module: nn.Module) -> bool:
    """Return whether our attention can replace that of a module."""
    return _interfaced(module) or is_written_out(module)


def _interfaced(module: nn.Module) -> bool:
    kind: Any = type(module)
    return _asks(kind) and hasattr(module, "config")


@lru_cache(maxsize=4096)
def _asks(kind: Any) -> bool:
    """Return whether the code of a class uses the attention interface."""
    return any(
        "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(f).__code__.co_names
        for base in kind.__mro__[:-1]
        if base is not nn.Module and base.__module__.partition(".")[0] != "torch"
        for f in vars(base).values()
        if inspect.isfunction(f) and inspect.isfunction(inspect.unwrap(f))
    ) and "PreTrainedModel" not in {base.__name__ for base in kind.__mro__}


def _configs_of(model: nn.Module) -> list[Any]:
    found: list[Any] = []
    todo = [m.config for m in model.modules() if hasattr(m, "config")]
    while todo:
        config = todo.pop()
        if hasattr(config, "_attn_implementation_internal") and not any(c is config for c in found):
            found.append(config)
            subs = (getattr(config, s, None) for s in getattr(config, "sub_configs", ()))
            todo.extend(s for s in subs if s is not None)
    return found


def site_of(path: str, module: nn.Module) -> Site:
    """Describe the site of an attention module by its config."""
    config: Any = _config_of_layer(module)

    def first(*names: str) -> Any:
        for home in (module, config):
            for name in names:
                x = getattr(home, name, None)
                if isinstance(x, int) and not isinstance(x, bool):
                    return x
        return None

    heads = first("num_attention_heads", "num_heads", "n_heads", "n_head")
    groups = getattr(module, "num_key_value_groups", None)
    kv = first("num_key_value_heads", "num_kv_heads")
    kv = heads // groups if heads and isinstance(groups, int) and groups else kv or heads
    crossing = getattr(module, "is_cross_attention", False) or re.search(
        r"cross|encoder_attn|EncDec", path.rsplit(".", 1)[-1] + "." + type(module).__name__
    )
    layer = getattr(module, "layer_idx", None)
    numbers = re.findall(r"\.(\d+)(?=\.|$)", "." + path)
    layer = layer if isinstance(layer, int) else int(numbers[-1]) if numbers else None
    causal = getattr(module, "is_causal", None)
    return Site(
        layer=layer,
        kind="cross" if crossing else "self",
        module=path,
        heads=heads,
        kv_heads=kv,
        head_size=first("head_dim", "attention_head_size", "head_size", "qk_head_dim"),
        causal=causal if isinstance(causal, bool) else None,
    )


def _config_of_layer(module: Any) -> Any:
    """Return the config of a module: that of its layer, where layers have configs of their own.

    The config of such a model does not have the values that differ from layer to layer.
    """
    config: Any = getattr(module, "config", None)
    layer = getattr(module, "layer_idx", None)
    try:
        return config.per_layer_config[layer]
    except (AttributeError, LookupError, TypeError):
        return config


MODALITIES = {"pixel_values": "image", "input_features": "audio", "input_values": "audio",
              "input_ids": "text"}  # fmt: skip


def _placed(site: Site, homes: dict[str, nn.Module]) -> Site:
    """Add the modality of a site's tokens, by the innermost model that it is a part of."""
    paths = [path for path in homes if not path or site.module.startswith(f"{path}.")]
    # Each part of a model has its own main input.
    for path in sorted(paths, key=len, reverse=True):
        home: Any = homes[path]
        config: Any = home.config
        grid = _grid(config)
        modality = MODALITIES.get(main_input(home))
        if getattr(config, "is_encoder_decoder", False) and "decoder" in site.module:
            return replace(site, modality="text")
        if modality is not None:
            return replace(site, modality=modality, grid=grid if modality == "image" else None)
    return site


def _grid(config: Any) -> tuple[int, int] | None:
    """Read the patch grid from a vision config, where all layers have the same grid."""
    sizes: list[Any] = [getattr(config, name, None) for name in ("image_size", "patch_size")]
    if hasattr(config, "depths") or any(x is None for x in sizes):
        return None
    (high, wide), (tall, broad) = ((x, x) if isinstance(x, int) else tuple(x) for x in sizes)
    return high // tall, wide // broad
