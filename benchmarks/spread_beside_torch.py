"""torch's own context parallel beside ours, over CPU processes: what runs, and what is right.

    python benchmarks/spread_beside_torch.py --save spread-beside-torch

torch has two: for `flex_attention` (keys and values of all ranks are gathered, a block mask is
rewritten) and for `scaled_dot_product_attention` (a ring). A row says by how much the output is off
from one process and which bytes a rank sent for it (counted for ours; for torch what its gathering
must send), and by how much the gradients are off; or the error in place of them. No times: without
a compiler flex attention on a CPU is the plain equation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import regard
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.score import Dot, ScoreStep, SoftCap
from regard.core.support import Causal, Window, documents_from_lengths
from regard.run.runner import run
from regard.schemes import Contiguous, ShardedKeys, peers_of, traffic
from regard.schemes.local_processes import results

HEADS, KEY_HEADS, SIZE = 4, 2, 32


class Flex(nn.Module):
    """flex_attention as a module: torch's context parallel hooks into modules."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        made: Tensor = flex_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **more)
        return made


def flex_over(mesh: Any, visible: Callable[..., Tensor], tokens: int) -> tuple[Flex, Any]:
    """Return torch's module over a mesh, and the block mask of this rank's queries."""
    from torch.distributed.tensor.experimental._context_parallel import _attention as home
    from torch.nn.attention.flex_attention import create_block_mask

    # Compiled by default, which needs a compiler and minutes; the function is the same.
    # The plain function replaces its compiled form.
    home._compiled_create_block_mask = create_block_mask  # type: ignore[assignment]
    whole = create_block_mask(visible, 1, 1, tokens, tokens, device="cpu")
    (mask,) = home._context_parallel_shard(mesh, [whole], [2])
    style = home._ContextParallel(
        seq_dim=2, attention_type=home._ContextParallel.AttentionType.FLEX
    )
    return style._apply(Flex(), mesh), mask


def cases(tokens: int) -> dict[str, tuple[Rule, Callable[..., Tensor], Any]]:
    """Rules of ours, and the mask and score functions that say the same to flex attention."""
    lengths = [tokens // 2 - 7, 7, tokens - tokens // 2]
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))

    def causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j

    def window(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j < 100)

    def documents(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (ids[i] == ids[j])

    def capped(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return 5.0 * torch.tanh(s / 5.0)

    def far(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s - torch.log1p((i - j).abs().float())

    return {
        "causal": (Rule(Causal()), causal, None),
        "window 100": (Rule(Causal() & Window(100)), window, None),
        "3 documents": (Rule(Causal() & documents_from_lengths(lengths)), documents, None),
        "soft cap": (Rule(Causal(), Dot() >> SoftCap(5.0)), causal, capped),
        "log of distance": (Rule(Causal(), Dot() + ScoreStep(far)), causal, far),
    }


def told(error: Exception) -> str:
    """Return the kind of an error, and the beginning of what it says."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"


def one_rank(tokens: int) -> list[dict[str, Any]]:
    """What this rank found of every case: ours, torch's for flex, and torch's for SDPA."""
    from torch.distributed.device_mesh import init_device_mesh

    peers = peers_of(None)
    mesh = init_device_mesh("cpu", (peers.world,), mesh_dim_names=("cp",))
    cut, rank = Contiguous(tokens, peers.world), peers.rank
    torch.manual_seed(0)
    q, d_out = torch.randn(2, 1, HEADS, tokens, SIZE).unbind(0)
    k, v = torch.randn(2, 1, KEY_HEADS, tokens, SIZE).unbind(0)
    whole = [x.clone().requires_grad_(True) for x in (q, k, v)]
    found = []
    for title, (rule, visible, score) in cases(tokens).items():
        one = run(Call.of(*whole, rule)).out
        right = [one.detach(), *torch.autograd.grad(one, whole, d_out)]
        own = [cut.take(x, rank, 2).requires_grad_(True) for x in (q, k, v)]

        def ours(own: list[Tensor], rule: Rule = rule) -> Tensor:
            return regard.attend(
                own[0], ShardedKeys.of(own[1], own[2], peers, layout=cut), rule=rule
            )

        def flex(own: list[Tensor], visible: Any = visible, score: Any = score) -> Tensor:
            module, mask = flex_over(mesh, visible, tokens)
            made: Tensor = module(*own, block_mask=mask, score_mod=score)
            return made

        def ring(own: list[Tensor]) -> Tensor:
            from torch.distributed.tensor.experimental import context_parallel

            with context_parallel(mesh):
                return torch.nn.functional.scaled_dot_product_attention(
                    own[0], *(x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in own[1:]),
                    is_causal=True,
                )  # fmt: skip

        calls = {"regard": ours, "torch, flex": flex}
        if title == "causal":
            calls["torch, SDPA"] = ring
        for name, call in calls.items():
            row: dict[str, Any] = {"case": title, "call": name}
            dist.barrier()
            try:
                with traffic() as sent:
                    out = call([x.detach() for x in own])
            except Exception as error:
                row["error"] = told(error)
            else:
                row["off_by"] = float((out - cut.take(right[0], rank, 2)).abs().max())
                all_keys = 2 * 4 * own[1].numel() * (peers.world - 1)
                row["sent"] = sent.sent if name == "regard" else all_keys
            try:
                got = torch.autograd.grad(call(own), own, cut.take(d_out, rank, 2))
            except Exception as error:
                row["error_with_gradients"] = told(error)
            else:
                row["gradients_off_by"] = max(
                    float((x - cut.take(y, rank, 2)).abs().max())
                    for x, y in zip(got, right[1:], strict=True)
                )
            found.append(row)
    return found


def main() -> None:
    from side_by_side import save  # the ranks import this file from elsewhere

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    said = parser.parse_args()
    rows = []
    for world in (2, 4):
        for tokens in (1024, 1000):
            ranks = results(world, f"{__file__}:one_rank", tokens, timeout=300.0)
            for each in zip(*ranks, strict=True):
                row = {"processes": world, "tokens": tokens, **each[0]}
                for part in ("off_by", "sent", "gradients_off_by"):
                    if part in row:
                        row[part] = max(x[part] for x in each)
                rows.append(row)
                print(row, flush=True)
    if said.save:
        save(said.save, rows, heads=HEADS, key_heads=KEY_HEADS, size=SIZE)


if __name__ == "__main__":
    main()
