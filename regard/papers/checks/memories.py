"""Checks of rows about what is kept between requests, turns, threads and machines."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.models.attach import attach
from regard.models.loading import load
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.policies_evicting import llama
from regard.policies.passages import Blockwise, Passages


def dense_mask(met: Tensor) -> Tensor:
    """A mask for a model of transformers, of which pairs [n, m] may meet."""
    return torch.zeros(met.shape).masked_fill(~met, torch.finfo(torch.float32).min)[None, None]


def block_mask(lengths: list[int]) -> Tensor:
    """Which pairs meet: causal, inside a block, or from the last one."""
    n = sum(lengths)
    block = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    i = torch.arange(n)
    own = (block[:, None] == block) | (block[:, None] == len(lengths) - 1)
    return own & (i <= i[:, None])


@check("block_attention_rag")
@torch.no_grad()
def block_attention() -> Measured:
    """Passages read once are what a forward with the block mask makes of them, in any order."""
    wrong, staged, alone, tokens, flops = 0.0, 0.0, 0.0, [], []
    models: list[Any] = [llama(), load()[0].float()]
    for model in models:
        vocab, draw = model.config.vocab_size, torch.Generator().manual_seed(1)
        texts = [torch.randint(3, vocab, (n,), generator=draw).tolist() for n in (40, 23, 61)]
        question = torch.randint(3, vocab, (17,), generator=draw).tolist()
        passages = Passages(model)
        for order in permutations(texts):
            inputs = passages.inputs(order, question)
            whole, last = inputs["input_ids"], len(question)
            mask = block_mask([*map(len, order), last])
            dense = model(whole, attention_mask=dense_mask(mask)).logits[:, -last:]
            with FlopCounterMode(display=False) as counter:
                ours = model(whole[:, -last:], past_key_values=inputs["past_key_values"]).logits
            flops.append((model, counter.get_total_flops()))
            tokens.append(passages.encoded)
            wrong = max(wrong, gap(ours, dense))
        with attach(model, Blockwise([*map(len, order), last]), check=False):
            staged = max(staged, gap(model(whole).logits[:, -last:], dense))
        no_passage = passages.inputs([], texts[0])["input_ids"]
        ours = model(no_passage, past_key_values=passages.cache([])).logits
        alone = max(alone, gap(ours, model(no_passage).logits))
    same = all(len({f for m, f in flops if m is one}) == 1 for one, _ in flops)
    read_once = set(tokens) == {124}
    with FlopCounterMode(display=False) as counter:
        model(whole)
    share = flops[-1][1] / counter.get_total_flops()
    return Measured(
        "on a random Llama and on the model that ships, cached passages turned to their places "
        "give the logits of one forward with the block mask and ordinary positions, for all six "
        "orders (1e-4); the training mask is the same, and without passages it is full attention "
        "(1e-4); passages are run once, and a further prompt takes the FLOPs of its question alone",
        wrong < 1e-4 and staged < 1e-4 and alone < 1e-4 and same and read_once and share < 0.2,
        {"largest difference": wrong, "as trained": staged, "no passage": alone,
         "tokens run for passages": tokens[-1], "FLOPs of a further prompt, of all": share},
        left_out="fine-tuning on the mask and its accuracy; times to the first token on a GPU",
    )  # fmt: skip
