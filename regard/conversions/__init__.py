"""Change the attention of trained models: into other mechanisms, and into other libraries' models.

`swap` replaces attention modules in place, `plain` reads what they are, `export` gives a model of
ours to transformers; `cut_heads` makes a layer smaller; `share_heads` lets heads of different
layers share their weights.
"""

from regard.conversions.exporting import export
from regard.conversions.head_cutting import cut_heads
from regard.conversions.head_sharing import post_share, share_heads
from regard.conversions.swapping import Swapped, swap

__all__ = ["Swapped", "cut_heads", "export", "post_share", "share_heads", "swap"]
