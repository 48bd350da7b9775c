"""Pictures that read other pictures: keys and values of other rows of the batch, in one softmax."""

from __future__ import annotations

import zlib
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion.picture_tokens import PictureTokens
from regard.controls.edit import FORBIDDEN, AttentionEdit, add_bias
from regard.controls.key_edits import FoundKeys, KeySource, append_keys
from regard.controls.strength import Strength, is_neutral, strength_of
from regard.controls.token_sets import TokenSet
from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, ValueRangeError, fail, shape_of
from regard.core.partial import wide
from regard.core.value import value


@value
class PicturesBeside(KeySource):
    """Keys of other pictures of the batch, in the same guidance branch.

    With `rows`, all others read these pictures, which read none themselves; without, every picture
    reads every other, or those at most `window` rows away. `previous` adds the picture before
    (frames of a video). `region` limits which of their tokens are read; `share` samples that share
    of each picture, again at each step and site, by `seed`. With `text`, tokens of their prompts
    are read as well, where text and picture share one attention.

    >>> PicturesBeside(window=1).read_by(3).int().tolist()
    [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    >>> PicturesBeside((0,), previous=True).read_by(3).int().tolist()
    [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    """

    rows: tuple[int, ...] | None = None
    window: int | None = None
    previous: bool = False
    region: TokenSet | None = None
    share: float = 1.0
    seed: int = 0
    text: bool = False

    def __post_init__(self) -> None:
        if self.rows is not None:
            rows = (self.rows,) if isinstance(self.rows, int) else tuple(self.rows)
            if not rows or any(isinstance(x, bool) or not isinstance(x, int) for x in rows):
                fail(RuleError, "rows", shape_of(self.rows), "numbers of pictures", "pass (0,)")
            object.__setattr__(self, "rows", rows)
        if self.window is not None and (not isinstance(self.window, int) or self.window < 1):
            fail(ValueRangeError, "window", shape_of(self.window), "at least 1 picture", "pass 1")
        if not isinstance(self.share, float | int) or not 0 <= self.share <= 1:
            fail(ValueRangeError, "share", shape_of(self.share), "0 to 1", "pass 0.5")
        if self.region is not None and not isinstance(self.region, TokenSet):
            fail(RuleError, "region", shape_of(self.region), "a region", "pass a Region")

    def read_by(self, size: int) -> Tensor:
        """Return which of `size` pictures reads which, bool [size, size]."""
        line = torch.arange(size)
        apart = (line[:, None] - line).abs()
        made = apart > 0
        if self.window is not None:
            made = made & (apart <= self.window)
        if self.rows is not None:
            if not all(0 <= x < size for x in self.rows):
                fail(
                    RuleError, "rows", list(self.rows), f"pictures 0 to {size - 1} of the batch",
                    "put the reference in the batch, and count pictures from 0; tell guidance "
                    "branches with regard.models.diffusers.branches(...)",
                )  # fmt: skip
            chosen = torch.zeros(size, dtype=torch.bool)
            chosen[list(self.rows)] = True
            made = made & chosen & ~chosen[:, None]
        if self.previous:
            made = made | (line[:, None] - line == 1)
        return made

    def find(self, at: EditContext) -> FoundKeys | None:
        """Concatenate the keys of the pictures."""
        call, branches = at.call, at.branches
        if call.b % branches:
            fail(
                CapabilityError, "batch", f"{call.b} rows", f"rows for {branches} branches",
                "tell as many branches as the batch holds",
            )  # fmt: skip
        size = call.b // branches
        reads = self.read_by(size)
        own = slice(0, call.n) if self.text else at.tokens_at("keys", "image")
        kept = self._drawn(at, own).to(at.device)
        sources = reads.any(0).nonzero().flatten().to(at.device)
        if not len(sources) or not len(kept):
            return None

        def laid(x: Tensor) -> Tensor:
            """Gather tokens [b, heads, tokens, ...] of the pictures that each row reads."""
            x = x[:, :, kept].unflatten(0, (branches, size))[:, sources]
            x = x.movedim(1, 2).flatten(2, 3)  # [branches, heads, pictures tokens, ...]
            return x.repeat_interleave(size, 0)

        seen = reads.to(at.device)[:, sources].repeat_interleave(len(kept), 1)
        seen = seen.repeat(branches, 1)[:, None]  # [b, 1, x]
        if self.region is not None:
            inside = self.region.mask(at).any(1, keepdim=True)[..., : call.n]
            if self.text:
                image = at.tokens_at("keys", "image")
                text = torch.ones_like(inside)
                text[..., image] = False
                inside = inside | text
            seen = seen & laid(inside.expand(call.b, -1, -1)[..., None])[..., 0]
        if not bool(seen.any()):
            return None
        weight = torch.zeros(seen.shape, device=at.device).masked_fill(~seen, -torch.inf)
        return FoundKeys(laid(call.k), laid(call.v), None if bool(seen.all()) else weight)

    def _drawn(self, at: EditContext, own: slice) -> Tensor:
        """Return which tokens are sampled: the same in all pictures, heads and branches."""
        many = own.stop - own.start
        if self.share == 1:
            return torch.arange(own.start, own.stop)
        name = f"{self.seed}/{at.forward.step}/{getattr(at.site, 'module', '')}"
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        order = torch.randperm(many, generator=generator)[: round(self.share * many)]
        return own.start + order.sort().values


