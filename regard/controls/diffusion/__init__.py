"""Controls of image models: share, separate or erase subjects, and guidance by attention.

They work with UNets and with transformers whose text and picture share one attention. In a batch
with guidance, branches are known from the pipeline, or from `regard.models.diffusers.branches`.
"""

from regard.controls.diffusion.added_attention import AddAttention, MSDiffusion, SubjectTokens
from regard.controls.diffusion.added_attention import Pinco as Pinco
from regard.controls.diffusion.added_attention import grid_rotation as grid_rotation
from regard.controls.diffusion.diffusion_control import AtKinds, DiffusionControl
from regard.controls.diffusion.dragging import DiffUHaul as DiffUHaul
from regard.controls.diffusion.dragging import independent_noise as independent_noise
from regard.controls.diffusion.entropy_scale import EntropyScale
from regard.controls.diffusion.eraser import AttentiveEraser
from regard.controls.diffusion.frame_sharing import (
    CrossFrameAttention,
    DiTCtrl,
    SubjectAcrossFrames,
)
from regard.controls.diffusion.latent_guidance import a_star, attend_and_excite, guide_latents
from regard.controls.diffusion.latents import blend_segments as blend_segments
from regard.controls.diffusion.latents import sliced_wasserstein as sliced_wasserstein
from regard.controls.diffusion.latents import tail_latent as tail_latent
from regard.controls.diffusion.latents import warp_latent as warp_latent
from regard.controls.diffusion.layout import AttentionModulation, BoundedAttention, KeepApart
from regard.controls.diffusion.led_latents import AStar, AttendAndExcite, LeadIntoRegions
from regard.controls.diffusion.map_losses import InsideRegions, NeglectedWord, SeparateWords
from regard.controls.diffusion.perturbed import AwayFromOtherText, BlurQueries, KeepOwnValues
from regard.controls.diffusion.perturbed import (
    NormalizedAttentionGuidance as NormalizedAttentionGuidance,
)
from regard.controls.diffusion.perturbed import (
    PerturbedAttentionGuidance as PerturbedAttentionGuidance,
)
from regard.controls.diffusion.perturbed import SmoothedEnergyGuidance as SmoothedEnergyGuidance
from regard.controls.diffusion.picture_tokens import EachPicture, PictureTokens, Subject, Widened
from regard.controls.diffusion.picture_tokens import PromptTokens as PromptTokens
from regard.controls.diffusion.picture_tokens import TextPositions as TextPositions
from regard.controls.diffusion.read_pictures import PicturesBeside, ReadPictures
from regard.controls.diffusion.references import FreeCustom, MagicFace, ReferenceAttention
from regard.controls.diffusion.references import StoryDiffusion as StoryDiffusion
from regard.controls.diffusion.references import VisCtrl as VisCtrl
from regard.controls.diffusion.rf_solver import rf_edit as rf_edit
from regard.controls.diffusion.rf_solver import rf_solve as rf_solve
from regard.controls.diffusion.structure_guidance import StructureGuidance, object_mask
from regard.controls.diffusion.style_aligned import MatchStatistics, StyleAligned
from regard.controls.diffusion.subject_composition import AutoStudio, ComposeSubjects
from regard.controls.diffusion.subject_composition import SubjectKeys as SubjectKeys
from regard.controls.diffusion.subject_composition import prompt_subject as prompt_subject
from regard.controls.diffusion.subject_contrast import (
    CustomContrast,
    SubjectEncoder,
    appearance_ranking,
    subject_contrast,
)
from regard.controls.diffusion.subject_isolation import IsolatedSubjects, ReadOwnSubject

__all__ = [
    "AStar", "AddAttention", "AtKinds", "AttendAndExcite", "AttentionModulation",
    "AttentiveEraser", "AutoStudio", "AwayFromOtherText", "BlurQueries", "BoundedAttention",
    "ComposeSubjects", "CrossFrameAttention", "CustomContrast", "DiTCtrl", "DiffUHaul",
    "DiffusionControl",
    "EachPicture", "EntropyScale", "FreeCustom", "InsideRegions", "IsolatedSubjects", "KeepApart",
    "KeepOwnValues", "LeadIntoRegions", "MSDiffusion", "MagicFace", "MatchStatistics",
    "NeglectedWord", "NormalizedAttentionGuidance", "PerturbedAttentionGuidance", "PictureTokens",
    "PicturesBeside", "Pinco", "PromptTokens", "ReadOwnSubject", "ReadPictures",
    "ReferenceAttention", "SeparateWords", "SmoothedEnergyGuidance", "StoryDiffusion",
    "StructureGuidance", "StyleAligned", "Subject", "SubjectAcrossFrames", "SubjectEncoder",
    "SubjectKeys", "SubjectTokens", "TextPositions", "VisCtrl", "Widened", "a_star",
    "appearance_ranking", "attend_and_excite", "blend_segments", "grid_rotation", "guide_latents",
    "independent_noise", "object_mask", "prompt_subject", "rf_edit", "rf_solve",
    "sliced_wasserstein", "subject_contrast", "tail_latent", "warp_latent",
]  # fmt: skip
