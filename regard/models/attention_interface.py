"""What transformers calls in place of its attention and its masks, under one name of our own.

The name stays registered: a forward that another thread is in may still look it up after the last
detaching. A module that nobody is attached to is served without stages.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from regard.core.call import Call
from regard.core.errors import fail
from regard.core.keys import Dense
from regard.core.rule import Rule
from regard.core.score import Dot, SoftCap
from regard.core.score.base import Score
from regard.core.score.dense import DenseBias
from regard.core.support import Causal, Everything, Support
from regard.core.weigh import Softmax
from regard.models.attention_arguments import NEED_NO_LOOK, chosen_keys, need_known
from regard.models.engine import Engine
from regard.models.forward import Forward, current_forward
from regard.models.hook import Held, UnsupportedModelError
from regard.models.masks import EVERYTHING, Mask, make_mask
from regard.models.removal import uncompiled
from regard.models.sdpa import four_axes, with_mask
from regard.run.counting import COUNT
from regard.run.fused import count_single
from regard.run.runner import need_room

_collector: Any
try:
    from transformers.utils.output_capturing import _active_collector as _collector
except ImportError:  # versions that pass `output_attentions` on instead
    _collector = None

NAME = "regard"
# Whom the calls of a module go through.
held: WeakKeyDictionary[nn.Module, Held] = WeakKeyDictionary()
_nobody = Engine()


class Name(str):
    """Our name in a config, with what stood there before; a copy of the config gets that.

    >>> import copy
    >>> Name("eager") == "regard", copy.deepcopy(Name("eager"))
    (True, 'eager')
    """

    replaced: str | None

    def __new__(cls, replaced: str | None) -> Name:
        """Return the name, which compares like any other string."""
        made = super().__new__(cls, NAME)
        made.replaced, made.holders = replaced, ()
        return made

    holders: tuple[Any, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> str | None:
        return self.replaced

    def __reduce__(self) -> Any:
        return _same, (self.replaced,)


def _same(x: str | None) -> str | None:
    return x


@uncompiled
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
    indices: Tensor | None = None,
    block_indices: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Stand where transformers expects its attention: out [b, n, h, e], and weights if asked."""
    if kwargs.get("cache") is not None:
        refuse_batching()
    if not kwargs.keys() <= NEED_NO_LOOK:
        need_known(module, kwargs)
    found = held.get(module)
    single = query.shape[2] == 1 and position_bias is None and softcap is None and s_aux is None
    single = single and indices is None and block_indices is None
    if single and found is not None and not found.engine.stages and type(attention_mask) is Mask:
        rules = attention_mask.rules
        before = rules["before"] if "before" in rules else _before_us(attention_mask)
        wanted = COUNT.records or kwargs.get("output_attentions")  # of ours alone
        if before is not None and not wanted:
            count_single(query, key, value)
            made: tuple[Tensor, None] = before(
                module, query, key, value, None, dropout, scaling, False, **kwargs
            )
            return made
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if query.shape[0] != key.shape[0]:  # learned queries of one row (GraniteSpeech's projector)
        rows = torch.broadcast_shapes(query.shape[:1], key.shape[:1])[0]
        query, key, value = (x.expand(rows, -1, -1, -1) for x in (query, key, value))
    if indices is not None or block_indices is not None:
        # Eager attention and SDPA are handed these in the mask; whatever has another name is not.
        chosen = chosen_keys(module, query, key.shape[2], indices, block_indices)
        attention_mask = with_chosen(attention_mask, chosen, query.shape[2], bool(is_causal))
    rule = rule_of(
        attention_mask, query, key, scaling, bool(is_causal), position_bias, softcap, s_aux
    )
    site, now = None if found is None else found.site, current_forward()
    # A model that shares its config with an attached one is served without stages.
    shown = bool(kwargs.get("output_attentions"))
    if not shown:
        known = attention_mask.asked if type(attention_mask) is Mask else None
        same = known is not None and now is not None and known[0] is now
        shown = known[1] if same and known else weights_are_asked(module, now, attention_mask)
    call = Call(query, Dense(key, value), rule, None, dropout, site, now)
    if shown:
        need_room(call, "output_attentions")
    want = ("out", "weights") if shown else ("out",)
    result, _ = (_nobody if found is None else found.engine).result(call, want)
    return result.out.transpose(1, 2).contiguous(), result.weights


