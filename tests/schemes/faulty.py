"""Faults that ranks may have: each function is run by every rank of a job of test_faults.py."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from regard.core.rule import Rule
from regard.core.score import Dot, KeyWeights, ScoreStep
from regard.core.support import Causal, Documents, Window
from regard.run.api import attend
from regard.schemes import Contiguous, ShardedKeys, ZigZag, peers_of
from regard.schemes.lasp2 import scan_sharded

# Seconds that a message may take.
SHORT = 1.5


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(120)


def _rank() -> int:
    return dist.get_rank()


def _all_are_there() -> None:
    """Wait until the ranks are connected: one that ends at once breaks the start of another."""
    dist.barrier()


def _call(
    rule: Any = None, *, n: int = 8, h: int = 2, g: int = 1, d: int = 4, b: int = 1,
    dtype: torch.dtype = torch.float32, layout: Any = None, scheme: str | None = None,
    grad: bool = False, executor: str | None = None, tokens: int | None = None,
    queries: int | None = None, real: Any = None, dropout: float = 0.0, same: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attend over the ranks; every argument is a way to be wrong."""
    peers = peers_of(None, timeout=SHORT)
    layout = layout or Contiguous(n, peers.world)
    c = len(layout.positions(peers.rank)) if tokens is None else tokens
    torch.manual_seed(0)
    q = torch.randn(b, h, c if queries is None else queries, d, dtype=dtype, requires_grad=grad)
    k = torch.randn(b, g, c, d, dtype=dtype)
    keys = ShardedKeys.of(k, k, peers, layout=layout, scheme=scheme, real=real, same_queries=same)
    rule = Rule(Causal()) if rule is None else rule
    at = torch.arange(q.shape[2]) if same else None
    return q, attend(q, keys, rule=rule, executor=executor, dropout=dropout, q_positions=at)


def _both(on_one: dict[str, Any], **both: Any) -> None:
    """Call alike on all ranks, but for rank 1."""
    _call(**{**both, **(on_one if _rank() == 1 else {})})


def _at(place: str, act: Any, grad: bool = True, scheme: str = "ring") -> None:
    """Do something on rank 1 before, in or after the messages of a call."""
    from regard.schemes import ring_attention as home
    from regard.schemes import ring_passes

    if _rank() == 1 and place == "before":
        act()
    if _rank() == 1 and place == "within":
        plain = home.partial_over

        def broken(*args: Any) -> Any:
            act()
            return plain(*args)

        home.partial_over = broken  # type: ignore[assignment]
    _q, out = _call(grad=grad, scheme=scheme, n=12)
    if _rank() == 1 and place == "after":
        act()
    if _rank() == 1 and place == "in backward":
        ring_passes.part_grads = lambda *_: act()  # type: ignore[assignment]
    out.sum().backward()
    _call(n=12, scheme=scheme)


def _raise() -> None:
    raise ValueError("rank 1 has an error of its own")


def _function(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    if dist.get_rank() == 1 and i.numel() > 1:
        raise ValueError("a rule that fails on rank 1")
    return s


def _documents(cut: int) -> Rule:
    ids = (torch.arange(8) >= cut).long()
    return Rule(Causal() & Documents(ids))


def killed_before() -> None:
    _at("before", _kill)


def killed_within() -> None:
    _at("within", _kill)


def killed_after() -> None:
    _at("after", _kill)


def killed_in_backward() -> None:
    _at("in backward", _kill)


def killed_in_backward_of_burst() -> None:
    _at("in backward", _kill, scheme="burst")


def left_before() -> None:
    _at("before", lambda: os._exit(0))


def hangs_before() -> None:
    _at("before", _hang)


def hangs_within() -> None:
    _at("within", _hang)


def hangs_after() -> None:
    _at("after", _hang)


def raises_before() -> None:
    _at("before", _raise)


def raises_within() -> None:
    _at("within", _raise)


def raises_in_backward() -> None:
    _at("in backward", _raise)


def raises_in_a_rule() -> None:
    _call(Rule(Causal(), Dot() + ScoreStep(_function)), scheme="gather")
    _call(n=8)


def another_rule() -> None:
    _both({"rule": Rule()})


def another_window() -> None:
    _both({"rule": Rule(Causal() & Window(3))}, rule=Rule(Causal() & Window(4)))


def other_documents() -> None:
    _both({"rule": _documents(3)}, rule=_documents(5))


def another_dtype() -> None:
    _both({"dtype": torch.bfloat16})


def another_length() -> None:
    _both({"n": 10})


def another_layout() -> None:
    _both({"layout": ZigZag(8, 2)})


def another_scheme() -> None:
    _both({"scheme": "gather"}, scheme="ring")


def more_heads() -> None:
    _both({"h": 4})


def another_head_size() -> None:
    _both({"d": 8})


def another_batch() -> None:
    _both({"b": 2})


def one_call_behind() -> None:
    if _rank() == 0:
        peers_of(None, timeout=SHORT).calls += 1
    _call()


def gradients_on_one_rank() -> None:
    _both({"grad": True})


def another_torch() -> None:
    if _rank() == 1:
        torch.__version__ = "2.0.0"
    _call()


def another_state() -> None:
    x = torch.ones(1, 1, 4, 3 if _rank() == 1 else 2)
    scan_sharded(x, x, x, timeout=SHORT)


def killed_in_a_scan() -> None:
    x = torch.ones(1, 1, 4, 2)
    scan_sharded(x, x, x, timeout=SHORT)
    if _rank() == 1:
        _kill()
    scan_sharded(x, x, x, timeout=SHORT)


def killed_in_decoding() -> None:
    _call(same=True, queries=1)
    if _rank() == 1:
        _kill()
    _call(same=True, queries=1)


def interrupted() -> None:
    # A shell that starts tests in the background has them ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    peers_of(None, timeout=60.0)
    time.sleep(120)


def a_world_of_one() -> None:
    os.environ["WORLD_SIZE"] = "2"
    _call()


def layout_of_three() -> None:
    _all_are_there()
    _call(layout=Contiguous(9, 3))


def too_few_keys() -> None:
    _both({"tokens": 3})


def too_few_queries() -> None:
    _both({"queries": 3})


def padding_of_a_part() -> None:
    _all_are_there()
    _call(real=torch.ones(1, 4, dtype=torch.bool))


def heads_that_do_not_divide() -> None:
    _all_are_there()
    _call(h=3, g=2)


def drops_weights() -> None:
    _all_are_there()
    _call(dropout=0.5)


def bias_of_a_part() -> None:
    _all_are_there()
    _call(Rule(score=Dot() + KeyWeights(torch.zeros(1, 1, 8))))


def one_device_alone() -> None:
    _all_are_there()
    _call(executor="fused")


def unknown_scheme() -> None:
    _all_are_there()
    _call(scheme="rings")
