"""A pretrained model over ranks beside one process; run in processes by test_pretrained_decode.py.

The model is loaded at the first call of `loaded`: ranks forked after it share it.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch

from regard.models.loading import packaged
from regard.schemes import peers_of, traffic
from regard.schemes.spreading import spread

TEXT = """The harbor was built in three parts, and each of them was late. The first part was the
wall, which kept the sea away from the boats. It took nine years, because the stones had
to be brought from a quarry on the other side of the bay, and the barges could only sail
in summer. The second part was the lighthouse. Its keeper, a woman named Agnes Halloran,
wrote down the weather every morning and every evening for thirty-one years, and her
books are still kept in the town library. The third part was the railway, which brought
coal down to the quay and carried fish back up into the hills. When the railway closed,
the harbor lost half of its trade in a single winter, but the wall and the lighthouse
still stand, and visitors who climb to the top can see the quarry across the bay. The
keeper of the lighthouse, who wrote down the weather every morning and every evening,
was a woman named"""
NEW = 16
# A rank waits while the first one generates alone.
PATIENCE = 500.0


@cache
def loaded() -> tuple[Any, Any]:
    """Load the model and its tokenizer once."""
    return packaged("smollm2")


def generated(scheme: str, layout: str) -> dict[str, Any]:
    """Generate greedily over the ranks, and on the first rank alone too."""
    torch.set_num_threads(1)
    (model, tokenizer), peers = loaded(), peers_of(None, timeout=PATIENCE)
    ids = tokenizer(" ".join(TEXT.split()), return_tensors="pt").input_ids
    alone = None
    if peers.rank == 0:
        with torch.no_grad():
            alone = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
                do_sample=False, pad_token_id=0, eos_token_id=None,
            )[0, -NEW:].tolist()  # fmt: skip
    with spread(model, peers, scheme, layout=layout, timeout=PATIENCE) as spreading:
        busy = time.process_time()
        with traffic() as sent:
            found = spreading.generate(ids, NEW)[0, -NEW:].tolist()
        busy = time.process_time() - busy
        held = [layer.keys.shape[2] for layer in spreading.cache.layers]
    return {
        "tokens": found, "alone": alone, "text": tokenizer.decode(found), "prompt": ids.shape[1],
        "held": sorted(set(held)), "sent": sent.sent, "cpu_seconds": round(busy, 2),
    }  # fmt: skip
