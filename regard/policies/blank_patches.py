"""Drop blank patches of an image before a vision transformer runs (PixelWorld's PEAP-Fast).

A patch is blank where the variance of its pixels is below a threshold. Its token is dropped after
positions have been added, so that the others keep their positions:

    tokens [b, prefix + n, d] -> [b, prefix + kept, d],   kept = |{p : var(x_p) >= threshold}|

Rows that keep fewer tokens than others are padded, and the padding is masked. Attention over the
rest equals attention in the whole image with blank patches masked as keys.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import CapabilityError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.support import Padding
from regard.models.site import Sites
from regard.models.stage import Stage


def blank_patches(pixels: Tensor, patch: int, threshold: float = 1e-4) -> Tensor:
    """Return which patches are blank: bool [b, n] of images [b, c, h, w], row by row.

    The variance is over the pixels of a patch, and the largest of its channels counts.

    >>> pixels = torch.zeros(1, 3, 4, 8)
    >>> pixels[0, 1, 0, 5] = 1.0
    >>> blank_patches(pixels, 4).tolist()
    [[True, False]]
    """
    if pixels.dim() != 4 or min(pixels.shape[2:]) < patch:
        fail(
            ShapeError, "pixels", shape_of(pixels), f"[b, c, h, w] of at least {patch} x {patch}",
            "pass images as the model takes them",
        )  # fmt: skip
    if not threshold >= 0:
        fail(ValueRangeError, "threshold", threshold, "at least 0", "pass threshold=1e-4")
    b, c = pixels.shape[:2]
    cut = F.unfold(pixels.float(), patch, stride=patch).view(b, c, patch * patch, -1)
    return cut.var(2, correction=0).amax(1) < threshold


@method(
    "pixelworld_peap",
    call="from regard.policies.blank_patches import BlankPatches\n"
    "blank = BlankPatches(threshold=1e-4)\n"
    "# with regard.attach(vit, blank): out = vit(pixel_values=pixels); blank.places says which",
)
class BlankPatches(Stage):
    """Run a vision transformer without blank patches.

    For models whose embeddings have one token a patch, with positions added (ViT, DeiT, CLIP,
    SigLIP, DINOv2, I-JEPA) or as a rotary table of patches (DINOv3). After a
    forward `places` [b, prefix + kept] are the patches in the order of tokens: -1 for tokens that
    are not patches (class, registers), -2 for padding. Models that read a prompt beside the image
    need every patch, and are refused.
    """

    def __init__(self, threshold: float = 1e-4) -> None:
        super().__init__()
        if not threshold >= 0:
            fail(ValueRangeError, "threshold", threshold, "at least 0", "pass threshold=1e-4")
        self.threshold = threshold
        self.places: Tensor | None = None
        self._hooks: list[Any] = []

    def begin(self, model: Any, sites: Sites) -> None:
        """Hook the embeddings of the model."""
        embeddings = _embeddings(model, self.name)
        self._patch = _patch_size(embeddings, self.name)
        self._hooks = [embeddings.register_forward_hook(self._drop, with_kwargs=True)]
        for part in model.modules():
            if type(part).__name__.endswith("RopePositionEmbedding"):
                self._hooks.append(part.register_forward_hook(self._rotary))
            if isinstance(part, nn.MultiheadAttention):  # heads that pool, as SigLIP's
                hook = part.register_forward_pre_hook(self._pooling, with_kwargs=True)
                self._hooks.append(hook)

    def end(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _drop(self, module: nn.Module, args: Any, kwargs: dict[str, Any], tokens: Tensor) -> Tensor:
        pixels = args[0] if args else kwargs["pixel_values"]
        kept = ~blank_patches(pixels, self._patch, self.threshold)  # [b, n]
        prefix = tokens.shape[1] - kept.shape[1]
        if prefix < 0:
            fail(
                ShapeError, "pixels", f"{kept.shape[1]} patches of {self._patch} pixels",
                f"the {tokens.shape[1]} tokens of the embeddings", "pass images of the usual size",
            )  # fmt: skip
        kept[:, 0] |= ~kept.any(1)  # an empty page keeps its first patch
        most = int(kept.sum(1).max())
        # Kept patches first, in their order, then padding.
        order = (~kept).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
        filled = torch.arange(most, device=kept.device) >= kept.sum(1, keepdim=True)
        first = order.new_full((len(order), prefix), -1)
        self.places = torch.cat((first, order.masked_fill(filled, -2)), 1)
        self._order, self._real = order, F.pad(~filled, (prefix, 0), value=True)
        index = torch.cat((torch.arange(prefix, device=order.device).expand_as(first),
                           order + prefix), 1)  # fmt: skip
        return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))

    def _rotary(self, module: nn.Module, args: Any, table: tuple[Tensor, ...]) -> Any:
        """Return the angles of each row's own patches: [b, 1, kept, d]."""
        return tuple(angles[self._order][:, None] for angles in table)

    def _pooling(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Mask the padding in torch's own attention over tokens."""
        return args, {**kwargs, "key_padding_mask": ~self._real}

    def before(self, call: Call) -> Call:
        """Mask the padding."""
        if call.m != self._real.shape[1]:
            fail(
                CapabilityError, self.name, f"{call.site.module} with {call.m} keys"
                if call.site is not None else f"{call.m} keys",
                f"the {self._real.shape[1]} tokens that are left", "choose another model",
            )  # fmt: skip
        if bool(self._real.all()):
            return call
        rule = call.rule
        return call.replace(rule=rule.replace(support=rule.support & Padding(self._real)))


def _embeddings(model: Any, name: str) -> nn.Module:
    config = getattr(model, "config", None)
    prompts = any(
        getattr(config, key, None) is not None
        for key in ("image_token_id", "image_token_index", "text_config")
    )
    found = [
        part for part in model.modules()
        if hasattr(part, "patch_embeddings") or hasattr(part, "patch_embedding")
    ]  # fmt: skip
    merges = getattr(config, "depths", None) is not None
    if prompts or merges or len(found) != 1:
        reads = f"with {len(found)} embeddings of patches"
        if prompts or merges:
            reads = "which reads a prompt too" if prompts else "which merges patches as it goes"
        fail(
            CapabilityError, name, f"{type(model).__name__}, {reads}",
            "a model of images alone, with one", "pass its vision tower, a ViT, CLIP's or SigLIP's",
        )  # fmt: skip
    embeddings: nn.Module = found[0]
    return embeddings


def _patch_size(embeddings: nn.Module, name: str) -> int:
    for part in embeddings.modules():
        if isinstance(part, nn.Conv2d):
            high, wide = part.kernel_size
            apart = part.stride == part.kernel_size and part.padding in ((0, 0), "valid")
            if high == wide and apart:
                return int(high)
    return fail(
        CapabilityError, name, type(embeddings).__name__, "square patches that do not overlap",
        "choose a model that cuts images so",
    )  # fmt: skip
