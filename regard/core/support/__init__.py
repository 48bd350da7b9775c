"""Which pairs may attend: the supports, and their algebra."""

from regard.core.support.bands import Blocks, Causal, Dilated, Sinks, Strided, Window
from regard.core.support.base import Both, Either, Everything, Other, Shifted, Support
from regard.core.support.chosen import ChosenKeys, Extended, PerHead, Tiles, Where
from regard.core.support.lattice import Neighborhood
from regard.core.support.of_heads import OfHeads
from regard.core.support.tokens import (
    Attribute,
    Documents,
    Kinds,
    Padding,
    PrefixLM,
    SharedPrefix,
    documents_from_lengths,
)

__all__ = [
    "Attribute",
    "Blocks",
    "Both",
    "Causal",
    "ChosenKeys",
    "Dilated",
    "Documents",
    "Either",
    "Everything",
    "Extended",
    "Kinds",
    "Neighborhood",
    "OfHeads",
    "Other",
    "Padding",
    "PerHead",
    "PrefixLM",
    "SharedPrefix",
    "Shifted",
    "Sinks",
    "Strided",
    "Support",
    "Tiles",
    "Where",
    "Window",
    "documents_from_lengths",
]
