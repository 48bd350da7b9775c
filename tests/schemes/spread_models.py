"""Models over ranks, beside one process; run in processes by test_spreading.py."""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch
from torch.nn.functional import conv2d

from regard.core.errors import RegardError
from regard.models.attach import attach
from regard.models.stage import Edit
from regard.run.api import attend
from regard.schemes import Contiguous, ShardedKeys, peers_of, traffic
from regard.schemes.spreading import spread
from regard.schemes.video_clips import clip_rule, group_norm, with_borders

# Ranks that are threads share one stream of random numbers.
DRAWING = threading.Lock()


def tiny(**changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    kind = transformers.MistralConfig if "sliding_window" in changes else transformers.LlamaConfig
    config = kind(**{
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "pad_token_id": 0, **changes,
    })  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def one_step(model: Any, lr: float = 0.1) -> None:
    torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9).step()


def train(scheme: str, layout: str, kind: str, peers: Any = None) -> dict[str, Any]:
    """One optimizer step over ranks, and in one process: the largest differences."""
    b, n = (2, 29) if kind == "padding" else (1, 37)
    with DRAWING:
        model = tiny(**({"sliding_window": 7} if kind == "window" else {}))
        alone = copy.deepcopy(model)
        torch.manual_seed(1)
        ids = torch.randint(1, 50, (b, n))
    if kind == "checkpoints":
        model.train().gradient_checkpointing_enable()
    inputs: dict[str, Any] = {"input_ids": ids, "labels": ids.clone()}
    if kind == "documents":
        cuts = (11, 9, 17)
        inputs["position_ids"] = torch.cat([torch.arange(c) for c in cuts])[None]
        for start in (11, 20):
            inputs["labels"][:, start] = -100
    if kind == "padding":
        mask = torch.ones(b, n, dtype=torch.long)
        mask[1, 20:] = 0
        inputs["attention_mask"] = mask
        inputs["labels"][mask == 0] = -100
    one = alone(**inputs, use_cache=False)
    one.loss.backward()
    with spread(model, peers, scheme, layout=layout) as spreading, traffic() as sent:
        out = model(**inputs, use_cache=False)
        out.loss.backward()
        spreading.sum_gradients()
        loss = spreading.loss(out.loss)
        logits = spreading.gather(out.logits, n)
    real = inputs.get("attention_mask", torch.ones(b, n)).bool()
    grads = [
        float((x.grad - y.grad).abs().max() / (y.grad.abs().max() + 1e-3))
        for x, y in zip(model.parameters(), alone.parameters(), strict=True)
        if y.grad is not None
    ]
    one_step(model)
    one_step(alone)
    steps = [
        float((x - y).detach().abs().max())
        for x, y in zip(model.parameters(), alone.parameters(), strict=True)
    ]
    return {
        "loss": abs(loss - float(one.loss.detach())), "grads": max(grads), "step": max(steps),
        "logits": float((logits - one.logits.detach())[real].abs().max()), "sent": sent.sent,
    }  # fmt: skip


def trains(asked: list[list[str]], peers: Any = None) -> list[dict[str, Any]]:
    return [train(*one, peers=peers) for one in asked]


