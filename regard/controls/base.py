"""The base class of controls: edits, and where, when and how strongly they act."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from regard.controls.edit import AttentionEdit, edits_of
from regard.controls.noise_guidance import NoiseGuidance
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, is_neutral
from regard.core.errors import RuleError, fail
from regard.core.value import Value, value
from regard.models.removal import Removal
from regard.models.site import Sites
from regard.models.wrap import hold
from regard.run.executor import Answer, Yes

PHASES = ("both", "prompt", "decoded")


class Control(Value):
    """Base of controls: a frozen value that defines a list of edits.

    A control declares its own fields; these names mean the same in all of them: `which` (a set
    of tokens), `strength`, `where` (a `SiteChoice`) and `phase` ("prompt", "decoded" or "both").
    At the strength `neutral` nothing changes, bit for bit.
    """

    # The name it is registered under.
    name: ClassVar[str] = ""
    # The strength at which nothing changes; None if there is none.
    neutral: ClassVar[float | None] = 0.0
    # The models it is for: "language", "images in a prompt", "diffusion".
    models: ClassVar[str] = "language"

    # The guidance branch it acts on, where branches are known; None for all.
    branch: ClassVar[str | None] = None
    # Whether it reads the hidden states entering blocks, or rows of weights during decoding.
    needs_hidden: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False

    where: SiteChoice
    phase: str

    @property
    def guidance(self) -> Strength | None:
        """Return how much of the change that the edits make to the model's output is added.

        With None the edits simply apply. Otherwise the model runs without and with them, and
        output + guidance (edited - output) is returned; a negative value guides away from them.
        """
        return None

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Return the edits, in the order in which they apply."""
        raise NotImplementedError

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether it supports a model with these sites, or why not."""
        return Yes()

    def wrap_model(self, steering: Any, undo: Removal) -> None:
        """Wrap methods of `steering.model` until `undo`: by default, for guidance, its forward.

        Not asked at the neutral strength.
        """
        if self.guidance is not None:
            hold(
                steering.model, "forward", lambda: NoiseGuidance(steering), steering, undo,
                join=False,
            )  # fmt: skip

    def processors(self, steering: Any) -> Sequence[Any]:
        """Return a logits processor for `generate`, called with (ids, scores), or None."""
        return ()

    @property
    def is_neutral(self) -> bool:
        """Return whether its strength is the neutral one."""
        strength: Strength | None = getattr(self, "strength", None)
        return (
            strength is not None and self.neutral is not None and is_neutral(strength, self.neutral)
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return one JSON-serializable entry per edit: what it does, and where.

        >>> from regard.controls.score_edits import AddBias
        >>> Edits(AddBias("Paris", 2.0), where=3).describe()[0]["point"]
        'scores'
        """
        where = {name: x for name, x in self.where.fields() if x is not None}
        return [
            {"op": type(edit).__name__, "point": edit.point, "law": edit.law, "where": where,
             "phase": self.phase, "edit": str(edit)}
            for edit in self.edits()
        ]  # fmt: skip


def checked(control: Any) -> None:
    """Convert `where` and check `phase`; controls call it when built."""
    object.__setattr__(control, "where", SiteChoice.of(control.where))
    if control.phase not in PHASES:
        fail(RuleError, "phase", repr(control.phase), f"one of {PHASES}", "choose when it acts")


@value
class Edits(Control):
    """A control made of given edits, applied in order.

    >>> from regard.controls.score_edits import AddBias, Forbid
    >>> control = Edits((AddBias("Paris", 2.0), Forbid("London")), where={"layers": [2, 3]})
    >>> Value.from_json(control.to_json()) == control
    True
    """

    parts: tuple[AttentionEdit, ...]
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    neutral: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", edits_of(self.parts))
        checked(self)

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Return the edits."""
        return self.parts
