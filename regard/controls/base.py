"""What a control is: edits, where they act, when, and how strongly."""

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
    """Base of controls: a frozen value that says which edits it is made of.

    A control declares its own fields; those of these names mean the same everywhere: `which` (a set
    of tokens), `strength`, `where` (a `SiteChoice`) and `phase` ("prompt", "decoded" or "both").
    At the strength `neutral` nothing changes, bit for bit.
    """

    # The name that it is registered by.
    name: ClassVar[str] = ""
    # The strength at which nothing changes; None where there is none.
    neutral: ClassVar[float | None] = 0.0
    # What it serves: "language", "images in a prompt", "diffusion".
    models: ClassVar[str] = "language"

    # The guidance branch that it is about, wherever branches are told; None for all.
    branch: ClassVar[str | None] = None
    # Whether it reads the hidden states that come into blocks, or rows of weights while decoding.
    needs_hidden: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False

    where: SiteChoice
    phase: str

    @property
    def guidance(self) -> Strength | None:
        """How much of the difference that the edits make to the model's output is added.

        None: the edits are the whole of it. Otherwise the model runs without and with them, and
        output + guidance (edited - output) is returned; a negative one leads away.
        """
        return None

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Return the edits, in the order in which they are made."""
        raise NotImplementedError

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether it can serve a model with these sites, and why not."""
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
        """Return what `generate` asks about the scores of each next token: (ids, scores)."""
        return ()

    @property
    def is_neutral(self) -> bool:
        """Whether its strength is the neutral one."""
        strength: Strength | None = getattr(self, "strength", None)
        return (
            strength is not None and self.neutral is not None and is_neutral(strength, self.neutral)
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return what acts where: one entry for each edit, as JSON can hold it.

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
    """Read `where` and check `phase`; controls call it when they are made."""
    object.__setattr__(control, "where", SiteChoice.of(control.where))
    if control.phase not in PHASES:
        fail(RuleError, "phase", repr(control.phase), f"one of {PHASES}", "say when it acts")


@value
class Edits(Control):
    """A control made of edits at hand, applied in order.

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
