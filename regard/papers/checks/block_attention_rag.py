"""Passages read once are what a forward with the block mask makes of them, in any order."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.models.attach import attach
from regard.models.loading import load
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import generator
from regard.papers.shared.attending import dense_mask
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.serving.passages import Blockwise, Passages


def block_mask(lengths: list[int]) -> Tensor:
    """Which pairs meet: causal, inside a block, or from the last one."""
    n = sum(lengths)
    block = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    i = torch.arange(n)
    own = (block[:, None] == block) | (block[:, None] == len(lengths) - 1)
    return own & (i <= i[:, None])


@check(
    "block_attention_rag",
    long=True,
    beyond="fine-tuning on the mask and its accuracy; times to the first token on a GPU",
)
@torch.no_grad()
def block_attention() -> Claims:
    """Passages read once are what a forward with the block mask makes of them, in any order."""
    wrong, staged, alone, tokens, flops = 0.0, 0.0, 0.0, [], []
    models: list[Any] = [llama(), load()[0].float()]
    for model in models:
        vocab, draw = model.config.vocab_size, generator()
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
    with FlopCounterMode(display=False) as counter:
        model(whole)
    share = flops[-1][1] / counter.get_total_flops()
    yield claim(
        "Re-rotated cached prompt",
        "largest difference, six orders, two models",
        wrong,
        over="median",  # logits in float32 are rounded by about as much as the bound
    ).within(1e-4, "one forward with the block mask", because=CATALOGUE)
    yield claim(
        "Re-rotated cached prompt", "largest difference of the training mask", staged
    ).within(1e-4, "one forward with the block mask", because=CATALOGUE)
    yield claim("n=1 (everything", "largest difference without passages", alone).within(
        1e-4, "full attention", because=FLOAT32
    )
    yield claim("FLOPs of second prompt", "FLOPs are the same for every order", same).equals(
        True, "of the final block only"
    )
    yield claim(
        "FLOPs of second prompt", "tokens run for passages, whatever the prompts", max(tokens)
    ).equals(124, "each passage once")
    yield claim("FLOPs of second prompt", "share of the FLOPs of a whole forward", share).below(
        0.2, "a fifth", because="17 of 141 tokens are the final block"
    )
