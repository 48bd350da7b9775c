"""A planted twin is matched first and shared without loss; parameters are what a table says."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from regard.conversions.head_sharing import apart, chosen_matches, post_share, share_heads
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama

# Which stream of the runner's seed the second model is made from.
OTHER = 1


@check("direct_share_post_share", beyond="large models")
def shared_heads() -> Claims:
    """A planted twin is matched first and shared without loss; parameters are what a table says."""
    import copy

    ids = torch.randint(3, 60, (2, 24))
    model = llama(4)
    # `llama` says Module, whose parts the type checker takes for tensors.
    inner: torch.nn.ModuleList = model.model.layers  # type: ignore[assignment, union-attr]
    with torch.no_grad():
        for name, size in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16)):
            a, b = (getattr(inner[x].self_attn, name).weight for x in (3, 1))
            a[:size] = b[size : 2 * size]  # key head 0 of layer 3 is key head 1 of layer 1
        plain = model(ids).logits
        none, one = copy.deepcopy(model), copy.deepcopy(model)
        share_heads(none, 0.0)
        (first,) = share_heads(one, 1 / 8)
        same, lossless = gap(none(ids).logits, plain), gap(one(ids).logits, plain)
        three = copy.deepcopy(model)
        taken = share_heads(three, 3 / 8)
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in three.parameters())
    table = len(taken) * (32 + 16 + 16) * 64

    # A small model that has learned to go on counting.
    restart()
    small = llama(3, seed=OTHER)

    def rows() -> Tensor:
        start, pace = torch.randint(48, (16, 1)), torch.randint(1, 5, (16, 1))
        return 3 + (start + pace * torch.arange(24)) % 48

    optimizer = torch.optim.AdamW(small.parameters(), lr=3e-3)
    for _ in range(150):
        loss = small(x := rows(), labels=x, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    told, shown = [rows() for _ in range(8)], [rows() for _ in range(8)]

    def loss_of(tried: torch.nn.Module) -> float:
        with torch.no_grad():
            return sum(float(tried(x, labels=x).loss) for x in told) / len(told)

    direct, post = copy.deepcopy(small), copy.deepcopy(small)
    pairs = chosen_matches(small, 0.3)
    share_heads(direct, 0.3, pairs)
    far: list[float] = [float(apart(post, pairs).detach())]
    post_share(post, 0.3, shown, steps=80, rate=2e-3, progress=lambda _, x: far.append(x))
    # Part of what PostShare wins is training: share first, and train as long on the same texts.
    peer = copy.deepcopy(direct)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=2e-3)
    for step in range(80):
        loss = peer(x := shown[step % len(shown)], labels=x, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after, trained, tuned = loss_of(direct), loss_of(post), loss_of(peer)
    smoothed = [sum(far[i : i + 10]) / 10 for i in range(1, len(far) - 9, 10)]
    yield claim("Ratio 0 leaves", "difference", same).equals(0.0, "the model")
    yield claim("two planted identical", "first match", str(first[:4])).equals(
        "(3, 0, 1, 1)", "the planted pair"
    )
    yield claim("two planted identical", "difference of shared twins", lossless).within(
        1e-5, "the model", because=FLOAT32
    )
    yield claim(
        "PostShare lowers",
        "rises of the distance, means of ten steps",
        sum(b >= a for a, b in itertools.pairwise(smoothed)),
    ).equals(0, "none: monotonically")
    yield claim("PostShare lowers", "loss of PostShare at 30%", trained).below(
        after, "DirectShare's"
    )
    yield claim("PostShare lowers", "the same", trained).below(
        tuned, "DirectShare's, trained on the same texts for as many steps"
    )
    yield claim("parameter count", "parameters saved", count).equals(table, "the index table's")