def _before_us(mask: Mask) -> Any:
    """Return the attention that stood here before us, where a step may attend to every key.

    With no stage attached a step costs what it did. What a forward says of all of its layers is
    read once, and kept by its mask: where weights are collected, None.
    """
    plain = mask.replaced == "sdpa" and mask.support is EVERYTHING
    asked = plain and weights_are_asked(None, current_forward(), mask)
    found = AttentionInterface._global_mapping.get("sdpa") if plain and not asked else None
    mask.rules["before"] = found
    return found


def weights_are_asked(module: nn.Module | None, now: Forward | None, mask: Any = None) -> bool:
    """Whether somebody collects weights that the attention is not told to return.

    Eager attention returns them always, so some models ask for them only where they collect them.
    """
    collected = None if _collector is None else _collector.get()
    shown = collected is not None and any("attentions" in key for key in collected)
    if shown or now is not None:  # which has read the config
        shown = shown or (now is not None and bool(now.weights))
        if type(mask) is Mask:
            mask.asked = now, shown
        return shown
    config = mask.config if module is None and type(mask) is Mask else None
    config = getattr(module, "config", config)
    if type(mask) is Mask and mask.config is config:  # asked once in a forward
        return mask.weights
    return bool(getattr(config, "output_attentions", False))


def with_chosen(mask: Any, chosen: Tensor, n: int, is_causal: bool) -> Tensor:
    """Add the keys that a model has chosen, bool [b, 1 or h, n, m], to a mask: a tensor."""
    if isinstance(mask, Mask):
        return mask.dense() & chosen
    if mask is None:
        m = chosen.shape[3]
        later = torch.ones((n, m), dtype=torch.bool, device=chosen.device).triu(1)
        return chosen & ~later if is_causal and n > 1 else chosen
    mask = four_axes(mask)[..., : chosen.shape[3]]
    both: Tensor = (
        mask & chosen if mask.dtype == torch.bool else mask.masked_fill(~chosen, -torch.inf)
    )
    return both


def refuse_batching(*_: Any, **__: Any) -> None:
    """Refuse continuous batching: its threads and its paged cache pass the model by."""
    fail(
        UnsupportedModelError,
        "generate_batch",
        "continuous batching on an attached model",
        "generate, whose cache is updated by the model",
        "detach, and call regard.serving.generate_batch, which serves stages by request",
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
    """Build the rule of one call; calls of one forward that mean the same share it."""
    plain = bias is None and sink is None
    home: dict[Any, Any] | None = mask.rules if isinstance(mask, Mask) else None
    if mask is None:
        home = _plain
    n, m = query.shape[2], key.shape[2]
    if isinstance(scaling, Tensor):
        scaling = float(scaling)
    kind = (scaling, softcap, is_causal and n > 1)
    if plain and home is not None:
        found: Rule | None = home.get(kind)
        if found is not None:
            return found
    support: Support = EVERYTHING
    offset = 0
    score = _score(scaling, softcap)
    if isinstance(mask, Mask):
        support, offset = mask.support, max(mask.offset, 0)
    elif mask is None:
        # As under sdpa: no mask means causal from the first key, where the module is causal.
        support = Causal() if is_causal and n > 1 else EVERYTHING
    else:
        support, score = with_mask(support, score, four_axes(mask)[..., :m], m)
    if bias is not None:
        bias = four_axes(bias)[..., :m]
        score = score + DenseBias(bias.expand(*bias.shape[:3], m))
    weigh = SOFTMAX if sink is None else Softmax(sink=sink.reshape(-1))
    if plain and type(support) is Everything and not isinstance(mask, Tensor):
        rule = _dense(scaling, softcap).shift(offset)
    else:
        rule = Rule(support, score, weigh, offset)
    if plain and home is not None:
        if len(home) > 64:
            home.clear()
        home[kind] = rule
    return rule


_plain: dict[Any, Rule] = {}
# Each step makes a rule; what does not change from step to step is made once.
SOFTMAX = Softmax()


@lru_cache(maxsize=64)
def _score(scaling: float | None, softcap: float | None) -> Score:
    """Build the score of a scale and a soft cap."""
    return Dot(scaling) if softcap is None else Dot(scaling) >> SoftCap(softcap)


@lru_cache(maxsize=64)
def _dense(scaling: float | None, softcap: float | None) -> Rule:
    """Build the rule by which every key may be attended to."""
    return Rule(EVERYTHING, _score(scaling, softcap), SOFTMAX)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, make_mask)
