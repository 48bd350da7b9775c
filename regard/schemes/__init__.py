"""Spread: one attention over many devices.

Keys over devices are `ShardedKeys`; a scheme is an executor that reads them, and it works by
merging Results. `torch.distributed` moves the bytes.

>>> from regard.schemes import Contiguous, ZigZag
>>> ZigZag(8, 2).positions(0).tolist()
[0, 1, 6, 7]
"""

from regard.run.plan import EXECUTORS
from regard.schemes.layouts import Contiguous, Dealt, Layout, Striped, ZigZag, balanced
from regard.schemes.messages import PeerError, Peers, Traffic, traffic
from regard.schemes.sharded_keys import ShardedKeys, peers_of

# Every scheme is an executor that reads sharded keys, imported when a plan first needs it.
SCHEMES = {
    "ring": ("regard.schemes.ring_attention", "RingAttention"),
    "burst": ("regard.schemes.ring_attention", "BurstAttention"),
    "gather": ("regard.schemes.key_gather", "KeyGather"),
    "heads": ("regard.schemes.head_split", "HeadSplit"),
    "heads_ring": ("regard.schemes.heads_over_ring", "HeadsOverRing"),
    "tree": ("regard.schemes.tree_decode", "TreeDecode"),
}
for _name, (_module, _kind) in SCHEMES.items():
    EXECUTORS.add(ShardedKeys.form, _name, _module, _kind)

__all__ = [
    "SCHEMES", "Contiguous", "Dealt", "Layout", "PeerError", "Peers", "ShardedKeys", "Striped",
    "Traffic", "ZigZag", "balanced", "peers_of", "traffic",
]  # fmt: skip
