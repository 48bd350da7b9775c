"""Change the attention of trained models: into other mechanisms, and into other libraries' models.

`swap` replaces attention modules in place, `plain` reads what they are.
"""

from regard.conversions.swapping import Swapped, swap

__all__ = ["Swapped", "swap"]