@value
class ReadPictures(AttentionEdit):
    """Let tokens of a picture attend to keys of others, whose odds are multiplied by `strength`.

    0 changes nothing. With `instead`, the odds of the own picture are multiplied by 1 - strength,
    so that 1 reads only the others. Where text and picture share one attention, both pictures
    together have as much weight against the text as the picture had: reading an identical picture
    changes nothing.

    >>> ReadPictures(PicturesBeside(), 0.5).point
    'keys'
    """

    source: KeySource
    strength: Strength = 1.0
    queries: TokenSet | None = None
    instead: bool = False
    point: ClassVar[str] = "keys"
    law: ClassVar[str] = (
        "one softmax over own and other pictures; an identical picture changes nothing; instead: "
        "at strength 1 own keys get weight 0"
    )

    def __post_init__(self) -> None:
        most = 1.0 if self.instead else float("inf")
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0, most))
        if self.queries is not None and not isinstance(self.queries, TokenSet):
            fail(RuleError, "queries", shape_of(self.queries), "a region", "pass a Region")

    def changes(self, at: EditContext) -> Tensor:
        """Return the tokens that read: of the picture, or all where text is read as well."""
        if self.queries is None and getattr(self.source, "text", False):
            return at.limit
        return at.limit & (self.queries or PictureTokens()).mask(at, "queries")

    def before(self, at: EditContext) -> Call:
        """Append the keys, and weigh both."""
        number: Any = at.number(self.strength)
        if is_neutral(self.strength, 0.0) or (isinstance(number, float) and number == 0.0):
            return at.call
        found = self.source.find(at)
        if found is None:
            return at.call
        call = append_keys(at.call, found)
        like: dict[str, Any] = {"device": at.device, "dtype": wide(call.q.dtype)}
        number = torch.as_tensor(number, **like)
        number = number if number.dim() else number.view(1, 1, 1)
        extra = torch.zeros(1, 1, call.m, **like)
        extra[..., at.call.m :] = 1.0
        text = bool(getattr(self.source, "text", False))
        image = slice(0, at.call.n) if text else at.tokens_at("keys", "image")
        own = torch.zeros_like(extra)
        own[..., image] = 1.0
        weight = found.log_weight
        weight = None if weight is None else weight.to(**like).clamp(min=-FORBIDDEN)
        count = torch.full((1, 1, 1), float(found.k.shape[2]), **like)
        if weight is not None:
            count = weight.exp().sum(-1, keepdim=True)
        reads = self.changes(at) & (count > 0)
        rest = 1.0 - number if self.instead else torch.ones_like(number)
        joint = at.site is not None and at.site.kind == "joint" and not text
        many = float(image.stop - image.start)
        shift = -_log((rest * many + number * count) / many) if joint else torch.zeros_like(count)
        to_extra = torch.where(reads, _log(number) + shift, -FORBIDDEN)
        to_own = torch.where(reads, _log(rest) + shift, 0.0)
        parts = [(x, y) for x, y in ((to_extra, extra), (to_own, own)) if bool((x != 0).any())]
        if weight is not None:
            old = torch.zeros(*weight.shape[:2], at.call.m, **like)
            parts.append((torch.ones(1, 1, 1, **like), torch.cat((old, weight), 2)))
        return add_bias(call, parts) if parts else call


def _log(x: Tensor) -> Tensor:
    return torch.where(x > 0, x.clamp(min=1e-30).log(), -FORBIDDEN)
