"""Mechanisms to train, behind one protocol.

`Layer` is the base class, `Attention` the one with queries and keys, `Recurrent` the one with a
running state. `regard.layer("moh", 512, heads=8)` builds one by name; `regard.layers.list()` lists
them all.
"""

from regard.layers.attention import Attention, joined, split
from regard.layers.base import Layer
from regard.layers.building import model
from regard.layers.encoder_decoder import EncoderDecoder
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.positions import (
    T5,
    Alibi,
    Cope,
    Learned,
    Position,
    Relative,
    Rotary,
    Shaw,
    Sinusoidal,
)
from regard.layers.recurrent import Recurrent
from regard.layers.registry import get, layer, names, register
from regard.layers.registry import listing as list
from regard.layers.stack import Block, FeedForward, LanguageModel, Stack, grouped_sources

__all__ = [
    "T5",
    "Alibi",
    "Attention",
    "Block",
    "Capabilities",
    "Cope",
    "EncoderDecoder",
    "FeedForward",
    "LanguageModel",
    "Layer",
    "LayerInput",
    "Learned",
    "Position",
    "Recurrent",
    "Relative",
    "Rotary",
    "Shaw",
    "Sinusoidal",
    "Stack",
    "get",
    "grouped_sources",
    "joined",
    "layer",
    "list",
    "model",
    "names",
    "register",
    "split",
]
