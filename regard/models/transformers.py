"""The way into transformers: its attention and mask interfaces, under one name of our own."""

from __future__ import annotations

import inspect
import re
import threading
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import fail
from regard.core.keys import Dense
from regard.core.rule import Rule
from regard.core.score import Dot, SoftCap
from regard.core.score.base import At, Score
from regard.core.score.biases import PlaceStep
from regard.core.support import Causal, Everything, Support, Where
from regard.core.support.chosen import pick
from regard.core.value import value
from regard.core.weigh import Softmax
from regard.models.engine import Engine
from regard.models.hook import Removal, UnsupportedModelError
from regard.models.masks import Mask, make_mask
from regard.models.moment import Moment, by_cache
from regard.models.site import Site, Sites
from regard.models.versions import supported

NAME = "regard"
_lock = threading.RLock()


@value
class Table(PlaceStep):
    """Add a bias that the model has made, [b or 1, h or 1, n, m]; by place, not by position."""

    bias: Tensor
    _head_axis: ClassVar = {"bias": 1}

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Look the pair up."""
        return scores + pick(self.bias, at.b, at.h, at.row, at.col).to(scores.dtype)


class _Held:
    """What is attached to one module: its site, and engines, the outermost first."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.engines: list[Engine] = []
        self.engine = Engine()

    def joined(self) -> _Held:
        """Make one engine of all."""
        stages = [s for engine in self.engines for s in engine.stages]
        self.engine = self.engines[0] if len(self.engines) == 1 else Engine(stages)
        return self


_held: WeakKeyDictionary[nn.Module, _Held] = WeakKeyDictionary()
# id of a config -> the config, what it asked for before, and how many attachments hold it.
_configs: dict[int, tuple[Any, Any, int]] = {}


class TransformersHook:
    """Hook into models whose attention goes through `ALL_ATTENTION_FUNCTIONS`."""

    name = "transformers"

    def find(self, model: Any) -> list[Site]:
        """Name every module whose code asks the attention interface."""
        if not isinstance(model, nn.Module):
            return []
        found = [
            (n, m) for n, m in model.named_modules() if _asks(type(m)) and hasattr(m, "config")
        ]
        if found:
            supported("transformers")
        homes = {n: m for n, m in model.named_modules() if hasattr(m, "main_input_name")}
        return [_placed(site_of(name, module), homes) for name, module in found]

    def read(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], kept: dict[Any, Any]
    ) -> Moment:
        """Count steps by the cache, and mark the tokens that stand for images."""
        now = by_cache(model, args, kwargs, kept)
        config: Any = getattr(model, "config", None)
        number = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        ids = kwargs.get("input_ids", args[0] if args else None)
        if number is None or not isinstance(ids, Tensor) or ids.is_floating_point():
            return now
        return replace(now, image_tokens=ids == number)

    def install(self, model: nn.Module, sites: Sites, engine: Engine) -> Removal:
        """Set the configs of the model to our name, and hold the engine at its modules."""
        modules = [model.get_submodule(site.module) for site in sites]
        configs = list({id(c): c for c in _configs_of(model)}.values())
        with _lock:
            _register()
            for module, site in zip(modules, sites, strict=True):
                held = _held.setdefault(module, _Held(site))
                held.engines.append(engine)
                held.joined()
            if hasattr(model, "generate_batch"):
                model.__dict__["generate_batch"] = _no_batching
            for config in configs:
                _, before, count = _configs.get(
                    id(config), (config, config._attn_implementation_internal, 0)
                )
                _configs[id(config)] = (config, before, count + 1)
                config._attn_implementation_internal = NAME
        done = False

        def remove() -> None:
            nonlocal done
            with _lock:
                if done:
                    return
                done = True
                for module in modules:
                    held = _held[module]
                    held.engines.remove(engine)
                    if held.engines:
                        held.joined()
                    else:
                        del _held[module]
                if not any(module in _held for module in modules):
                    model.__dict__.pop("generate_batch", None)
                for config in configs:
                    _, before, count = _configs.pop(id(config))
                    if count > 1:
                        _configs[id(config)] = (config, before, count - 1)
                    else:
                        config._attn_implementation_internal = before
                _unregister()

        return remove


HOOK = TransformersHook()


def _asks(kind: type) -> bool:
    """Whether the code of a class asks the attention interface."""
    found = kind.__dict__.get("_regard_asks")
    if found is None:
        found = any(
            "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(f).__code__.co_names
            for base in kind.__mro__[:-1]
            if base is not nn.Module and base.__module__.partition(".")[0] != "torch"
            for f in vars(base).values()
            if inspect.isfunction(f) and inspect.isfunction(inspect.unwrap(f))
        ) and "PreTrainedModel" not in {base.__name__ for base in kind.__mro__}
    return bool(found)


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
    """Read a site from an attention module and its config."""
    config: Any = module.config

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


MODALITIES = {"pixel_values": "image", "input_features": "audio", "input_values": "audio",
              "input_ids": "text"}  # fmt: skip


