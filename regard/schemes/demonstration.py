"""A demonstration of spreading the included model, for the shell and the documentation."""

from __future__ import annotations

import time
from typing import Any

import torch

from regard.models.loading import load
from regard.run.counting import counted
from regard.schemes.messages import traffic
from regard.schemes.spreading import spread


def show(scheme: str, layout: str, tokens: int, new: int) -> dict[str, Any]:
    """Spread the included model on this rank; report what it held, scored and sent, and its error.

    Run in every process of a group, by `regard.schemes.local_processes.results`.
    """
    model, _ = load()
    model = model.float()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, int(model.config.vocab_size), (1, tokens), generator=generator)
    with torch.no_grad():
        alone = model(ids, labels=ids)
        text = ids
        for _ in range(new):
            text = torch.cat((text, model(text).logits[:, -1:].argmax(-1)), 1)
    with spread(model, None, scheme, layout=layout) as spreading, torch.no_grad():
        before, began = counted(), time.perf_counter()
        with traffic() as sent:
            out = model(ids, labels=ids)
        seconds, pairs = time.perf_counter() - began, counted().less(before).pairs
        loss = spreading.loss(out.loss)
        logits = spreading.gather(out.logits, tokens)
        with traffic() as decoding:
            generated = spreading.generate(ids, new) if new else ids
        peers = spreading.peers
        return {
            "rank": peers.rank, "tokens": len(spreading.positions(tokens)), "pairs": pairs,
            "sent": sent.sent, "messages": sent.messages.total(), "seconds": seconds,
            "loss": loss, "loss alone": float(alone.loss),
            "logits off by": float((logits - alone.logits).abs().max()),
            "sent a token": (decoding.sent - sent.sent) / max(1, new),
            "same tokens": bool((generated == text).all()),
        }  # fmt: skip
