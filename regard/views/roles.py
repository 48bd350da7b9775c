"""Roles that heads have: which heads, how sure, and against what they were read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from regard.core.errors import RuleError, fail, nearest
from regard.models.site import Site
from regard.probes.scores import Head, Scores

# Roles a head can be given, and how far above chance it must be. A head's first role is that whose
# bound it passes by the largest factor.
ROLES: dict[str, float] = {
    "previous_token": 0.4,
    "induction": 0.4,
    "duplicate_token": 0.3,
    "retrieval": 0.5,
    "delimiter": 0.5,
    "next_token": 0.4,
    "local": 0.85,
    "sink": 0.6,
}


@dataclass(frozen=True)
class Role:
    """One role: every head over its bound, the best first, with what chance gives.

    `bound` is how far above chance, from 0 to 1, a head must be; `chance` what a head that looks
    anywhere scores on what was read, `tokens` how many tokens that was. `too_short` says why
    a text is too short to tell.
    """

    name: str
    title: str
    heads: tuple[Head, ...]
    bound: float
    chance: float | None = None
    tokens: int | None = None
    too_short: str = ""
    against: str = field(default="", repr=False)

    @staticmethod
    def of(scores: Scores) -> Role:
        """Read a role from its scores, over all heads."""
        bound, level = ROLES[scores.name], scores.level()
        short = ""
        if level is not None and level >= bound:
            short = (
                f"{scores.tokens:,} tokens are too few: a head that looks anywhere has {level:.2f}"
            )
        heads = [] if short else [
            head for head in scores.top(len(scores.heads())) if scores.above(head) >= bound
        ]  # fmt: skip
        return Role(
            scores.name, scores.title, tuple(heads), bound, level, scores.tokens, short,
            scores.read_against(),
        )  # fmt: skip

    def sentence(self) -> str:
        """Describe it in one line; empty where no head has the role."""
        if self.too_short:
            return f"{self.title}: not told, {self.too_short}"
        if not self.heads:
            return ""
        shown = ", ".join(f"{h.name} {h.value:.2f}" for h in self.heads[:3])
        more = f" and {len(self.heads) - 3} more" if len(self.heads) > 3 else ""
        against = f" ({self.against})" if self.against else ""
        return f"{self.title}: {shown}{more}{against}"

    def __str__(self) -> str:
        head = f"{self.title}: {len(self.heads)} heads at least {self.bound} above chance"
        head += f" ({self.against})" if self.against else ""
        lines = [self.too_short] if self.too_short else []
        return "\n".join([head, *lines, *(f"  {h.name} {h.value:.2f}" for h in self.heads)])

    def _repr_html_(self) -> str:
        from regard.core.html_table import html_table

        rows = [[h.name, f"{h.value:.2f}"] for h in self.heads]
        return html_table(str(self).splitlines()[0], ["head", "score"], rows, [self.too_short])


class Roles(Mapping[str, Role]):
    """Roles by name, of those that some probe could give."""

    def __init__(self, scores: Mapping[str, Scores]) -> None:
        self._found = {name: Role.of(scores[name]) for name in ROLES if name in scores}
        self._scores = scores

    def __getitem__(self, name: str) -> Role:
        if name not in self._found:
            fail(
                RuleError, "role", repr(name), f"one that was read: {', '.join(self._found)}",
                nearest(name, self._found, "ask see() for its probe"),
            )  # fmt: skip
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def first(self) -> dict[tuple[Site, int], str]:
        """Return the first role of each head that has one."""
        best: dict[tuple[Site, int], tuple[float, str]] = {}
        for name, role in self._found.items():
            for head in role.heads:
                factor = self._scores[name].above(head) / role.bound
                if factor > best.get((head.site, head.head), (0.0, ""))[0]:
                    best[head.site, head.head] = (factor, name)
        return {place: name for place, (_, name) in best.items()}

    def __str__(self) -> str:
        return "\n".join(filter(None, (role.sentence() for role in self._found.values())))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from regard.core.html_table import html_table

        rows = [
            [role.title, ", ".join(f"{h.name} {h.value:.2f}" for h in role.heads) or "none",
             "" if role.chance is None else f"{role.chance:.2g}",
             "" if role.tokens is None else f"{role.tokens:,}", role.too_short]
            for role in self._found.values()
        ]  # fmt: skip
        return html_table("Roles", ["role", "heads", "chance", "tokens", ""], rows)
