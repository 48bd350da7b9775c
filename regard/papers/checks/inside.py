"""Checks of rows that read embeddings, codes and weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.analysis.binding import (
    DiagonalPair,
    LinearPair,
    QuadraticPair,
    shuffled,
    without,
)
from regard.analysis.scan_and_snap import rank_correlation
from regard.analysis.tuning_shift import blanked, by_gradient, density, left_out, word_pairs
from regard.circuits.codes import area_under, discover_circuit
from regard.core.errors import need
from regard.models.loading import load
from regard.papers.checks import Measured, check


@check("is_same_object")
def binding() -> Measured:
    """A quadratic probe reads a random code of objects; a linear one cannot."""
    d, code, features = 64, 16, 6
    mixing = torch.linalg.qr(torch.randn(d, d)).Q
    kinds = torch.randn(features, d - code)

    def images(many: int, patches: int = 24) -> tuple[Tensor, Tensor]:
        objects = torch.randint(0, 3, (many, patches))
        # What a patch shows says nothing of the object it belongs to; the code alone does.
        kind = torch.randint(0, features, (many, patches))
        codes = 4 * F.normalize(torch.randn(many, 3, code), dim=-1)
        own = codes.gather(1, objects[..., None].expand(-1, -1, code))
        x = torch.cat([kinds[kind], own], -1)
        x = x + 0.2 * torch.randn_like(x)
        return x @ mixing, objects

    train, held = images(400), images(200)
    probes = {"linear": LinearPair(d), "diagonal": DiagonalPair(d),
              "quadratic": QuadraticPair(d, code)}  # fmt: skip
    found = {}
    for name, probe in probes.items():
        probe.fit(*train, steps=500)
        found[name] = probe.accuracy(*held)
    quadratic = probes["quadratic"]
    assert isinstance(quadratic, QuadraticPair)
    again = QuadraticPair(d, code)
    blind = without(held[0], quadratic.w)
    random = without(held[0], torch.randn(code, d))
    moved = shuffled(held[0], quadratic.w)
    gone, kept, mixed = (quadratic.accuracy(x, held[1]) for x in (blind, random, moved))
    # Whether another probe could still read it, from embeddings without those rows.
    again.fit(without(train[0], quadratic.w), train[1], steps=500)
    left = again.accuracy(blind, held[1])
    return Measured(
        "on embeddings of a feature and a random code of each object, mixed by a rotation, the "
        "quadratic probe tells pairs right in over 95% and the linear one in less than 60%; with "
        "its rows projected out it is at chance (below 60%), with as many random directions out "
        "it stays over 80%",
        found["quadratic"] > 0.95 and found["linear"] < 0.6 and gone < 0.6 and kept > 0.8,
        {**found, "its rows out": gone, "random rows out": kept, "its rows shuffled": mixed,
         "a new probe, rows out": left},
        left_out="that nothing is left to read: a new probe still tells the pairs; vision "
        "transformers on panoptic images, and whether attention is guided by it",
    )  # fmt: skip


@check("sae_circuit_discovery", long=True)
def circuits() -> Measured:
    """Heads that tell task from corruption are found from ten prompts of each."""
    d, heads, planted = 16, 28, torch.arange(28) < 4

    def outputs(prompts: int, task: bool) -> Tensor:
        # Every head says one of four things; four of them say the first two on the task alone.
        thing = torch.randint(0, 4, (prompts, heads))
        thing[:, :4] = thing[:, :4] % 2 + (0 if task else 2)
        said = things[torch.arange(heads), thing]
        return said + 0.3 * torch.randn(prompts, heads, d)

    few: dict[str, Any] = {"codes": 128, "penalty": 0.1}
    found, chance = [], []
    for _ in range(8):
        things = 2 * torch.randn(heads, 4, d)
        task, corrupted = outputs(10, True), outputs(10, False)
        found.append(area_under(discover_circuit(task, corrupted, **few).heads, planted))
        both = torch.cat([task, corrupted])[torch.randperm(20)]
        chance.append(area_under(discover_circuit(both[:10], both[10:], **few).heads, planted))
    area, blind = sum(found) / 8, sum(chance) / 8
    return Measured(
        "of 28 heads, 4 say other things on a task than on corrupted prompts: with 10 prompts of "
        "each the score has an area under the curve over 0.95 (mean of eight draws), and between "
        "0.3 and 0.7 with labels shuffled",
        area > 0.95 and 0.3 < blind < 0.7,
        {"area": area, "worst draw": min(found), "labels shuffled": blind},
        left_out="circuits of GPT-2 (IOI, greater-than, docstring)",
    )  # fmt: skip


@check("instruction_tuning_shift")
def tuned() -> Measured:
    """Density and pairs tell what was planted; gradients rank as leaving out does."""
    importance = 0.05 * torch.rand(12, 8)
    importance[3] = 1.0  # all of the response copies from word 3
    importance[7, 2] = 0.95  # one word of it also needs word 7
    a = density(importance)
    embedding = F.normalize(torch.randn(50, 32), dim=-1)
    embedding[9] = F.normalize(embedding[4] + 0.5 * embedding[9], dim=0)  # 4 and 9 are alike
    pairs = word_pairs(embedding[[4]].T, embedding[[9]].T, embedding, top=1)

    shape = need("transformers", "hf", "makes a tiny model").GPT2Config(
        vocab_size=200, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    tiny = need("transformers", "hf", "makes a tiny model").GPT2LMHeadModel(shape).eval()
    model, tokenizer = load()
    text = "def total(numbers):\n    result = 0\n    for number in numbers:"
    real = torch.tensor(tokenizer(text)["input_ids"])
    prompts = [(tiny, torch.randint(1, 200, (12,))) for _ in range(6)] + [(model.float(), real)]
    ranks, deleted = [], []
    for one, prompt in prompts:
        said = one.generate(prompt[None], max_new_tokens=6, do_sample=False)[0, len(prompt) :]
        near = by_gradient(one, prompt, said)
        ranks.append(rank_correlation(blanked(one, prompt, said).flatten(), near.flatten()))
        deleted.append(rank_correlation(left_out(one, prompt, said).flatten(), near.flatten()))
    *ranks, demo = ranks
    mean = sum(ranks) / len(ranks)
    return Measured(
        "a word that all of the response copies from has the largest density, one that a single "
        "word needs has density 1; a channel of w_q = E[a], w_k = E[b] gives the pair (a, b); on "
        "a tiny GPT-2 gradients rank the words of a prompt as blanking their embeddings does "
        "(Spearman over 0.8)",
        int(a.argmax()) == 3 and abs(float(a[7]) - 1) < 1e-6 and pairs == {(4, 9)} and mean > 0.8,
        {"density, copied": float(a[3]), "density, used once": float(a[7]), "pairs": str(pairs),
         "blanking, tiny": mean, "deleting, tiny": sum(deleted[:-1]) / 6,
         "blanking, demo model": demo, "deleting, demo model": deleted[-1]},
        left_out="that gradients rank as deleting words does: they do not, nor as blanking does in "
        "a model with norms of size alone; models before and after tuning",
    )  # fmt: skip
