"""How each layer of a model rotates its queries and keys, found out by running it.

A key that was rotated to one position can be rotated to another, or back: so keys can be reused at
any position (`Passages`), a policy can renumber tokens (`longheads`), and a gate can learn from
unrotated keys (`seer_attention`).

    turns = turns_of(model)
    k = turns[layer].turn(turns[layer].back(k, at=old), at=new)
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import CapabilityError, RegardError, fail, need
from regard.core.partial import wide
from regard.core.rotary import turned

# Positions at which a token is run: near, and far enough to tell slow pairs of channels.
TRIED = (0, 1, 13, 59)
# Schedules whose frequencies depend on the length: a key that was rotated is wrong later.
MOVING = ("dynamic", "longrope")


@dataclass(frozen=True, eq=False)
class Turn:
    """A rotation of pairs of channels by `speeds` [r] radians a token, with lengths times `scale`.

    It rotates the first 2 r channels of a head, or the last if `last`; neighbors are paired if
    `interleaved`, halves if not. Without speeds nothing is rotated.

    >>> turn = Turn(torch.tensor([1.0, 0.1]))
    >>> x, at = torch.randn(1, 2, 5, 4), torch.arange(5)
    >>> torch.allclose(turn.back(turn.turn(x, at), at), x, atol=1e-6)
    True
    """

    speeds: Tensor | None = None
    scale: float = 1.0
    interleaved: bool = False
    last: bool = False

    def turn(self, x: Tensor, at: Tensor | int) -> Tensor:
        """Rotate x [b, h, n, d] to positions `at`: [n], [b, n], or one for all."""
        return self._turned(x, at, self.scale, 1.0)

    def back(self, x: Tensor, at: Tensor | int) -> Tensor:
        """Undo `turn`."""
        return self._turned(x, at, 1 / self.scale, -1.0)

    def move(self, x: Tensor, by: int) -> Tensor:
        """Rotate x, which is rotated already, to `by` positions later."""
        return x if by == 0 else self._turned(x, by, 1.0, 1.0)

    def _turned(self, x: Tensor, at: Tensor | int, scale: float, way: float) -> Tensor:
        if self.speeds is None:
            return x
        places = torch.full((x.shape[2],), at) if isinstance(at, int) else at
        kind, r = wide(x.dtype), self.speeds.shape[0]
        angles = places.to(x.device)[..., None].to(kind) * self.speeds.to(x.device, kind)
        both = (angles.cos() * scale, way * angles.sin() * scale)
        rest, part = x.split((x.shape[3] - 2 * r, 2 * r), 3) if self.last else (None, x)
        made = turned(part.to(kind), both, self.interleaved).to(x.dtype)
        return made if rest is None else torch.cat((rest, made), 3)


class Turns(tuple[Turn, ...]):
    """The rotation of each layer of a model."""

    @property
    def none(self) -> bool:
        """Whether no layer rotates its keys."""
        return all(one.speeds is None for one in self)


@torch.no_grad()
def turns_of(model: Any) -> Turns:
    """Find how each layer of a transformers model rotates its keys; raise if that is unknown.

    One token is run alone at some positions, and its keys are compared. Positions that are added to
    tokens cannot be removed again, and are refused.
    """
    need("transformers", "hf", "has the model")
    keys = _keys_at(model)
    found = []
    rivals = list(_rivals(model))
    for layer, (k, v) in enumerate(keys):
        turn = next((one for one in rivals if _explains(one, k)), None)
        if turn is None or not _close(v, v[:1].expand_as(v)):
            fail(
                CapabilityError, "model",
                f"{type(model).__name__}, whose layer {layer} puts positions in "
                f"{'keys by an unknown rotation' if turn is None else 'its values'}",
                "rotary positions, or a bias by distance (ALiBi)",
                "encode the whole text: positions that are added to tokens cannot be removed",
            )  # fmt: skip
        found.append(turn)
    return Turns(found)


def rotations_of(model: Any, layers: Collection[int]) -> dict[int, Turn]:
    """Find how each of the `layers` rotates its keys; without rotations none does.

    Positions that are added to tokens remain in their keys.
    """
    rotary = any(turn.speeds is not None for turn in _rivals(model))
    found = turns_of(model) if rotary else [Turn()] * len(layers)
    if len(found) != len(layers):
        fail(
            CapabilityError, "model", f"{type(model).__name__}, which caches {len(found)} layers",
            f"keys of each of its {len(layers)} layers", "use a policy without unrotated keys",
        )  # fmt: skip
    return dict(zip(layers, found, strict=True))


def _keys_at(model: Any) -> list[tuple[Tensor, Tensor]]:
    """Return keys [places, g, 1, d] and values of one token, at each layer."""
    from transformers.cache_utils import DynamicCache

    device = next(model.parameters()).device
    cache, places = DynamicCache(), torch.tensor(TRIED, device=device)
    takes = "position_ids" in inspect.signature(model.forward).parameters
    try:
        if takes:
            ids = torch.ones(len(TRIED), 1, dtype=torch.long, device=device)
            model(ids, past_key_values=cache, use_cache=True, position_ids=places[:, None])
        else:  # a text of one repeated token: attention does not change its values
            ids = torch.ones(1, TRIED[-1] + 1, dtype=torch.long, device=device)
            model(ids, past_key_values=cache, use_cache=True)
        layers: Any = cache.layers
        pairs = [(layer.keys, layer.values) for layer in layers]
        if not all(isinstance(x, Tensor) and x.dim() == 4 for pair in pairs for x in pair):
            raise TypeError("its cache holds no keys by head")
    except RegardError:
        raise
    except (TypeError, AttributeError, ValueError, IndexError, RuntimeError) as wrong:
        fail(
            CapabilityError, "model", f"{type(model).__name__} ({str(wrong).splitlines()[0][:90]})",
            "a decoder whose cache holds keys and values of every layer",
            "its keys cannot be moved to another position",
        )  # fmt: skip
    if takes:
        same: list[tuple[Tensor, Tensor]] = pairs
        return same
    return [(k[0, :, places, None].transpose(0, 1), v[0, :, places, None].transpose(0, 1))
            for k, v in pairs]  # fmt: skip


def _rivals(model: nn.Module) -> Iterator[Turn]:
    """Yield the candidate rotations: none, and one for each of the model's frequency tables."""
    yield Turn()
    for _, module in model.named_modules():
        for name, speeds in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or "original" in name:
                continue
            kind = name.removesuffix("inv_freq")
            types: Any = getattr(module, "rope_type", "default")
            rope = types.get(kind.rstrip("_"), "default") if isinstance(types, dict) else types
            if rope in MOVING:
                fail(
                    CapabilityError, "model", f"{rope} rotary positions",
                    "frequencies that do not depend on the length",
                    "choose another rope_type in its config, linear or yarn say",
                )  # fmt: skip
            scale = float(getattr(module, f"{kind}attention_scaling", 1.0))
            for interleaved in (False, True):
                for last in (False, True):
                    yield Turn(speeds.detach(), scale, interleaved, last)


def _explains(turn: Turn, k: Tensor) -> bool:
    """Return whether keys k [places, g, 1, d] of one token differ by this rotation."""
    if turn.speeds is not None and 2 * turn.speeds.shape[0] > k.shape[3]:
        return False
    places = torch.tensor(TRIED, device=k.device)
    bare = turn.back(k[:1], 0)
    return _close(k, turn.turn(bare.expand_as(k), places[:, None]))


def _close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= 32 * torch.finfo(a.dtype).eps * float(b.abs().max())
