"""Maps keep their threshold, layers read earlier ones, and bytes fall by the layers shared."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from regard.models.attach import attach
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.shipped_model import loss_of, trained
from regard.papers.shared.small_llama import llama
from regard.policies.calibration import calibrate
from regard.policies.registry import policy
from regard.policies.sharing import KVSharer, Sharing
from regard.verbs import shrink


@check("kv_sharer", beyond="perplexity of models of 7B to 70B")
def sharer() -> Claims:
    """Maps keep their threshold, layers read earlier ones, and bytes fall by the layers shared."""
    import tempfile
    from pathlib import Path

    made = llama(layers=8)
    restart()
    texts = [torch.randint(3, 64, (1, 64)) for _ in range(6)]
    with tempfile.TemporaryDirectory() as folder:
        path = calibrate(made, "kv_sharer", texts, to=Path(folder) / "map")
        with shrink(made, "kv_sharer", calibrate=path, check=False) as shrunk, torch.no_grad():
            one = shrunk.policies[0]
            with FlopCounterMode(display=False) as shared_flops:
                made(texts[0])
            report = shrunk.report()
            cached = made(texts[0]).logits
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            made(texts[0])
    linear = torch.ops.aten.mm
    products = [x.get_flop_counts()["Global"].get(linear, 0) for x in (flops, shared_flops)]
    assert isinstance(one, KVSharer)
    with torch.no_grad():
        plain = [
            made(x, use_cache=False, output_hidden_states=True).hidden_states[-1] for x in texts
        ]
        with attach(made, [Sharing(one.sources)], check=False):
            by_stage = made(texts[0], use_cache=False).logits
        with shrink(made, policy("kv_sharer"), keep=1.0, check=False):
            kept = made(texts[0]).logits
        identity = gap(kept, made(texts[0]).logits)
    cosine = KVSharer.closeness(made, texts, plain, one.sources)
    backwards = all(source < layer for layer, source in one.sources.items())
    chains = not set(one.sources) & set(one.sources.values())
    share = report.bytes / report.full_bytes
    shipped, ids = trained()
    own, full = policy("kv_sharer", share=0.25, least=0.5), loss_of(shipped, ids)
    assert isinstance(own, KVSharer)
    halves = list(ids[:, :96].split(1))  # calibrated on the first halves of the texts
    list(own.learn(shipped, halves, {}, dict))
    with torch.no_grad():
        states = [
            shipped(x, use_cache=False, output_hidden_states=True).hidden_states[-1] for x in halves
        ]
        rises = {}
        for pair in [{i: j} for i in range(4) for j in range(i)]:
            if KVSharer.closeness(shipped, halves, states, pair) > own.least:
                with attach(shipped, [Sharing(pair)], check=False):
                    rises[str(pair)] = float(shipped(ids, labels=ids, use_cache=False).loss) - full
    far, chance = rises[str(own.sources)], sum(rises.values()) / len(rises)
    yield claim("Identity map gives", "difference of logits", identity).within(
        1e-4, "the model", because=FLOAT32
    )
    yield claim("cache bytes fall", "bytes of full", share).within(
        1e-3, "1 - C/L", value=0.75, because="positions beside keys"
    )
    yield claim("cache bytes fall", "difference of the cache", gap(cached, by_stage)).within(
        1e-4, "sharing without one", because=FLOAT32
    )
    # Of each layer that shares: keys and values [64, 64] times [64, 32], two operations a product.
    yield claim(
        "cache bytes fall", "operations of projections less", products[0] - products[1]
    ).equals(len(one.sources) * 2 * 2 * 64 * 64 * 32, "those of K and V of the layers that share")
    yield claim("accepted maps satisfy", "cosine, measured again", cosine).above(
        one.least, "the threshold"
    )
    yield claim(
        "no source has", "sources are earlier layers with keys of their own", backwards and chains
    ).equals(True, "all")
    yield claim(
        "on a small trained LM", "rise of the loss, the most dissimilar pair first", far
    ).at_most(chance, "mean over all pairs that a random order could come to")
