"""Change attention on purpose: edits, sets of tokens, controls made of these, and their receipts.

`regard.steer(model, "emphasis", which="Paris")` puts a control to work; `known()` lists them.
"""

from regard.controls.base import Control, Edits
from regard.controls.edit import AttentionEdit
from regard.controls.image_tokens import ImageTokens, Region
from regard.controls.key_edits import ExtraKeys, GivenKeys, KeySource, OtherRows, ReplaceKeys
from regard.controls.key_edits import only_keys as only_keys
from regard.controls.receipt import NothingMoved, Receipt
from regard.controls.registry import control, known, register
from regard.controls.score_edits import AddBias, Forbid, RaiseScores, ScaleScores
from regard.controls.site_choice import SiteChoice
from regard.controls.steering import Steering
from regard.controls.strength import PerRow, PerStep
from regard.controls.tensor_edits import MixBranch, RemoveDirection, ScaleTensor
from regard.controls.text_tokens import Phrase, PromptPart, TextBetween
from regard.controls.token_sets import AllTokens, TokenMask, TokenPositions, TokenSet
from regard.controls.weight_edits import EvenOut, MoveMass, SetShare, ShareToPower

__all__ = [
    "AddBias", "AllTokens", "AttentionEdit", "Control", "Edits", "EvenOut", "ExtraKeys",
    "Forbid", "GivenKeys", "ImageTokens", "KeySource", "MixBranch", "MoveMass", "NothingMoved",
    "OtherRows", "PerRow", "PerStep", "Phrase", "PromptPart", "RaiseScores", "Receipt", "Region",
    "RemoveDirection", "ReplaceKeys", "ScaleScores", "ScaleTensor", "SetShare", "ShareToPower",
    "SiteChoice", "Steering", "TextBetween", "TokenMask", "TokenPositions", "TokenSet",
    "control", "known", "only_keys", "register",
]  # fmt: skip
