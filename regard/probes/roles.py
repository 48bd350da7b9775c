"""Roles of heads: previous token, induction, duplicate token, retrieval, delimiters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, fail
from regard.core.method import method
from regard.core.partial import finite
from regard.core.score import Dot
from regard.core.support import Causal, Padding, Sinks, Support, Where, Window
from regard.models.site import Site
from regard.probes.base import Probe
from regard.probes.reading import counted_rows
from regard.probes.registry import register
from regard.probes.scores import Scores, Tally
from regard.run.mass import (
    at_distance,
    gathers,
    log_part,
    log_part_at,
    log_part_of_groups,
    log_part_of_keys,
    log_weight,
    mass,
)


class OnPairs(Probe):
    """A score that is the weight on some pairs: subclasses name the pairs by a support.

    Only queries that have such a pair count.
    """

    want = ("lse",)

    def part(self, call: Call) -> Support:
        """Name the pairs."""
        raise NotImplementedError

    def look(self, site: Site, call: Call, survey: Any) -> None:
        """Add the weight of each query on its pairs."""
        self.add(site, call, log_weight(call) if call.rule.weigh.has_sink else survey.lse)

    def log_part(self, call: Call) -> Tensor:
        """Return the log of the weight on the pairs [b, h, n]."""
        return log_part(call, self.part(call))

    def add(self, site: Site, call: Call, whole: Tensor) -> None:
        """Add the weight of each query on its pairs, out of all its weight (a log)."""
        part = self.log_part(call)
        counted = counted_rows(self.reading, call)
        self.tally.add(site, torch.exp(part - finite(whole)), counted & self.eligible(call, part))

    def eligible(self, call: Call, part: Tensor) -> Tensor:
        """Return queries that have such a pair, by the log of the weight on them."""
        return part > -torch.inf


class Detected(OnPairs):
    """A score on pairs that can also be that of TransformerLens' `detect_head`.

    `definition="share"` is its error measure "mul", `"difference"` its "abs"; `exclude_bos` and
    `exclude_current_token` leave the first key, and each token itself, out of both.
    """

    def __init__(
        self, where: Any = None, *, definition: str | None = None, exclude_bos: bool = False,
        exclude_current_token: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(where, definition=definition)
        self.out: list[Support] = [Sinks(1)] if exclude_bos else []
        self.out += [Window(1)] if exclude_current_token else []
        self.all = Tally()
        if self.out and self.definition not in DETECTED:
            fail(
                RuleError, "exclude_bos" if exclude_bos else "exclude_current_token",
                f"True, by the definition {self.definition!r}", f"one of {list(DETECTED)}",
                "pass definition='share' or definition='difference'",
            )  # fmt: skip

    def add(self, site: Site, call: Call, whole: Tensor) -> None:
        """Add the weight on the pairs, and on all that are not left out."""
        if self.definition not in DETECTED:
            return super().add(site, call, whole)
        pairs, everything = self.part(call), torch.exp(whole - finite(whole))
        for out in self.out:
            pairs = pairs & ~out
        if self.out:
            left_out = self.out[0] if len(self.out) == 1 else self.out[0] | self.out[1]
            everything = everything - mass(call, left_out, whole)
        rows = mass(call, pairs, whole)
        if self.definition == "difference":
            flat = call.rule.replace(score=Dot(0.0))
            many = torch.exp(log_part(call.replace(rule=flat), pairs))
            rows, everything = many + everything - 2 * rows, torch.ones_like(rows)
        counted = counted_rows(self.reading, call)
        self.tally.add(site, rows, counted)
        self.all.add(site, everything, counted)
        return None

    def result(self) -> Scores:
        """Divide the weight on the pairs by all weight, or take the difference from 1."""
        found = self.tally.means()
        if self.definition == "share":
            all_of_it = self.all.means()
            found = {site: x / all_of_it[site] for site, x in found.items()}
        elif self.definition == "difference":
            found = {site: 1 - x for site, x in found.items()}
        return self.scores(found)


# Definitions by which TransformerLens scores heads.
DETECTED = {
    "share": "the same pairs' share of all weight, queries without such a key counting too "
    "(TransformerLens detect_head, error_measure='mul')",
    "difference": "1 - mean over queries of the sum over keys of |A - D|, where D is 1 on these "
    "pairs and 0 elsewhere (TransformerLens detect_head, error_measure='abs'); may be below 0",
}


def words_of(probe: Probe, call: Call) -> Tensor:
    """Return the token ids [b, n] the probe was shown, as many as there are keys."""
    tokens = probe.reading.tokens
    if tokens is None or tokens.shape[-1] != call.m:
        fail(
            CapabilityError, f"probes: {probe.name}",
            "no token ids" if tokens is None else f"{tokens.shape[-1]} ids for {call.m} keys",
            "inputs with input_ids, shown at once", "pass text or ids, not embeddings",
        )  # fmt: skip
    return tokens.to(call.q.device)


@register("previous_token", groups=("roles",))
class PreviousToken(Detected):
    """Weight on the token before: the mean of A[i, i-1]."""

    key, title = "previous_token", "previous token"
    definitions: ClassVar = {
        "mean": "mean over queries of A[i, i-1] (TransformerLens)",
        **DETECTED,
    }
    distance = 1

    def log_part(self, call: Call) -> Tensor:
        """Read the one key of each query."""
        return log_part_at(call, self.distance)

    def part(self, call: Call) -> Support:
        """Return the key one before the query."""
        return at_distance(self.distance)


@register("next_token", groups=("roles",))
class NextToken(PreviousToken):
    """Weight on the token after: the mean of A[i, i+1]; nothing where the future is hidden."""

    key, title, distance = "next_token", "next token", -1
    definitions: ClassVar = {"mean": "mean over queries of A[i, i+1] (BERT's heads, Clark 2019)"}


@register("offset")
class Offset(PreviousToken):
    """Weight at one distance back: the mean of A[i, i-distance]."""

    key, title = "offset", "fixed distance"
    definitions: ClassVar = {"mean": "mean over queries of A[i, i-distance]"}

    def __init__(self, distance: int = 2, where: Any = None) -> None:
        super().__init__(where)
        self.distance = distance


@register("local", groups=("roles",))
class Local(OnPairs):
    """Weight on the nearest keys, itself among them: the share within a window."""

    key, title = "local", "local window"
    definitions: ClassVar = {"mean": "mean weight within `width` keys on either side"}

    def __init__(self, width: int = 16, where: Any = None) -> None:
        super().__init__(where)
        self.width = width

    def part(self, call: Call) -> Support:
        """Return the window."""
        return Window(self.width)

    def eligible(self, call: Call, part: Tensor) -> Tensor:
        """Return queries that may attend to a key beyond the window."""
        past = [log_part_at(call, way * self.width) for way in (1, -1)]
        return (past[0] > -torch.inf) | (past[1] > -torch.inf)


@register("delimiter", groups=("roles",))
class Delimiter(OnPairs):
    """Weight on separators: punctuation, line ends, special tokens, by their ids or words."""

    key, title = "delimiter", "delimiters"
    definitions: ClassVar = {"mean": "mean weight on delimiter tokens (Clark 2019 on [SEP])"}
    marks: ClassVar = frozenset(".,;:!?\n|()[]{}\"'`")

    def __init__(self, ids: Collection[int] | None = None, where: Any = None) -> None:
        super().__init__(where)
        self.ids = None if ids is None else torch.tensor(sorted(ids))

    def log_part(self, call: Call) -> Tensor:
        """Read the delimiters alone, where the text is long."""
        part = self.part(call)
        assert isinstance(part, Padding)
        if gathers(call) and part.valid.shape[0] == 1 and bool(part.valid.any()):
            return log_part_of_keys(call, part.valid[0].nonzero()[:, 0].to(call.q.device))
        return log_part(call, part)

    def part(self, call: Call) -> Support:
        """The keys that are delimiters, the first token left out: it is a sink by its place."""
        tokens = words_of(self, call)
        if self.ids is not None:
            there = torch.isin(tokens, self.ids.to(tokens.device))
        elif self.reading.words:
            if bool((tokens != tokens[:1]).any()):
                fail(
                    CapabilityError, "ids", f"None, and {len(tokens)} texts with the words of one",
                    "the ids of delimiters, or one text at a time",
                    "pass Delimiter(ids=[...]), or a list of texts",
                )  # fmt: skip
            marks = [bool(w.strip(" ")) and set(w.strip(" ")) <= self.marks
                     for w in self.reading.words]  # fmt: skip
            there = torch.tensor(marks, device=tokens.device)[None].expand(len(tokens), -1)
        else:
            fail(
                CapabilityError, "ids", "None, and no words were shown", "the ids of delimiters",
                "pass Delimiter(ids=[...]) or text with a tokenizer",
            )  # fmt: skip
        there = there.clone()
        there[:, 0] = False
        return Padding(there)


class OfRepeats(Detected):
    """A score about tokens seen before; by stripe on a repeated stretch, or by the ids of text."""

    causal_only = True
    stimulus = "repeated"
    back: ClassVar[int] = 0  # 1: the key after the earlier copy; 0: the copy itself

    def log_part(self, call: Call) -> Tensor:
        """Read the copies of each token alone, where the text is long or they are one."""
        if self.definition == "stripe":
            return log_part_at(call, self._distance())
        if self.definition != "mask" or not gathers(call) or call.n != call.m:
            return super().log_part(call)
        tokens = words_of(self, call)
        if len(tokens) != 1:
            return super().log_part(call)
        _, groups = tokens[0].unique(return_inverse=True)
        after = torch.nn.functional.pad(groups, (self.back, 0), value=-1)[: call.m]
        before = Causal() if self.back else Causal() & ~Window(1)
        return log_part_of_groups(call, groups, after, before)

    def part(self, call: Call) -> Support:
        """Return the pairs of a copy, by its distance or by the tokens."""
        if self.definition == "stripe":
            return at_distance(self._distance())
        tokens, back = words_of(self, call), self.back

        def copied(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            b = b.clamp(max=len(tokens) - 1)
            last = tokens.shape[1] - 1
            same = tokens[b, (j - back).clamp(0, last)] == tokens[b, i.clamp(0, last)]
            return same & (j >= back) & (j < i + back)

        return Where(copied)

    def _distance(self) -> int:
        """Return how far back the copy is, of what was shown twice."""
        if self.reading.period is None:
            fail(
                CapabilityError, f"probes: {self.name}", "inputs without a period",
                "the same stretch shown twice", "ask for definition='mask' on your own text",
            )  # fmt: skip
        return self.reading.period - self.back


@register("induction", groups=("roles",))
@method(
    "induction_heads",
    call="from regard.probes.roles import Induction\n"
    "probe = Induction()  # regard.see(model, text, [probe]).scores['induction']",
)
class Induction(OfRepeats):
    """Weight on what followed the earlier copy of this token."""

    key, title, back = "induction", "induction", 1
    definitions: ClassVar = {
        "stripe": "tokens shown twice: mean of A[i, i-period+1] (TransformerLens, Olsson 2022)",
        "mask": "mean weight on all keys whose previous token equals this one",
        **DETECTED,
    }


@register("induction_in_text", groups=("roles",))
class InductionInText(Induction):
    """Weight on what followed earlier copies of this token in the text itself.

    Repeated random tokens show what a head can do, the text how much it does so there.
    """

    key, title, stimulus = "induction_in_text", "induction in this text", "text"
    definitions: ClassVar = {"mask": Induction.definitions["mask"]}


@register("duplicate_token", groups=("roles",))
class DuplicateToken(OfRepeats):
    """Weight on earlier copies of this token."""

    key, title, back = "duplicate_token", "duplicate token", 0
    definitions: ClassVar = {
        "stripe": "tokens shown twice: mean of A[i, i-period] (TransformerLens)",
        "mask": "mean weight on all earlier keys of the same token",
        **DETECTED,
    }


@register("retrieval", groups=("roles",))
@method(
    "retrieval_head",
    call="from regard.probes.roles import Retrieval\n"
    "probe = Retrieval()  # regard.see(model, text, [probe]).scores['retrieval']",
)
class Retrieval(Probe):
    """How often a head's largest weight is on the very token of the needle that comes next."""

    key, title = "retrieval", "retrieval"
    want = ("max",)
    causal_only = True
    stimulus = "needle"
    definitions: ClassVar = {
        "set": "share of the needle's tokens that were looked at as they were said (Wu 2024)",
        "counts": "the same, repeats counted, as the authors' program does; may exceed 1",
    }

    def __init__(self, where: Any = None, *, definition: str | None = None) -> None:
        super().__init__(where, definition=definition)
        self.found: dict[Site, list[Tensor]] = {}

    def look(self, site: Site, call: Call, survey: Any) -> None:
        """Compare the key of each row's largest weight with the token said next."""
        tokens = words_of(self, call)[0]
        spans = self.reading.spans
        if "needle" not in spans or "answer" not in spans:
            fail(
                CapabilityError, f"probes: {self.name}", f"spans {sorted(spans)}",
                "a reading with spans 'needle' and 'answer'",
                "let see() hide a needle, or pass the spans of yours",
            )  # fmt: skip
        needle, answer = spans["needle"], spans["answer"]
        rows = torch.arange(answer.start - 1, answer.stop - 1)
        key = survey.row_max_key[0][:, rows]  # [h, said]
        said = tokens[rows + 1]
        hit = (key >= needle.start) & (key < needle.stop) & (tokens[key] == said)
        if self.definition == "counts":
            score = hit.sum(1) / (needle.stop - needle.start)
        else:
            wanted = set(tokens[needle].tolist())
            score = torch.tensor([len(set(said[x].tolist()) & wanted) for x in hit]) / len(wanted)
        self.found.setdefault(site, []).append(score.double().cpu())

    def result(self) -> Scores:
        """Return the mean over the needles shown."""
        many = max((len(x) for x in self.found.values()), default=0)
        means = {site: torch.stack(x).mean(0) for site, x in self.found.items()}
        return self.scores(means, needles=many)
