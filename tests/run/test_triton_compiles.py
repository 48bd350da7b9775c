"""The kernels compile for a Hopper GPU where there is none: Triton brings its own assembler.

The interpreter accepts much that the compiler does not. A process of its own, with the interpreter
off, compiles every kernel for the shapes it would be launched with, and launches nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, SoftCap
from regard.core.support import Causal, Everything, Sinks, Window

pytest.importorskip("triton")
CASES = ("decode", "paged", "chosen", "packed", "survey", "survey-steps", "survey-small")
# Bits, head size, tokens of a group, dtype
PACKINGS = (
    (4, 128, 32, torch.bfloat16), (8, 128, 32, torch.float16), (2, 128, 32, torch.bfloat16),
    (4, 80, 256, torch.bfloat16), (4, 256, 16, torch.bfloat16), (2, 64, 1, torch.float32),
)  # fmt: skip
SHARED_BYTES = 227 * 1024  # of a Hopper multiprocessor


@pytest.mark.parametrize("case", CASES)
def test_kernels_compile_for_hopper(case):
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__, case], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "shared" in done.stdout


def made(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16)


def run(case: str) -> None:
    from regard.run.triton.decode import decode, per_head
    from regard.run.triton.packed import decode_packed
    from regard.run.triton.survey import run_survey

    if case.startswith("survey"):
        q, k = made(1, 8, 4096, 128), made(1, 2, 4096, 128)
        rule = Rule(Causal() & (Window(1024) | Sinks(1)))
        tile = 64
        if case == "survey-steps":
            rule = Rule(Everything(), Dot() + Alibi.for_heads(8) >> SoftCap(30.0))
            tile = 128
        if case == "survey-small":
            q, k, tile = made(1, 1, 1, 20), made(1, 1, 1, 20), 16
        run_survey(Call.of(q, k, k, rule), ("entropy", "received", "tiles"), tile)
        return
    b, h, g, d = 8, 32, 8, 128
    whole = torch.zeros(b, dtype=torch.int32)
    given = {"first": whole, "lengths": whole, "scale": 0.1}
    given |= {"window": per_head(64, h, 0, whole.device), "sinks": per_head(1, h, 0, whole.device)}
    if case == "decode":
        for n in (1, 4):
            decode(made(b, h, n, d), made(b, g, 4096, d), made(b, g, 4096, d), **given)
        decode(*(x.float() for x in (made(b, h, 1, 256), *[made(b, g, 99, 256)] * 2)), **given)
    if case == "paged":
        table = torch.zeros(b, 512, dtype=torch.int32)
        for page in (16, 64, 256):
            pages = made(99, g, page, d)
            decode(made(b, h, 1, d), pages, pages, table=table, **given)
    if case == "chosen":
        for count in (1, 2048):
            index = torch.zeros(b, g, count, dtype=torch.int32)
            keys = made(b, g, 4096, d)
            decode(made(b, h, 1, d), keys, keys, index=index, **given)
            plain = {"scale": 0.1, "first": 4095, "lengths": 4096}
            decode(made(b, h, 1, d), keys, keys, index=index.long(), **plain)
    if case == "packed":
        for bits, size, group, dtype in PACKINGS:
            m, wide = 4096, -(-size * bits // 8)
            codes = torch.zeros(b, g, m, wide, dtype=torch.uint8)
            k_scale, v_scale = (
                torch.zeros(b, g, *x, dtype=torch.float16) for x in ((m // group, size), (m, 1))
            )
            q, tail = made(b, h, 1, size).to(dtype), made(b, g, 40, size).to(dtype)
            k, v = (codes, k_scale, k_scale), (codes, v_scale, v_scale)
            decode_packed(q, k, v, (bits, bits), (tail, tail), size=size, scale=0.1)


def compile_instead_of_launching() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    names = {
        torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32",
        torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
    }  # fmt: skip

    def compiled(self, *args, grid, warmup, **kwargs):
        options = {x: kwargs.pop(x) for x in ("num_warps", "num_stages") if x in kwargs}
        given = dict(zip(self.arg_names, args, strict=False)) | kwargs
        signature, fixed, attrs = {}, {}, {}
        for place, name in enumerate(self.arg_names):
            x = given[name]
            varies = self.params[place].do_not_specialize
            if self.params[place].is_constexpr or (isinstance(x, int) and x == 1 and not varies):
                signature[name], fixed[(place,)] = "constexpr", x
            elif isinstance(x, float):
                signature[name] = "fp32"
            else:
                signature[name] = names[x.dtype] if torch.is_tensor(x) else "i32"
                if torch.is_tensor(x) or (x % 16 == 0 and not varies):
                    attrs[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(self, signature, fixed, attrs)
        kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        text = kernel.asm["ttgir"]
        kinds = [x for x in ("warp_group_dot", "async_copy", "mma") if x in text]
        print(self.__name__, options, f"shared {kernel.metadata.shared}", *kinds)
        assert kernel.metadata.shared <= SHARED_BYTES

    JITFunction.run = compiled


if __name__ == "__main__":
    compile_instead_of_launching()
    run(sys.argv[1])
