"""Group Think: several threads of one model, each of which sees what the others generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ShapeError, ValueRangeError, fail, need, shape_of
from regard.core.method import method
from regard.core.support.bands import need_count
from regard.layers.stack import pick

# Chooses the next token of each thread from scores [threads, vocab] and the tokens of all.
Pick = Callable[[Tensor, list[list[int]]], Sequence[int]]
PROMPT = -1


def meets(q_time: Tensor, q_thread: Tensor, k_time: Tensor, k_thread: Tensor) -> Tensor:
    """Return which tokens attend to which, [n, m]: all of earlier steps, and those of the thread.

    >>> times, threads = torch.tensor([-1, 0, 0, 1]), torch.tensor([-1, 0, 1, 0])
    >>> meets(times, threads, times, threads).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]
    """
    before = k_time < q_time[:, None]
    return before | ((k_thread == q_thread[:, None]) & (k_time <= q_time[:, None]))


class Threads:
    """Running threads: iterate for the tokens of each step, `{thread: token}`.

    `ids` are the tokens of each thread, its header first. A thread ends at a token of `stop`, or
    after `budget` tokens.
    """

    def __init__(
        self, model: Any, prompt: list[int], headers: list[list[int]], budget: int,
        stop: set[int], choose: Pick, tokenizer: Any,
    ) -> None:  # fmt: skip
        self.model, self.prompt, self.headers = model, prompt, headers
        self.budget, self.stop, self.choose, self.tokenizer = budget, stop, choose, tokenizer
        self.ids: list[list[int]] = [[] for _ in headers]
        # Scores of the next token of each thread, [threads, vocab], at the last step.
        self.scores: Tensor | None = None

    @torch.no_grad()
    def __iter__(self) -> Iterator[dict[int, int]]:
        from transformers.cache_utils import DynamicCache

        model, cache, p = self.model, DynamicCache(), len(self.prompt)
        device = next(model.parameters()).device
        first = torch.tensor([self.prompt], device=device)
        out = model(first, past_key_values=cache, use_cache=True).logits[0, -1:]
        self.ids = [[] for _ in self.headers]
        self.scores = scores = out.expand(len(self.ids), -1).clone()
        # The step and the thread of each token in the cache.
        times, threads = (torch.full((p,), PROMPT, device=device) for _ in range(2))
        live = list(range(len(self.ids)))
        for step in range(self.budget):
            chosen = self.choose(scores, self.ids)
            said = {
                n: self.headers[n][step] if step < len(self.headers[n]) else int(chosen[n])
                for n in live
            }
            for n, token in said.items():
                self.ids[n].append(token)
            yield said
            live = [n for n in live if step < len(self.headers[n]) or said[n] not in self.stop]
            if not live or step + 1 == self.budget:
                return
            who, now = torch.tensor(list(said), device=device), torch.tensor([step], device=device)
            now = now.expand(len(who))
            times, threads = torch.cat((times, now)), torch.cat((threads, who))
            met = meets(now, who, times, threads)
            mask = torch.zeros(met.shape, dtype=scores.dtype, device=device)
            mask = mask.masked_fill(~met, torch.finfo(scores.dtype).min)[None, None]
            places = (p + who * self.budget + step)[None]
            out = model(
                torch.tensor([list(said.values())], device=device), attention_mask=mask,
                position_ids=places, past_key_values=cache, use_cache=True,
            ).logits[0]  # fmt: skip
            scores[who] = out

    def texts(self) -> list[str]:
        """Return the text of each thread so far (needs a tokenizer)."""
        if self.tokenizer is None:
            fail(ShapeError, "tokenizer", "None", "a tokenizer", "pass one to think_together")
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in self.ids]


@method(
    "group_think",
    call="import regard\n"
    "from regard.models.loading import load\n"
    "model, tokenizer = load()\n"
    'headers = ["\\nAnn:", "\\nBob:"]\n'
    'for step in regard.think_together(model, "Colors.", headers, tokenizer=tokenizer, budget=8):\n'
    "    print(step)",
)
def think_together(
    model: Any, prompt: Any, headers: Sequence[Any], *, tokenizer: Any = None, budget: int = 64,
    stop: int | Sequence[int] | None = None, temperature: float = 0.0,
    generator: torch.Generator | None = None, choose: Pick | None = None,
) -> Threads:  # fmt: skip
    """Run several threads of a model from one prompt, each seeing what all generated before.

    In step k each thread n generates `y_k^n ~ p(. | prompt, y_j^m for all m and j < k)`, so threads
    respond to one another token by token; tokens of the same step are not visible. All share one
    cache. Token k of thread n has position `p + n budget + k`, so that each thread is contiguous.
    `headers` start the threads and count as theirs ("Ann:", "Bob:"); `stop` ends one.
    `choose(scores, said)` picks the tokens; the default is the best, or a sample at a
    `temperature`.
    (Group Think, Hsu et al. 2025)

        for step in regard.think_together(model, prompt, ["Ann:", "Bob:"], tokenizer=tokenizer):
            print(step)                                  # {0: 17, 1: 243}
    """
    need("transformers", "hf", "has the model")
    need_count("budget", budget)
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = getattr(text, "layer_types", None) or ()
    if not kinds and getattr(text, "sliding_window", None):
        kinds = ("sliding",)
    if getattr(text, "is_encoder_decoder", False) or any("full" not in kind for kind in kinds):
        fail(
            CapabilityError, "model", f"{type(model).__name__}, whose layers are not all causal",
            "a decoder whose layers all see everything before",
            "windows and states depend on positions, which differ by thread",
        )  # fmt: skip
    most = getattr(text, "max_position_embeddings", None)
    first, begun = _ids("prompt", prompt, tokenizer), [_ids("headers", x, tokenizer)
                                                       for x in headers]  # fmt: skip
    if not begun or any(len(x) > budget for x in begun):
        fail(
            ValueRangeError, "headers", [len(x) for x in begun], f"one or more, up to {budget}",
            "give each thread a header that fits its budget",
        )  # fmt: skip
    if most is not None and len(first) + len(begun) * budget > most:
        fail(
            ValueRangeError, "budget", f"{len(begun)} x {budget} after {len(first)} tokens",
            f"places up to {most}, which the model has", "use a smaller budget, or fewer threads",
        )  # fmt: skip
    ends = set() if stop is None else {stop} if isinstance(stop, int) else set(stop)

    def best(scores: Tensor, said: list[list[int]]) -> Sequence[int]:
        return [int(x) for x in pick(scores, temperature, generator=generator)]

    return Threads(model, first, begun, budget, ends, choose or best, tokenizer)


def _ids(name: str, x: Any, tokenizer: Any) -> list[int]:
    if isinstance(x, str) and tokenizer is not None:
        found: list[int] = tokenizer(x, add_special_tokens=name == "prompt")["input_ids"]
    elif isinstance(x, Tensor):
        found = x.flatten().tolist()
    else:
        found = [] if isinstance(x, str) else list(x)
    if not found and (name == "prompt" or isinstance(x, str)):
        fail(
            ShapeError, name, shape_of(x), "token ids, or a text with a tokenizer",
            "pass tokenizer=...",
        )  # fmt: skip
    return found
