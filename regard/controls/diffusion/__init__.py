"""Controls of models that paint: subjects shared, kept apart, erased, and guidance by attention.

They serve UNets, and transformers in which text and picture share one attention, alike. In a batch
with guidance, branches are told by the pipeline, or by `regard.models.diffusers.branches`.
"""

from regard.controls.diffusion.added_attention import AddAttention, MSDiffusion, SubjectTokens
from regard.controls.diffusion.diffusion_control import AtKinds, DiffusionControl
from regard.controls.diffusion.eraser import AttentiveEraser
from regard.controls.diffusion.layout import (
    AtSomeLayers,
    AttentionModulation,
    BoundedAttention,
    EntropyScale,
    KeepApart,
)  # fmt: skip
from regard.controls.diffusion.perturbed import (
    AwayFromOtherText,
    BlurQueries,
    KeepOwnValues,
    NormalizedAttentionGuidance,
    PerturbedAttentionGuidance,
    SmoothedEnergyGuidance,
)  # fmt: skip
from regard.controls.diffusion.picture_tokens import (
    EachPicture,
    Grown,
    PictureTokens,
    PromptTokens,
    Subject,
    TextPositions,
)  # fmt: skip
from regard.controls.diffusion.read_pictures import PicturesBeside, ReadPictures
from regard.controls.diffusion.references import (
    CrossFrameAttention,
    FreeCustom,
    MagicFace,
    MatchStatistics,
    ReferenceAttention,
    StoryDiffusion,
    StyleAligned,
    SubjectAcrossFrames,
    VisCtrl,
)  # fmt: skip

__all__ = [
    "AddAttention", "AtKinds", "AtSomeLayers", "AttentionModulation", "AttentiveEraser",
    "AwayFromOtherText", "BlurQueries", "BoundedAttention", "CrossFrameAttention",
    "DiffusionControl", "EachPicture", "EntropyScale", "FreeCustom", "Grown", "KeepApart",
    "KeepOwnValues", "MSDiffusion", "MagicFace", "MatchStatistics",
    "NormalizedAttentionGuidance", "PerturbedAttentionGuidance", "PictureTokens",
    "PicturesBeside", "PromptTokens", "ReadPictures", "ReferenceAttention",
    "SmoothedEnergyGuidance", "StoryDiffusion", "StyleAligned", "Subject",
    "SubjectAcrossFrames", "SubjectTokens", "TextPositions", "VisCtrl",
]  # fmt: skip
