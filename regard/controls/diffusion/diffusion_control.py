"""The base class of controls of image models."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from regard.controls.base import Control, checked
from regard.controls.context import EditContext
from regard.controls.edit import AttentionEdit, apply, changed_queries, edits_of
from regard.controls.strength import strength_of
from regard.core.call import Call
from regard.core.errors import RuleError, ValueRangeError, fail, shape_of
from regard.core.result import Result
from regard.core.value import value
from regard.models.site import KINDS, Sites
from regard.run.executor import Answer, No, Yes

PICTURE = ("self", "joint")
TEXT = ("cross", "joint")


class DiffusionControl(Control):
    """Base of controls of image models: it acts at sites of `kinds`, in one branch.

    Where guidance branches are known (from a pipeline, or `regard.models.diffusers.branches`), it
    acts in its `branch`.
    """

    models: ClassVar[str] = "diffusion"
    kinds: ClassVar[tuple[str, ...]] = KINDS
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        own: Any = self
        object.__setattr__(self, "strength", strength_of(own.strength, self.low, self.high))
        checked(self)
        if self.where.kinds is None:
            object.__setattr__(self, "where", self.where.replace(kinds=self.kinds))

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether the model has such sites, and is an image model."""
        if any(site.causal for site in sites):
            return No("which attends causally, as models of language do")
        return Yes()


class EditsSomewhere(AttentionEdit):
    """Base of edits that act only at some sites: subclasses choose which."""

    edits: tuple[AttentionEdit, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", edits_of(self.edits))

    @abstractmethod
    def here(self, at: EditContext) -> bool:
        """Return whether they act at the site."""

    @property
    def point(self) -> str:
        """Return what they change."""
        return ", ".join(dict.fromkeys(edit.point for edit in self.edits))

    @property
    def law(self) -> str:
        """Return the laws of the edits."""
        return "; ".join(dict.fromkeys(edit.law for edit in self.edits))

    def before(self, at: EditContext) -> Call:
        """Apply the edits at these sites."""
        return apply(self.edits, at)[0] if self.here(at) else at.call

    def after(self, at: EditContext, result: Result) -> Result:
        """Apply the edits at these sites."""
        for edit in self.edits if self.here(at) else ():
            result = edit.after(at, result)
        return result

    def changes(self, at: EditContext) -> Tensor:
        """Return which queries any of the edits changes."""
        return changed_queries(self.edits if self.here(at) else (), at)

    def sets(self) -> tuple[Any, ...]:
        """Return the sets of the edits."""
        return tuple(x for edit in self.edits for x in edit.sets())


@value
class AtKinds(EditsSomewhere):
    """Edits that act only at sites of some kinds: "self", "cross" or "joint".

    >>> from regard.controls.score_edits import ScaleScores
    >>> AtKinds(ScaleScores(0.5), ("self",)).kinds
    ('self',)
    """

    edits: tuple[AttentionEdit, ...]
    kinds: tuple[str, ...] = PICTURE

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = (self.kinds,) if isinstance(self.kinds, str) else tuple(self.kinds)
        if not kinds or set(kinds) - set(KINDS):
            fail(RuleError, "kinds", str(self.kinds), f"some of {KINDS}", "name kinds of sites")
        object.__setattr__(self, "kinds", kinds)

    def here(self, at: EditContext) -> bool:
        """Return whether the site is of these kinds."""
        return at.site is not None and at.site.kind in self.kinds


def steps_first(x: object, name: str = "steps") -> int:
    """Check the number of first steps.

    >>> steps_first(9)
    9
    """
    if isinstance(x, bool) or not isinstance(x, int) or x < 0:
        fail(ValueRangeError, name, shape_of(x), "a whole number from 0", f"pass {name}=10")
    return x
