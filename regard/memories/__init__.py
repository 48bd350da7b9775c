"""What is kept between calls: keys and values, scan states, the tails of convolutions.

`KeyMemory` is the protocol of memories of keys, `Full` the plain one. `LayerMemory` is all that
one layer keeps, under names of its own.
"""

from regard.memories.base import KeyMemory, Read
from regard.memories.full import Full
from regard.memories.heads import HeadMemories
from regard.memories.layer import LayerMemory

__all__ = ["Full", "HeadMemories", "KeyMemory", "LayerMemory", "Read"]
