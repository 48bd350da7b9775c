"""Maps keep their threshold, layers read earlier ones, and bytes fall by the layers shared."""

from __future__ import annotations

import torch

from regard.models.attach import attach
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.policies.calibration import calibrate
from regard.policies.registry import policy
from regard.policies.sharing import KVSharer, Sharing
from regard.verbs import shrink


@check(
    "kv_sharer",
    narrowed={
        "cache bytes fall": "K and V of sharing layers are still computed, so no product is skipped"
    },
    left_out={"on a small trained LM": "a random model: no order can be told from another there"},
)
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
            made(texts[0])
            report = shrunk.report()
            cached = made(texts[0]).logits
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
    yield claim("Identity map gives", "difference of logits", identity).within(
        1e-4, "the model", because=FLOAT32
    )
    yield claim("cache bytes fall", "bytes of full", share).within(
        1e-3, "1 - C/L", value=0.75, because="positions beside keys"
    )
    yield claim("cache bytes fall", "difference of the cache", gap(cached, by_stage)).within(
        1e-4, "sharing without one", because=FLOAT32
    )
    yield claim("accepted maps satisfy", "cosine, measured again", cosine).above(
        one.least, "the threshold"
    )
    yield claim(
        "no source has", "sources are earlier layers with keys of their own", backwards and chains
    ).equals(True, "all")
