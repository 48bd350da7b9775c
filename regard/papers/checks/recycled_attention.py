"""Full steps refresh what steps between read; what became relevant late is found again."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import need
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.policies.registry import policy
from regard.verbs import shrink

EARLY, LATE, NEEDLE = 1, 2, 3


def _planted() -> Any:
    """A Llama of one head that does not turn: asked by the late token, it looks for the needle.

    The needle's embedding fits the late token's, and is orthogonal to the early one's. What the
    head reads of it, and of nothing else, says NEEDLE; the late token alone says token 4.
    """
    transformers = need("transformers", "hf", "has the model")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=8, num_hidden_layers=1, head_dim=64,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e300}, tie_word_embeddings=False,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).eval()
    table, one = made.model.embed_tokens.weight, made.model.layers[0]
    table.normal_()
    # Channels 0 and 32 turn at any base; 32 to 35 are marks.
    table[:, [0, 32, 33, 34, 35]] = 0.0
    early, late = table[EARLY].clone(), table[LATE].clone()
    table[NEEDLE] = late - early * (late @ early) / (early @ early)
    table[NEEDLE, 32], table[LATE, 34] = 3.0, 5.0
    query, key, value = torch.eye(64), torch.eye(64), torch.zeros(64, 64)
    # A late token does not look at those before it: their marks meet with a minus.
    query[35, 34], key[35, 34], query[34, 34], key[34, 34] = 1.0, -1.0, 0.0, 0.0
    value[0, 32] = 1.0
    attention = one.self_attn
    for part, weight in ((attention.q_proj, 3 * query), (attention.k_proj, key),
                         (attention.v_proj, value), (attention.o_proj, torch.eye(64))):  # fmt: skip
        part.weight.copy_(weight)
    one.mlp.down_proj.weight.zero_()
    made.lm_head.weight.zero_()
    made.lm_head.weight[NEEDLE, 0] = 2.0
    made.lm_head.weight[4, 34] = 0.2  # because: NEEDLE is said from a third of its weight on
    return made


def _said(made: Any, ids: Tensor, named: str, steps: int, **settings: object) -> list[bool]:
    """Whether a model under a policy says the needle at each of some steps that ask for it."""
    found = []
    with shrink(made, policy(named, **settings), keep=32, check=False):
        cache = made(ids).past_key_values
        for _ in range(steps):
            logits = made(torch.tensor([[LATE]]), past_key_values=cache).logits
            found.append(int(logits[0, -1].argmax()) == NEEDLE)
    return found


@check("recycled_attention")
def recycled() -> Claims:
    """Full steps refresh what steps between read; what became relevant late is found again."""
    made = llama()
    ids = torch.randint(3, 64, (1, 200))
    restart()

    def run(every: int, keep: float | int) -> tuple[Tensor, list[float]]:
        reads, out = [], []
        with (
            shrink(made, policy("recycled", every=every), keep=keep, check=False) as shrunk,
            torch.no_grad(),
        ):
            cache = made(ids[:, :150]).past_key_values
            for t in range(150, 200):
                before = sum(x.flops for x in shrunk.stage.costs.values())
                out.append(made(ids[:, t : t + 1], past_key_values=cache).logits)
                spent = sum(x.flops for x in shrunk.stage.costs.values()) - before
                reads.append(spent / (4 * 4 * 2.0 * 32))
        return torch.cat(out, 1), reads

    with torch.no_grad():
        plain = made(ids).logits[:, 150:]
    always, wide_ = gap(run(0, 16)[0], plain), gap(run(8, 400)[0], plain)
    stride = 8
    _, reads = run(stride, 16)
    # After the prompt, steps between read 16 keys and each (stride + 1)-th reads all.
    full_at = [t for t, r in enumerate(reads) if r > 100]  # because: 16 or all of over 150
    steady = {b - a for a, b in pairwise(full_at)}
    between = {round(r) for t, r in enumerate(reads) if t not in full_at}

    # A needle that the prompt's last query ignores, and a later query wants.
    hit_recycled, hit_evicted, knows = 0, 0, 0
    with torch.no_grad():
        for _ in range(20):
            planted = _planted()
            prompt = torch.randint(4, 64, (1, 256))
            prompt[0, 100], prompt[0, -1] = NEEDLE, EARLY
            asked = torch.cat((prompt, torch.tensor([[LATE]])), 1)
            knows += int(planted(asked).logits[0, -1].argmax()) == NEEDLE
            # The step after `stride` others reads everything; those that follow read what it liked.
            hit_recycled += all(_said(planted, prompt, "recycled", 12, every=stride)[stride:])
            hit_evicted += any(_said(planted, prompt, "tova", 12))
    yield claim("S=1 or K>=T", "difference of every step full", always).within(
        1e-4, "full attention", because=FLOAT32
    )
    yield claim("S=1 or K>=T", "difference with room for all", wide_).within(
        1e-4, "full attention", because=FLOAT32
    )
    yield claim("a planted needle", "needles of 20 that the unchanged model says", knows).equals(
        20, "all"
    )
    yield claim(
        "a planted needle", "needles of 20 said from the next full step on", hit_recycled
    ).equals(20, "all")
    yield claim(
        "a planted needle",
        "needles of 20 ever said, keys evicted by the prompt's query",
        hit_evicted,
    ).below(10, "half", because="a key that it ignores is kept by chance: 32 of 256")
    yield claim("key reads per S steps", "steps between full ones", str(sorted(steady))).equals(
        str([stride + 1]), "S"
    )
    yield claim("key reads per S steps", "keys read between", str(sorted(between))).equals(
        "[16]", "K"
    )
