"""Attention in other processes: the same tokens, the bytes that were promised, no key here."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

import regard
from regard.core.errors import CapabilityError, RegardError
from regard.memories.remote import bandwidth, staggered, wire_bytes
from regard.memories.wire import Line, WireError, new_key
from regard.memories.workers import AttentionWorkers
from regard.policies.remote_attention import RemoteAttention
from tests.architectures import DECODERS, build

IDS = torch.randint(5, 60, (2, 30), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
REAL[0, :7] = 0
NEW: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None,
                       "pad_token_id": 0}  # fmt: skip


@pytest.fixture(scope="module")
def workers() -> Any:
    with AttentionWorkers(2) as made:
        yield made


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return build("llama", DECODERS["llama"], causal=True)


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"prefill_chunk_size": 8}, {"attention_mask": REAL}], ids=str
)
def test_tokens_are_the_same(how: dict[str, Any], workers: Any, model: Any) -> None:
    plain = model.generate(IDS, **NEW, **how)
    with regard.shrink(model, RemoteAttention(workers=workers), check=False) as shrunk:
        assert torch.equal(model.generate(IDS, **NEW, **how), plain)
        assert all(layer.memory.nbytes <= 2 * 38 * 8 * 3 for layer in shrunk.stage.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_step_are_those_of_the_formula(workers: Any, dtype: torch.dtype) -> None:
    memory = workers.remote()
    q, k = torch.randn(3, 8, 20, 16).to(dtype), torch.randn(3, 2, 20, 16).to(dtype)
    memory.append(k, k)
    whole = [memory.attend(q)]
    for _ in range(5):
        before = workers.sent + workers.received
        q1, k1 = torch.randn(3, 8, 1, 16).to(dtype), torch.randn(3, 2, 1, 16).to(dtype)
        memory.append(k1, k1)
        whole.append(memory.attend(q1))
        q, k = torch.cat((q, q1), 2), torch.cat((k, k1), 2)
        moved = workers.sent + workers.received - before
        assert moved == wire_bytes(8, 2, 16, 3, 1, dtype.itemsize)
    plain = regard.attend(q, k, k, regard.Causal())
    within = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(torch.cat(whole, 2), plain, atol=within, rtol=within)
    assert torch.equal(memory.read().k, k)
    memory.free()


def test_both_sides_are_busy_where_times_match() -> None:
    for n in (2, 3, 5):
        assert max(staggered(n, 1.0, 1.0 / (n - 1))) < 1e-6
    model, pool = staggered(4, 3.0, 2.0)  # the pool is the narrow place
    assert model > 0.4
    assert pool < 1e-6
    assert bandwidth(100.0, 3.0, 1.0, share=0.25) == 100.0


def test_wrong_uses_are_told(workers: Any) -> None:
    memory = workers.remote()
    x = torch.randn(1, 2, 3, 4)
    memory.append(x, x)
    with pytest.raises(RegardError, match="one for each token"):
        memory.attend(x[:, :, :2])
    with pytest.raises(CapabilityError, match="causal softmax"):
        memory.attend(x, regard.Rule(regard.Window(2)))
    with pytest.raises(CapabilityError, match="key heads"):
        workers.parts(1)
    dead = AttentionWorkers(1)
    other = dead.remote()
    other.append(x, x)
    dead._processes[0].kill()
    dead._processes[0].wait()
    with pytest.raises(CapabilityError, match="a worker that ended"):
        other.attend(x)
    dead.close()


def one_after_another(workers: AttentionWorkers, seed: int, steps: int = 12) -> float:
    """Largest error of some steps over a memory of its own."""
    memory, draw = workers.remote(), torch.Generator().manual_seed(seed)
    q, k, wrong = torch.empty(1, 4, 0, 8), torch.empty(1, 2, 0, 8), 0.0
    for _ in range(steps):
        n = int(torch.randint(1, 5, (), generator=draw))
        q1, k1 = torch.randn(1, 4, n, 8, generator=draw), torch.randn(1, 2, n, 8, generator=draw)
        memory.append(k1, k1)
        out = memory.attend(q1)
        q, k = torch.cat((q, q1), 2), torch.cat((k, k1), 2)
        whole = regard.attend(q, k, k, regard.Causal())[:, :, -n:]
        wrong = max(wrong, float((out - whole).abs().max()))
    memory.free()
    return wrong


def test_threads_that_share_workers_get_their_own_answers(workers: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        wrong = list(pool.map(lambda seed: one_after_another(workers, seed), range(12)))
    assert max(wrong) < 1e-5


def test_slopes_of_heads_go_with_their_heads(workers: Any) -> None:
    memory = workers.remote()
    rule = regard.Rule(score=regard.Dot() + regard.Alibi.for_heads(8))
    q, k = torch.randn(1, 8, 9, 16), torch.randn(1, 4, 9, 16)
    memory.append(k, k)
    wanted = regard.attend(q, k, k, rule.replace(support=regard.Causal()))
    torch.testing.assert_close(memory.attend(q, rule), wanted, atol=1e-5, rtol=1e-5)


def test_what_goes_wrong_in_a_worker_is_told_and_others_go_on(workers: Any) -> None:
    memory = workers.remote()
    x = torch.randn(1, 2, 3, 4)
    memory.append(x, x)
    memory.attend(x)
    memory.append(x[..., :3], x[..., :3])  # of another size than what is kept
    with pytest.raises(CapabilityError, match="one that failed"):
        memory.attend(x[..., :3])
    assert one_after_another(workers, 0, 2) < 1e-5


def test_an_exchange_that_was_broken_off_hands_out_no_answer_of_another() -> None:
    with AttentionWorkers(1) as own:
        memory, x = own.remote(), torch.randn(1, 2, 3, 4)
        memory.append(x, x)
        receive, own.lines[0].receive = own.lines[0].receive, interrupted
        with pytest.raises(KeyboardInterrupt):
            memory.attend(x)
        own.lines[0].receive = receive
        with pytest.raises(CapabilityError, match="was interrupted"):
            one_after_another(own, 0)


def interrupted() -> None:
    raise KeyboardInterrupt


def test_another_process_may_not_use_them(workers: Any) -> None:
    def child(line: Any) -> None:
        try:
            one_after_another(workers, 0)
        except CapabilityError as error:
            line.send(str(error))
        workers.close()  # has nothing to close here

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    one = context.Process(target=child, args=(theirs,))
    one.start()
    assert ours.poll(60)
    assert "another process" in ours.recv()
    one.join()
    assert one_after_another(workers, 1, 2) < 1e-5


def test_workers_end_with_their_parent() -> None:
    """Killed, and with a fork of it that still has the sockets."""
    code = (
        "import os, sys, time\n"
        "from regard.memories.workers import AttentionWorkers\n"
        "made = AttentionWorkers(2)\n"
        "if os.fork() == 0:\n"
        "    time.sleep(60)\n"
        "print(*(p.pid for p in made._processes), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    pids = [int(x) for x in parent.stdout.readline().split()]
    try:
        assert len(pids) == 2
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        until = time.monotonic() + 60
        while any(map(runs, pids)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(runs, pids))
    finally:
        os.killpg(parent.pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def line() -> Any:
    ends, key = socket.socketpair(), new_key()
    yield ends, Line(ends[0], key, first=True), Line(ends[1], key, first=False)
    for end in ends:
        end.close()


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_changed_message_is_refused(at: int, bit: int) -> None:
    ends, key = socket.socketpair(), new_key()
    with ends[0], ends[1]:
        Line(ends[0], key, first=True).send({"x": torch.arange(4.0), "rule": "{}"})
        message = bytearray(ends[1].recv(1 << 16))
        message[at % len(message)] ^= 1 << bit
        ends[0].sendall(message)
        with pytest.raises(WireError, match="message"):
            Line(ends[1], key, first=False).receive()


def test_messages_of_others_and_old_ones_are_refused(line: Any) -> None:
    ends, ours, theirs = line
    stranger = Line(ends[0], new_key(), first=True)
    stranger.send(1)
    with pytest.raises(WireError):
        theirs.receive()
    ends[1].recv(1 << 16)
    ours.send("first")
    message = ends[1].recv(1 << 16)
    for _ in range(2):
        ends[0].sendall(message)
    assert theirs.receive() == "first"
    with pytest.raises(WireError):  # the same once more
        theirs.receive()
    ends[1].sendall(message)
    with pytest.raises(WireError):  # our own, thrown back
        ours.receive()


def test_a_line_that_was_hung_up_has_an_end(line: Any) -> None:
    ends, ours, theirs = line
    ours.send("last")
    ends[0].shutdown(socket.SHUT_WR)
    assert theirs.receive() == "last"
    with pytest.raises(EOFError):
        theirs.receive()
