"""Change the attention of trained models: into other mechanisms, and into other libraries' models.

`swap` replaces attention modules in place, `plain` reads what they are, `export` gives a model of
ours to transformers.
"""

from regard.conversions.exporting import export
from regard.conversions.swapping import Swapped, swap

__all__ = ["Swapped", "export", "swap"]