def generate(
    name: str, scheme: str, tokens: int, queries: int, new: int = 12, peers: Any = None
) -> dict[str, Any]:
    """Generate over ranks, and in one process."""
    from regard.models.loading import load

    mask = None
    with DRAWING:
        model = load()[0].float() if name == "shipped" else None
        changes = {"sliding_window": 7} if name == "window" else {}
        model = tiny(**changes).eval() if model is None else model
        torch.manual_seed(2)
        ids = torch.randint(3, int(model.config.vocab_size), (2 if name == "padded" else 1, tokens))
    if name == "padded":
        mask = torch.ones(2, tokens, dtype=torch.long)
        mask[1, :9] = 0
    with torch.no_grad():
        alone = model.generate(
            ids, attention_mask=torch.ones_like(ids) if mask is None else mask, max_new_tokens=new,
            min_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
    with spread(model, peers, scheme, layout="contiguous") as spreading:
        found = spreading.generate(ids, new, queries=queries, attention_mask=mask)
        held = [layer.keys.shape[2] for layer in spreading.cache.layers]
    return {
        "same": bool((found == alone).all()), "found": found[:, -new:].tolist(), "held": held,
        "seen": found.shape[1] - 1,
    }  # fmt: skip


def generates(asked: list[list[Any]], peers: Any = None) -> list[dict[str, Any]]:
    return [generate(*one, peers=peers) for one in asked]


def videos(frames: list[int], peers: Any = None) -> list[dict[str, Any]]:
    """Temporal attention, borders and norms of clips over ranks, beside one process."""
    peers = peers or peers_of(None)
    found = []
    for n in frames:
        for timestep in (None, 900.0, 100.0):
            draw = torch.Generator().manual_seed(n)
            rule = clip_rule(n, peers.world, near=3, many=4, timestep=timestep)
            cut = Contiguous(n, peers.world)
            q, k, v = (torch.randn(5, 4, n, 8, generator=draw) for _ in range(3))
            own = [cut.take(x, peers.rank, 2) for x in (q, k, v)]
            whole = attend(q, k, v, rule)
            keys = ShardedKeys.of(own[1], own[2], peers, layout=cut, scheme="gather")
            with traffic() as sent:
                out = attend(own[0], keys, rule=rule)
            x = torch.randn(2, 6, n, 3, generator=draw)
            mine = cut.take(x, peers.rank, 2)
            normed = group_norm(mine, 3, peers)
            with_all = torch.nn.functional.group_norm(x, 3)
            weight = torch.randn(6, 6, 3, 1, generator=draw)
            here = conv2d(with_borders(mine, 1, peers), weight)
            together = conv2d(x, weight, padding=(1, 0))
            found.append({
                "frames": n, "sent": sent.sent,
                "out": float((out - cut.take(whole, peers.rank, 2)).abs().max()),
                "norm": float((normed - cut.take(with_all, peers.rank, 2)).abs().max()),
                "conv": float((here - cut.take(together, peers.rank, 2)).abs().max()),
            })  # fmt: skip
    return found


def learnable(rows: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Texts whose next token is told by the one before the last: a model has to look back."""
    first = torch.randint(0, 49, (rows, 2), generator=draw)
    place = torch.arange(length)
    return (first[:, place % 2] + 3 * (place // 2)) % 49 + 1


def curve(scheme: str, steps: int, kind: str, peers: Any = None) -> list[list[float]]:
    """Train over ranks and in one process: both loss curves."""
    peers = peers or peers_of(None)
    with DRAWING:
        model = tiny(**({"sliding_window": 7} if kind == "window" else {}))
        alone = copy.deepcopy(model)
    cuts = (13, 9, 18)
    positions = torch.cat([torch.arange(c) for c in cuts])[None]
    draw = torch.Generator().manual_seed(3)
    curves: list[list[float]] = [[], []]
    both = [torch.optim.AdamW(x.parameters(), lr=1e-2) for x in (model, alone)]
    with spread(model, peers, scheme) as spreading:
        for _ in range(steps):
            ids = learnable(1, 40, draw)
            inputs = {"input_ids": ids, "labels": ids, "position_ids": positions}
            for optimizer in both:
                optimizer.zero_grad()
            loss = model(**inputs, use_cache=False).loss
            loss.backward()
            spreading.sum_gradients()
            curves[0].append(spreading.loss(loss))
            one = alone(**inputs, use_cache=False).loss
            one.backward()
            curves[1].append(float(one.detach()))
            for optimizer in both:
                optimizer.step()
    return curves


def edited(order: str, peers: Any) -> float:
    """Spread a model whose keys another stage edits, before or after: difference of logits."""
    with DRAWING:
        model = tiny().eval()
        ids = torch.arange(2, 41)[None]
    edit = Edit("k", lambda k: 0.5 * k, where={"heads": [1]})
    with torch.no_grad():
        with attach(model, [edit], check=False):
            alone = model(ids).logits
        first = attach(model, [edit], check=False) if order == "before" else None
        with spread(model, peers, "ring") as spreading:
            after = attach(model, [edit], check=False) if order == "after" else None
            logits = spreading.gather(model(ids).logits, ids.shape[1])
            if after is not None:
                after.detach()
        if first is not None:
            first.detach()
    return float((logits - alone).abs().max())


def edits() -> list[float]:
    return [edited(order, peers_of(None)) for order in ("before", "after")]


def sharded_training(scheme: str, steps: int) -> list[list[float]]:
    """Train on 2 texts x 2 pieces with FSDP2 over all four ranks, and in one process: both curves.

    As torchtitan has it: the mesh is (dp_shard, cp), parameters are sharded over both, flattened.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_shard", "cp"))
    flat = mesh["dp_shard", "cp"]._flatten("dp_shard_cp")
    model = tiny(sliding_window=7)
    alone = copy.deepcopy(model)
    for layer in model.model.layers:
        fully_shard(layer, mesh=flat)
    fully_shard(model, mesh=flat)
    cuts = (13, 9, 18)
    positions = torch.cat([torch.arange(c) for c in cuts])[None]
    draw = torch.Generator().manual_seed(3)
    curves: list[list[float]] = [[], []]
    both = [torch.optim.AdamW(x.parameters(), lr=1e-2) for x in (model, alone)]
    text = mesh.get_local_rank("dp_shard")
    with spread(model, mesh, scheme, dim="cp") as spreading:
        for _ in range(steps):
            ids = learnable(2, 40, draw)
            inputs = {"position_ids": positions, "use_cache": False}
            for optimizer in both:
                optimizer.zero_grad()
            own = ids[text : text + 1]
            loss = model(input_ids=own, labels=own, **inputs).loss
            # FSDP divides by its four ranks, and two of them are pieces of one text.
            (2 * loss).backward()
            total = torch.tensor([spreading.loss(loss)])
            torch.distributed.all_reduce(total, group=mesh.get_group("dp_shard"))
            curves[0].append(float(total) / 2)
            one = torch.stack([
                alone(input_ids=x, labels=x, **inputs).loss for x in ids.split(1)
            ]).mean()  # fmt: skip
            one.backward()
            curves[1].append(float(one.detach()))
            for optimizer in both:
                optimizer.step()
    return curves


def cut_layers(kind: str) -> str:
    """What is said of a model under tensor parallelism, with FSDP2 and without."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    shape, names = ((1, 2), ("dp", "tp"))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model = tiny()
    for layer in model.model.layers:
        parallelize_module(layer, mesh["tp"], {"self_attn.q_proj": ColwiseParallel()})
        if kind == "both":
            fully_shard(layer, mesh=mesh["dp"])
    try:
        spread(model, None, "ring")
    except RegardError as error:
        return str(error)
    return "not refused"
