"""What was seen of a model: scores, roles, findings in words; tables, pictures, files, a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from regard.core.errors import RuleError, fail, nearest, need
from regard.core.files import write_bytes
from regard.models.site import Site
from regard.probes.maps import Deep, Drawn, log_scale
from regard.probes.regions import WordMaps
from regard.probes.scores import Head, Scores, head_name, towers
from regard.views.one_head import Chosen, SeenHead
from regard.views.overwrite import may_replace
from regard.views.roles import ROLES, Roles
from regard.views.rollout import RolledOut
from regard.views.run_file import Run
from regard.views.run_table import run_table

if TYPE_CHECKING:
    import pandas
    from rich.table import Table

# Scores that every run has; others were asked for, and get a sentence.
USUAL = {"sink", "strongest_sink", "entropy", "concentration", "distance", "importance"}
# Heads of one role in a table that is printed; files have every head.
TABLED = 8
SUFFIXES = (".html", ".json", ".npz", ".png", ".csv")


@dataclass
class Seen:
    """The results of one `see`: `table()`, `findings()`, `save(path)`.

    `scores` holds the scores of each probe by name; `skipped` why a probe has none.
    """

    model: Mapping[str, str]
    sites: Sequence[Site]
    scores: dict[str, Scores]
    words: Sequence[str] = ()
    drawn: Mapping[Site, Drawn] = field(default_factory=dict, repr=False)
    deep: Sequence[Deep] = field(default=(), repr=False)
    skipped: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False
    image: np.ndarray | None = field(default=None, repr=False)
    words_seen: WordMaps | None = field(default=None, repr=False)
    # Of a model that sees, attention rollout up to each layer; of one that hears, `image` is the
    # spectrogram.
    rollout: RolledOut | None = field(default=None, repr=False)
    sound: bool = False
    # What a reader must know first, such as that the text was truncated.
    notes: Sequence[str] = ()
    # What it was made from: the fingerprint of the model, and the hash of what it was given.
    made_from: Mapping[str, str] = field(default_factory=dict)
    # Whether somebody asked for the heads that were kept: a page has them all, whatever they take.
    asked: bool = False

    def __post_init__(self) -> None:
        named = towers(self.sites)
        self.scores = {name: replace(x, towers=named) for name, x in self.scores.items()}
        self.towers = named

    @property
    def role_names(self) -> list[str]:
        """Roles that some probe could give."""
        return [name for name in ROLES if name in self.scores]

    @property
    def roles(self) -> Roles:
        """Roles by name, with every head over the bound: `seen.roles["induction"].heads`.

        `seen.roles.first()` is the first role of each head.
        """
        return Roles(self.scores)

    def name_of(self, site: Site, head: int) -> str:
        """Name a head as tables and sentences do."""
        return head_name(site, head, self.towers.get(site, ""))

    def __getitem__(self, name: str) -> SeenHead:
        """Return one head by its name: `seen["L3H5"]`."""
        for site in self.sites:
            for head in range(site.heads or 0):
                if self.name_of(site, head) == name:
                    return self._head(site, head)
        names = [self.name_of(s, h) for s in self.sites for h in range(s.heads or 0)]
        fail(
            RuleError, "head", repr(name), f"one of {len(names)} heads, as {names[0]!r}",
            nearest(str(name), names, "name a layer and a head"),
        )  # fmt: skip

    def weights(self, layer: int, head: int, rows: Chosen = None, columns: Chosen = None) -> Tensor:
        """Return exact weights [rows, columns] of a head that was kept in full; see `SeenHead`."""
        site = next((x for x in self.sites if x.layer == layer and head < (x.heads or 0)), None)
        if site is None or head < 0:
            fail(
                RuleError, "layer, head", f"{layer}, {head}", "a head that was seen",
                "count from 0; sites tells layers and heads",
            )  # fmt: skip
        return self._head(site, head).weights(rows, columns)

    def most_telling(self, count: int = 5) -> list[SeenHead]:
        """Return the best head of each role, then the second of each; then those that matter most.

        The page opens the same ones.
        """
        first = self.roles.first()
        by_role = [
            [(x.site, x.head) for x in role.heads if first.get((x.site, x.head)) == name]
            for name, role in self.roles.items()
        ]
        most = max((len(x) for x in by_role), default=0)
        found = [some[place] for place in range(most) for some in by_role if place < len(some)]
        sizes = self.importance()
        every = [(s, h) for s in self.sites for h in range(s.heads or 0) if (s, h) not in found]
        places = {site: row for row, site in enumerate(self.sites)}
        every.sort(key=lambda x: -float(np.nan_to_num(sizes[places[x[0]], x[1]])))
        return [self._head(*x) for x in (*found, *every)[:count]]

    def _head(self, site: Site, head: int) -> SeenHead:
        deep = next((d for d in self.deep if (d.site, d.head) == (site, head)), None)
        drawn, role = self.drawn.get(site), self.roles.first().get((site, head))
        tiles = None if drawn is None else log_scale(drawn.tiles[head])
        values = {x.title: float(x.values[site][head]) for x in self.scores.values()
                  if site in x.values and not bool(x.values[site][head].isnan())}  # fmt: skip
        return SeenHead(
            self.name_of(site, head), site, head, "" if role is None else self.scores[role].title,
            values, self.words, tiles if deep is None else log_scale(deep.map), deep,
        )  # fmt: skip

    def findings(self) -> list[str]:
        """Return the main findings as sentences."""
        roles = [role.sentence() for name, role in self.roles.items() if name != "sink"]
        found = [said for said in (*self.notes, *roles, *self._of_sinks()) if said]
        found += [said for x in self.scores.values() for said in x.details.get("said", ())]
        if "entropy" in self.scores:
            ranked = sorted(self.scores["entropy"].heads(), key=lambda head: head.value)
            if ranked:
                low, high = ranked[0], ranked[-1]
                found.append(
                    f"attention is narrowest in {low.name} ({low.value:.2f} nats) and widest in "
                    f"{high.name} ({high.value:.2f})"
                )
        if "importance" in self.scores:
            found += self._of_importance()
        for name, scores in self.scores.items():
            if name not in ROLES and name not in USUAL and scores.top(1):
                names = ", ".join(f"{x.name} {x.value:.2f}" for x in scores.top(3))
                against = f" ({scores.read_against()})" if scores.chance else ""
                found.append(f"{scores.title}: {names}{against}")
        found += self._of_skipped()
        if self.interrupted:
            found.append("interrupted: what was seen up to then is kept")
        return found

    def _of_skipped(self) -> list[str]:
        """What could not be read, a sentence for each reason."""
        reasons: dict[str, list[str]] = {}
        for name, why in self.skipped.items():
            reasons.setdefault(why, []).append(name.replace("_", " "))
        return [f"not read: {', '.join(names)} ({why})" for why, names in reasons.items()]

    def _of_importance(self) -> list[str]:
        """The heads that the loss feels most, by sizes that can be compared across layers."""
        scores = self.scores["importance"]
        top = replace(scores, values=scores.details.get("raw", scores.values)).top(3)
        names = ", ".join(f"{x.name} {x.value:.3g}" for x in top)
        read = f", {scores.tokens:,} tokens" if scores.tokens else ""
        size = "sum of |dL/d gate|" if scores.definition == "tokens" else "|dL/d gate|"
        return [f"the loss feels most ({size}{read}): {names}"] if top else []

    def _of_sinks(self) -> list[str]:
        if "sink" not in self.scores or "image_sink" in self.scores:
            return []
        scores = self.scores["sink"]
        heads = scores.top(1000)
        total = sum(h.value for h in heads)
        if not heads or total <= 0:
            return []
        level = scores.level()
        bound = scores.details.get("epsilon", 0.3)
        if level is not None and level >= bound:
            return [
                f"sinks: not told, {scores.tokens:,} tokens are too few: a head that looks "
                f"anywhere has {level:.2f} of its weight on the first"
            ]
        few = max(1, len(heads) // 8)
        share = sum(h.value for h in heads[:few]) / total
        rate = scores.details.get("rate", 0.0)
        which = f"{few} of {len(heads)} heads hold" if few > 1 else "one head holds"
        against = f" ({scores.read_against()})" if scores.read_against() else ""
        if not rate:
            return [f"no head has over {bound} of its weight on the first token{against}"]
        best = ", ".join(f"{x.name} {x.value:.2f}" for x in heads[:3])
        return [
            f"{scores.title}: {best}; {100 * rate:.0f}% of heads have over {bound} of their weight "
            f"on the first token; {which} {100 * share:.0f}% of that weight{against}"
        ]

    def table(self) -> Table:
        """Return a rich table: the best heads of each role, then what each score says of them.

        Of a role that more than `TABLED` heads have it says how many more there are.
        """
        rich = need("rich.table", "see", "draws tables")
        roles, shown_of, more = self.roles.first(), set[tuple[Site, int]](), list[str]()
        for name, role in self.roles.items():
            some = [(x.site, x.head) for x in role.heads if roles[x.site, x.head] == name]
            shown_of |= set(some[:TABLED])
            if len(some) > TABLED:
                more.append(f"{len(some) - TABLED} more: {role.title}")
        shown = [name for name in ("entropy", "distance", "importance") if name in self.scores]
        table = rich.Table(title=f"Heads of {self.model.get('name', 'the model')} that have a role",
                           caption="; ".join(more) or None)  # fmt: skip
        for column in ("head", "role", "score", *(self.scores[name].title for name in shown)):
            table.add_column(column, justify="left" if column in ("head", "role") else "right")
        arrays = {name: self.scores[name].array(list(self.sites)) for name in shown}
        for row, site in enumerate(self.sites):
            for head in range(site.heads or 0):
                if (site, head) not in shown_of:
                    continue
                cells = [arrays[n][row, head] if head < arrays[n].shape[1] else np.nan
                         for n in shown]  # fmt: skip
                table.add_row(
                    self.name_of(site, head), self.scores[roles[site, head]].title,
                    f"{float(self.scores[roles[site, head]].values[site][head]):.2f}",
                    *("-" if np.isnan(x) else f"{x:.2f}" for x in cells),
                )  # fmt: skip
        return table

    def to_frame(self) -> pandas.DataFrame:
        """Return a pandas table with a row for each head and a column for each score."""
        pandas = need("pandas", "see", "makes tables of scores")
        roles, rows = self.roles.first(), []
        arrays = {name: x.array(list(self.sites)) for name, x in self.scores.items()}
        for row, site in enumerate(self.sites):
            for head in range(site.heads or 0):
                line: dict[str, Any] = {
                    "head": self.name_of(site, head), "layer": site.layer, "kind": site.kind,
                    "module": site.module, "role": roles.get((site, head), ""),
                }  # fmt: skip
                for name, values in arrays.items():
                    line[name] = float(values[row, head]) if head < values.shape[1] else np.nan
                rows.append(line)
        return pandas.DataFrame(rows)

    def importance(self) -> np.ndarray:
        """How much each head matters [sites, heads], 0 to 1; by gradient where it was taken."""
        wide = max((site.heads or 0 for site in self.sites), default=0)
        if "importance" in self.scores and self.scores["importance"].values:
            sizes = self.scores["importance"].array(list(self.sites))
        else:  # a head that looks at something in particular stands out
            sizes = np.full((len(self.sites), wide), np.nan, np.float32)
            for row, site in zip(sizes, self.sites, strict=True):
                if site in self.drawn:
                    narrow = 1 / (1 + self.drawn[site].entropy.mean(-1))
                    row[: len(narrow)] = narrow.numpy()
        return sizes / max(float(np.nanmax(sizes)) if np.isfinite(sizes).any() else 1.0, 1e-9)

    def run(self) -> Run:
        """Return everything as one run: a manifest and arrays."""
        from regard.views.packed_seen import packed_seen  # it reads what this module makes

        return packed_seen(self)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a file by its suffix: .html, .npz (and .json), .png, .csv.

        A file of the same model and inputs that is there is replaced, anything else only where
        `overwrite` is true. A table has no place to say what it was made from: one that the run
        beside it does not have, number by number, is not replaced.
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            fail(
                RuleError, "path", str(path), f"a name that ends in one of {', '.join(SUFFIXES)}",
                "pass 'heads.html', for example",
            )  # fmt: skip
        if path.suffix == ".html":
            from regard.views.page import write_page

            return write_page(self.run(), path, overwrite=overwrite)
        if path.suffix == ".png":
            from regard.views.pictures import draw_heads

            return draw_heads(self.run(), path, overwrite=overwrite)
        if path.suffix == ".csv":
            run = self.run()
            there = True if overwrite else may_replace(run.origin)
            return write_bytes(path, run_table(run), may_replace=there)
        self.run().save(path, overwrite=overwrite)
        return path

    def top(self, score: str, count: int = 5) -> list[Head]:
        """Return the heads that score highest."""
        if score not in self.scores:
            fail(
                RuleError, "score", repr(score), f"one of {', '.join(self.scores)}",
                "ask see() for that probe",
            )  # fmt: skip
        return self.scores[score].top(count)

    def _repr_html_(self) -> str:
        from regard.views.notebook import show_seen

        return show_seen(self)

    def __repr__(self) -> str:
        heads = sum(site.heads or 0 for site in self.sites)
        lines = "\n".join(f"  {sentence}" for sentence in self.findings())
        return f"Seen({self.model.get('name', 'model')}: {heads} heads)\n{lines}"


__all__ = ["ROLES", "Seen"]
