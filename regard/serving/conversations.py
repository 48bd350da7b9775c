"""Conversations whose keys stay on the device, the host or the disk between turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ShapeError, fail, need, shape_of
from regard.core.method import method
from regard.memories.tiers import RecomputeCost, Tiers


def flops_of_chunks(model: Any, size: int = 32, longest: int = 1 << 17) -> RecomputeCost:
    """Return the FLOPs to recompute a chunk: weights for each token, attention for each pair.

    cost(l) = 2 P size + 4 layers heads d size (l + size / 2), with P the non-embedding weights.
    """
    from regard.models.attach import hook_of

    _, sites = hook_of(model)
    tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    weights = sum(p.numel() for p in model.parameters()) - sum(t.numel() for t in tables)
    pair = sum(4.0 * (s.heads or 1) * (s.head_size or 64) for s in sites)
    points = [
        (before, 2.0 * weights * size + pair * size * (before + size / 2))
        for before in (0, longest)
    ]
    return RecomputeCost(points)


@method(
    "pensieve",
    call="import regard\n"
    "from regard.models.loading import load\n"
    "talks = regard.Conversations(*load())\n"
    'talks.answer("ann", "Grass is green.", max_new_tokens=4)\n'
    'talks.answer("ann", " The sky is", max_new_tokens=4)',
)
class Conversations:
    """Conversations with a model, each of which continues from its keys, wherever they are kept.

    A turn runs its new tokens, and the first tokens of the history if their keys were dropped from
    `tiers` (`regard.memories.tiers.Tiers`): these run as a separate text, since nothing comes
    before them. The keys in between are brought back to the device. Logits are those of the whole
    history. `run` counts tokens that went through the model, `again` those of them that were
    recomputed. (Pensieve, Yu et al. 2023)

        talks = regard.Conversations(model, tokenizer, tiers=Tiers(device=2 << 30, host=8 << 30))
        talks.answer("ann", "Who wrote Faust?", max_new_tokens=40)
        talks.answer("ann", "And when?", max_new_tokens=40)
    """

    def __init__(
        self, model: Any, tokenizer: Any = None, *, tiers: Tiers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        need("transformers", "hf", "has the model")
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            fail(
                CapabilityError, "model", f"{type(model).__name__}, which has an encoder",
                "a decoder", "its cache depends on the encoded input",
            )  # fmt: skip
        self.model, self.tokenizer, self.clock = model, tokenizer, clock
        self.tiers = Tiers(cost=flops_of_chunks(model)) if tiers is None else tiers
        self.run = self.again = 0
        self._ids: dict[str, list[int]] = {}

    def history(self, name: str) -> list[int]:
        """Return the tokens of a conversation."""
        return list(self._ids.get(name, []))

    def forget(self, name: str) -> None:
        """End a conversation."""
        self.tiers.drop(name)
        self._ids.pop(name, None)

    @torch.no_grad()
    def say(self, name: str, new: Any) -> Tensor:
        """Read new tokens, and return their logits [1, n, vocab]."""
        n = len(ids := self._tokens(new))

        def turn(whole: Tensor, cache: Any, kept: int) -> tuple[Tensor, Tensor]:
            logits = self.model(whole[:, kept:], past_key_values=cache, use_cache=True).logits
            return logits[:, -n:], whole

        found: Tensor = self._turn(name, ids, turn)
        return found

    @torch.no_grad()
    def generate(self, name: str, new: Any, **how: Any) -> Tensor:
        """Read tokens and generate, with arguments of `model.generate`; return new tokens [n]."""

        def turn(whole: Tensor, cache: Any, kept: int) -> tuple[Tensor, Tensor]:
            mask = torch.ones_like(whole)
            made = self.model.generate(whole, attention_mask=mask, past_key_values=cache, **how)
            return made[0, whole.shape[1] :], made

        found: Tensor = self._turn(name, self._tokens(new), turn)
        return found

    def answer(self, name: str, text: str, **how: Any) -> str:
        """Read a text, and return the generated text."""
        made = self.generate(name, text, **how)
        said: str = self.tokenizer.decode(made, skip_special_tokens=True)
        return said

    def _turn(self, name: str, new: list[int], turn: Callable[..., Any]) -> Any:
        """Load the keys, run the turn, and store them again."""
        old = self._ids.get(name, [])
        device = next(self.model.parameters()).device
        whole = torch.tensor([[*old, *new]], device=device)
        cache, kept = self._resumed(name, whole)
        try:
            result, after = turn(whole, cache, kept)
        except BaseException:
            if cache.get_seq_length() > kept:
                cache.crop(kept - cache.get_seq_length())
            self._put(name, old, cache)
            raise
        self.run += cache.get_seq_length() - kept
        self._put(name, after[0].tolist(), cache)
        return result

    def _resumed(self, name: str, whole: Tensor) -> tuple[Any, int]:
        """Build the cache of the history; dropped tokens are recomputed, as a separate text.

        The last tokens of a history may not have been run yet: the last generated one never is.
        """
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache()
        if name not in self.tiers:
            return cache, 0
        start, k, v = self.tiers.take(name)
        body = getattr(self.model, "base_model", self.model)
        if start:
            body(input_ids=whole[:, :start], past_key_values=cache, use_cache=True)
            self.run += start
            self.again += start
        if k is not None and v is not None:
            for layer in range(len(k)):
                cache.update(k[layer : layer + 1], v[layer : layer + 1], layer)
        return cache, int(cache.get_seq_length())

    def _put(self, name: str, ids: list[int], cache: Any) -> None:
        self._ids[name] = ids
        if not cache.get_seq_length():
            return
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
        if len({(k.shape, v.shape) for k, v in pairs}) > 1:
            fail(
                CapabilityError, "model", f"{type(self.model).__name__}, whose layers differ",
                "layers that keep keys of one shape", "its conversations cannot be stored",
            )  # fmt: skip
        k, v = (torch.cat(x) for x in zip(*pairs, strict=True))
        self.tiers.put(name, k, v, now=self.clock())

    def _tokens(self, new: Any) -> list[int]:
        if isinstance(new, str) and self.tokenizer is not None:
            found: list[int] = self.tokenizer(new, add_special_tokens=False)["input_ids"]
        elif isinstance(new, Tensor):
            found = new.flatten().tolist()
        else:
            found = list(new) if isinstance(new, Sequence) and not isinstance(new, str) else []
        if not found:
            fail(
                ShapeError, "new", shape_of(new), "a text with a tokenizer, or token ids",
                "pass Conversations(model, tokenizer), or ids",
            )  # fmt: skip
        return found