def _placed(site: Site, homes: dict[str, nn.Module]) -> Site:
    """Say what the tokens of a site are, by the innermost model that it is a part of."""
    paths = [path for path in homes if not path or site.module.startswith(f"{path}.")]
    # A whole model says what it reads first; its parts say it of themselves.
    for path in sorted(paths, key=len, reverse=True):
        home: Any = homes[path]
        config: Any = home.config
        grid = _grid(config)
        modality = MODALITIES.get(getattr(home, "main_input_name", ""))
        if getattr(config, "is_encoder_decoder", False) and "decoder" in site.module:
            return replace(site, modality="text")
        if modality is not None:
            return replace(site, modality=modality, grid=grid if modality == "image" else None)
    return site


def _grid(config: Any) -> tuple[int, int] | None:
    """Read the patch grid from a config of vision, where layers keep it."""
    sizes: list[Any] = [getattr(config, name, None) for name in ("image_size", "patch_size")]
    if hasattr(config, "depths") or any(x is None for x in sizes):
        return None
    (high, wide), (tall, broad) = ((x, x) if isinstance(x, int) else tuple(x) for x in sizes)
    return high // tall, wide // broad


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    if NAME not in AttentionInterface._global_mapping:
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, make_mask)


def _unregister() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    if not _configs:
        AttentionInterface._global_mapping.pop(NAME, None)
        AttentionMaskInterface._global_mapping.pop(NAME, None)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Stand where transformers expects its attention: out [b, n, h, e], and weights if asked."""
    if kwargs.get("cache") is not None:
        _no_batching()
    held = _held.get(module)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    rule = rule_of(
        attention_mask, query, key, scaling, bool(is_causal), position_bias, softcap, s_aux
    )
    site = None if held is None else held.site
    call = Call(query, Dense(key, value), rule, None, dropout, site)
    # A model that shares its config with an attached one is served without stages.
    shown = bool(kwargs.get("output_attentions"))
    want = ("out", "weights") if shown else ("out",)
    result, _ = (Engine() if held is None else held.engine).result(call, want)
    return result.out.transpose(1, 2).contiguous(), result.weights


def _no_batching(*_: Any, **__: Any) -> None:
    """Refuse continuous batching: its threads and its paged cache pass the model by."""
    fail(
        UnsupportedModelError,
        "generate_batch",
        "continuous batching on an attached model",
        "generate, whose cache is updated by the model",
        "detach first, or call generate",
    )


def rule_of(
    mask: Any,
    query: Tensor,
    key: Tensor,
    scaling: float | None,
    is_causal: bool,
    bias: Tensor | None,
    softcap: float | None,
    sink: Tensor | None,
) -> Rule:
    """Make the rule of one call; calls of one forward that mean the same share it."""
    plain = bias is None and sink is None
    home: dict[Any, Any] | None = mask.rules if isinstance(mask, Mask) else None
    if mask is None:
        home = _plain
    n, m = query.shape[2], key.shape[2]
    if isinstance(scaling, Tensor):
        scaling = float(scaling)
    kind = (scaling, softcap, is_causal and n > 1)
    if plain and home is not None and kind in home:
        found: Rule = home[kind]
        return found
    support: Support = EVERYTHING
    offset = 0
    score = _score(scaling, softcap)
    if isinstance(mask, Mask):
        support, offset = mask.support, max(mask.offset, 0)
    elif mask is None:
        # As under sdpa: no mask means causal from the first key, where the module is causal.
        support = Causal() if is_causal and n > 1 else EVERYTHING
    elif mask.dtype == torch.bool:
        support = Where(_looked_up(mask))
    else:
        score = score + Table(mask[..., :m])
    if bias is not None:
        score = score + Table(bias[..., :m])
    weigh = SOFTMAX if sink is None else Softmax(sink=sink.reshape(-1))
    rule = Rule(support, score, weigh, offset)
    if plain and home is not None:
        if len(home) > 64:
            home.clear()
        home[kind] = rule
    return rule


_plain: dict[Any, Rule] = {}
# Each step makes a rule; what does not change from step to step is made once.
EVERYTHING, SOFTMAX = Everything(), Softmax()


@lru_cache(maxsize=64)
def _score(scaling: float | None, softcap: float | None) -> Score:
    """Make the score of a scale and a soft cap."""
    return Dot(scaling) if softcap is None else Dot(scaling) >> SoftCap(softcap)


def _looked_up(mask: Tensor) -> Any:
    """Read a bool mask [b or 1, h or 1, n, m] that the model has made."""

    def test(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        row = b.clamp(max=mask.shape[0] - 1)
        head = h.clamp(max=mask.shape[1] - 1)
        i, j = i.clamp(0, mask.shape[2] - 1), j.clamp(0, mask.shape[3] - 1)
        return mask[row, head, i, j]

    return test


__all__ = ["HOOK", "TransformersHook", "attention", "rule_of"]
