"""Density and pairs tell what was planted; gradients rank as leaving out does."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from regard.analysis.scan_and_snap import rank_correlation
from regard.analysis.tuning_shift import blanked, by_gradient, density, left_out, word_pairs
from regard.core.errors import need
from regard.models.loading import load
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim


@check("instruction_tuning_shift", beyond="models before and after tuning")
def tuned() -> Claims:
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
    yield claim("Planted test", "word of the largest density", int(a.argmax())).equals(
        3, "the one that everything copies"
    )
    yield claim("Planted test", "density of a word that is used once", float(a[7])).within(
        1e-6, "1", value=1, because=FLOAT32
    )
    yield claim("with weights w_q=E[a]", "pair that is returned", str(pairs)).equals(
        "{(4, 9)}", "(a, b)"
    )
    yield claim(
        "the gradient attribution",
        "Spearman with leave-one-out, mean of six prompts",
        sum(deleted[:-1]) / 6,
    ).above(0.8, "the catalogue's bound", because=CATALOGUE)
    yield claim(
        "the gradient attribution",
        "Spearman with blanked embeddings, mean of six prompts",
        sum(ranks[:-1]) / 6,
    ).above(0.8, "the catalogue's bound", because=CATALOGUE)
