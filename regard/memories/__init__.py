"""What is kept between calls: keys and values, scan states, the tails of convolutions.

`KeyMemory` is the protocol of memories of keys. `Full` is the plain one of layers that train;
`Kept` lets every head keep its own keys, in stores that may be compressed (`Quantized`, `LowRank`)
or elsewhere (`Hosted`, `Mapped`); `Bare` keeps keys without positions; `Ring` keeps sinks and a
window; `Paged` shares pages, `HeadPages` has pages for each head; `Shared` reads another layer's
keys. `Summaries` rank pages for selection. `TextBlocks` are the keys of texts that are reused.
`LayerMemory` is everything that one layer keeps.
"""

from regard.memories.bare import Bare
from regard.memories.base import KeyMemory
from regard.memories.blocks import TextBlock, TextBlocks
from regard.memories.full import Full
from regard.memories.head_pages import HeadPages
from regard.memories.kept import Kept
from regard.memories.layer import LayerMemory
from regard.memories.low_rank import LowRank
from regard.memories.mapped import Mapped
from regard.memories.memory_files import load, save
from regard.memories.near_keys import NearKeys
from regard.memories.paged import Paged, Pool
from regard.memories.quantized import Quantized
from regard.memories.reserved import Reservation, Reserved
from regard.memories.ring import Ring
from regard.memories.shared import Shared
from regard.memories.some_keys import SomeKeys
from regard.memories.split import Split
from regard.memories.stores import Hosted, Plain, TokenStore
from regard.memories.summaries import Bounds, LandmarkPages, Summaries
from regard.memories.tiers import Tiers

__all__ = [
    "Bare",
    "Bounds",
    "Full",
    "HeadPages",
    "Hosted",
    "Kept",
    "KeyMemory",
    "LandmarkPages",
    "LayerMemory",
    "LowRank",
    "Mapped",
    "NearKeys",
    "Paged",
    "Plain",
    "Pool",
    "Quantized",
    "Reservation",
    "Reserved",
    "Ring",
    "Shared",
    "SomeKeys",
    "Split",
    "Summaries",
    "TextBlock",
    "TextBlocks",
    "Tiers",
    "TokenStore",
    "load",
    "save",
]
