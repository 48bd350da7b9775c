"""Scans: a memory that forgets, is written and is read, token by token.

`S_t = decay_t S_{t-1} + k_t u_t^T`, `o_t = q_t S_t`, with `u = v`, or the delta rule's
`u = beta (v - k S)`. Three forms mean the same: `recurrent` (the equation), `parallel` (all pairs)
and `chunked` (fast). The door with every check is `regard.run.scanning.scan`.
"""

from regard.core.scan.chunked_scan import chunked
from regard.core.scan.containment import contain
from regard.core.scan.momentum import (
    momentum_chunked,
    momentum_passage,
    momentum_recurrent,
    momentum_step,
)
from regard.core.scan.parallel import parallel
from regard.core.scan.passage import transition
from regard.core.scan.prefix import prefix_softmax
from regard.core.scan.recurrent_scan import recurrent, step
from regard.core.scan.scan_inputs import (
    Rate,
    ScanTokens,
    check_chunk,
    initial_memory,
    initial_pair,
    prepare,
    starts,
)
from regard.core.scan.state import MomentumState, ScanState
from regard.core.scan.unordered import divided, read, summed, unordered, with_ones

__all__ = [
    "MomentumState",
    "Rate",
    "ScanState",
    "ScanTokens",
    "check_chunk",
    "chunked",
    "contain",
    "divided",
    "initial_memory",
    "initial_pair",
    "momentum_chunked",
    "momentum_passage",
    "momentum_recurrent",
    "momentum_step",
    "parallel",
    "prefix_softmax",
    "prepare",
    "read",
    "recurrent",
    "starts",
    "step",
    "summed",
    "transition",
    "unordered",
    "with_ones",
]
