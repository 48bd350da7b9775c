"""Passages that are read once and reused in any prompt: Block-Attention for retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ShapeError, fail, need, shape_of
from regard.core.method import method
from regard.core.support import Causal, Kinds, Support
from regard.memories.blocks import TextBlock, TextBlocks
from regard.memories.memory_files import load, save
from regard.models.fingerprint import fingerprint
from regard.models.rotary import turns_of
from regard.models.stage import Stage

Text = str | Sequence[int] | Tensor


def blocks_of(lengths: Sequence[int]) -> Support:
    """Let each block see only itself, and the last one everything before it.

    >>> blocks_of([1, 2, 1]).matrix(4)[0, 0].int().tolist()
    [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]]
    """
    last = len(lengths) - 1
    met = torch.eye(last + 1, dtype=torch.bool)
    met[last] = True
    numbers = torch.repeat_interleave(torch.arange(last + 1), torch.tensor(lengths))
    return Causal() & Kinds(numbers, met)


class Blockwise(Stage):
    """Mask a prompt as blocks of these lengths, to train a model to read `Passages`.

    with regard.attach(model, Blockwise([120, 90, 40])):
        loss = model(ids, labels=labels).loss
    """

    def __init__(self, lengths: Sequence[int], where: Any = None) -> None:
        super().__init__(where)
        self.support = blocks_of(lengths)

    def before(self, call: Call) -> Call:
        """Mask the pairs of different blocks."""
        return call.replace(rule=call.rule.replace(support=call.rule.support & self.support))


@method(
    "block_attention_rag",
    call="import regard\n"
    "from regard.models.loading import load\n"
    "passages = regard.Passages(*load())\n"
    'passages.answer(["The sky is blue.", "Grass is green."], "Grass is", max_new_tokens=4)',
)
class Passages:
    """Texts that a model reads once, separately, and reuses in any prompt.

    Keys of a passage are computed at positions 0, 1, 2, ...; at position p of a prompt they are
    `k' = R(p) k`, since rotations add up, and values stay the same. Only the final block, the
    question, is run; it sees everything. This equals one forward with a mask that lets passages see
    only themselves (`blocks_of`). A model that was not trained with that mask (`Blockwise`) answers
    worse than with full attention: measure it. (Block-Attention, Sun et al. 2024)

    It needs a model with rotary positions or biases by distance; positions added to tokens are
    rejected. `limit` is the bytes held in memory, `folder` a folder where blocks are kept.

        passages = regard.Passages(model, tokenizer, folder="blocks")
        passages.answer(["Oslo is in Norway.", "Bern is in Switzerland."], "Where is Bern?")
        model.generate(**passages.inputs(texts, question), max_new_tokens=40)   # the same, by hand

    `encoded` counts tokens that were run to build blocks, `reused` those that were found.
    """

    def __init__(
        self, model: Any, tokenizer: Any = None, *, limit: int | None = None, folder: Any = None,
        batch: int = 8,
    ) -> None:  # fmt: skip
        need("transformers", "hf", "has the model")
        self.model, self.tokenizer, self.batch = model, tokenizer, batch
        self.turns = turns_of(model)
        self.blocks = TextBlocks(fingerprint(model), limit=limit, folder=folder)
        self.encoded = self.reused = 0

    def inputs(
        self, passages: Sequence[Text], question: Text, *, system: Text | None = None
    ) -> dict[str, Any]:
        """Build what `model.generate` takes: all tokens, and a cache of all but the question's.

        Passages and `system`, which comes first as its own block, are texts or token ids.
        """
        first = [] if system is None else [self._ids("system", system, first=True)]
        texts = [*first, *(self._ids("passages", x) for x in passages)]
        last = self._ids("question", question)
        cache = self.cache(texts)
        device = next(self.model.parameters()).device
        ids = torch.tensor([[*(t for text in texts for t in text), *last]], device=device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache}

    def generate(
        self, passages: Sequence[Text], question: Text, *, system: Text | None = None, **how: Any
    ) -> Tensor:
        """Generate, with other arguments of `model.generate`, and return the new tokens [n]."""
        inputs = self.inputs(passages, question, system=system)
        found: Tensor = self.model.generate(**inputs, **how)
        return found[0, inputs["input_ids"].shape[1] :]

    def answer(
        self, passages: Sequence[Text], question: Text, *, system: Text | None = None, **how: Any
    ) -> str:
        """Generate, and return the text."""
        self._need_tokenizer("question")
        new = self.generate(passages, question, system=system, **how)
        said: str = self.tokenizer.decode(new, skip_special_tokens=True)
        return said

    def cache(self, texts: Sequence[Sequence[int]]) -> Any:
        """Concatenate blocks in a cache of transformers; missing ones are read first.

        Blocks are identified by their tokens and the model that computed them.
        """
        from transformers.cache_utils import DynamicCache

        names = [self.blocks.name(text) for text in texts]
        # Blocks found now may be dropped when others are added.
        found = {name: self.blocks.find(name) for name in set(names)}
        missing = {n: t for n, t in zip(names, texts, strict=True) if found[n] is None}
        self.reused += sum(len(t) for n, t in zip(names, texts, strict=True) if n not in missing)
        found.update(self._read(missing))
        cache = DynamicCache()
        device = next(self.model.parameters()).device
        for layer, turn in enumerate(self.turns if texts else ()):
            k, v, at = [], [], 0
            for name in names:
                block = found[name]
                assert block is not None
                k.append(turn.move(block.k[layer].to(device), at))
                v.append(block.v[layer].to(device))
                at += len(block)
            cache.update(torch.cat(k, 2), torch.cat(v, 2), layer)
        return cache

    @torch.no_grad()
    def _read(self, missing: dict[str, Sequence[int]]) -> dict[str, TextBlock]:
        """Run texts of similar length together, padded on the right."""
        from transformers.cache_utils import DynamicCache

        made: dict[str, TextBlock] = {}
        order = sorted(missing, key=lambda name: len(missing[name]))
        device = next(self.model.parameters()).device
        for start in range(0, len(order), self.batch):
            some = order[start : start + self.batch]
            rows = [torch.tensor(list(missing[name])) for name in some]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
            cache = DynamicCache()
            # Only the body: the logits of passages are not needed.
            body = getattr(self.model, "base_model", self.model)
            body(input_ids=ids, past_key_values=cache, use_cache=True)
            for row, name in enumerate(some):
                m = len(rows[row])
                k, v = (
                    tuple(getattr(x, part)[row : row + 1, :, :m].clone() for x in cache.layers)
                    for part in ("keys", "values")
                )
                made[name] = TextBlock(k, v)
                self.blocks.keep(name, made[name])
                self.encoded += m
        return made

    def save(self, path: Any) -> Any:
        """Write all blocks to one file."""
        return save(self.blocks, path)

    def load(self, path: Any) -> None:
        """Load blocks from a file that the same model wrote."""
        load(self.blocks, path)

    def _ids(self, name: str, text: Text, first: bool = False) -> list[int]:
        if isinstance(text, str):
            self._need_tokenizer(name)
            found: list[int] = self.tokenizer(text, add_special_tokens=first)["input_ids"]
        else:
            found = text.flatten().tolist() if isinstance(text, Tensor) else list(text)
        if not found or not all(isinstance(t, int) for t in found):
            fail(
                ShapeError, name, shape_of(text) if found else "no token",
                "a text, or the ids of its tokens", "leave out empty texts",
            )  # fmt: skip
        return found

    def _need_tokenizer(self, name: str) -> None:
        if self.tokenizer is None:
            fail(
                ShapeError, name, "a text, and no tokenizer", "token ids",
                "create it with Passages(model, tokenizer)",
            )  # fmt: skip
