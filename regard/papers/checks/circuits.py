"""Checks of rows about circuits: heads that are wired by hand, or trained, and are to be found."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.circuits.patching import (
    Patched,
    in_circuit,
    logit_difference,
    overlap,
    path_patching,
    recorded,
)
from regard.circuits.shapley import exact, sampled, shapley_heads
from regard.circuits.tracing import Silenced, signal, sources, watch
from regard.models.attach import attach, hook_of
from regard.models.loading import load
from regard.models.projections import output_weights
from regard.models.site import Site
from regard.models.weights import closed_weights
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.seeing import _copier
from regard.papers.checks.wired import Wired
from regard.probes.importance import Averaged, means_of, taken_out
from regard.probes.reading import Reading
from regard.probes.roles import DuplicateToken, Induction, PreviousToken
from regard.probes.scores import Head
from regard.probes.stimuli import repeated

CLEAN = torch.tensor([[0, 3, 1, 4, 2, 5, 0, 3]])


@check("circuit_reuse")
def paths() -> Measured:
    """Path patching finds the two wired heads, and nothing where nothing differs."""
    model, metric = Wired(), logit_difference(1, 2)
    sites = hook_of(model)[1]
    record, clean = recorded(model, CLEAN, metric)
    same = Patched(record.parts, {site: range(2) for site in sites})
    with attach(model, same, check=False), torch.no_grad():
        unchanged = abs(float(metric(model(CLEAN))) - clean)
    told = CLEAN.clone()
    told[0, 2], told[0, 4] = 2, 1  # another word follows
    other, corrupt = recorded(model, told, metric)
    every = Patched(other.parts, {site: range(2) for site in sites})
    with attach(model, every, check=False), torch.no_grad():
        reproduced = abs(float(metric(model(CLEAN))) - corrupt)
    direct = path_patching(model, CLEAN, told, metric)
    movers = in_circuit(direct.scores, share=0.25)
    moved = torch.tensor([[0, 4, 1, 3, 2, 5, 0, 3]])  # the token before the answer is another
    keys = path_patching(model, CLEAN, moved, metric, receivers=movers, part="k")
    feeders = in_circuit(keys.scores, share=0.25)
    found = {*movers, *feeders}
    wanted = {(sites[1], 0), (sites[0], 1)}
    rest = max(
        abs(h.value) for e in (direct, keys) for h in e.scores.heads()
        if (h.site, h.head) not in wanted
    )  # fmt: skip
    return Measured(
        "patching a run with itself changes the metric by 0; all heads at once reproduce the "
        "corrupted run (1e-5); in an induction circuit wired by hand path patching returns the two "
        "wired heads and no other",
        unchanged == 0 and reproduced < 1e-5 and found == wanted and rest < 1e-5,
        {"changed by itself": unchanged, "corrupted run, off by": reproduced,
         "found": str(sorted(f"L{s.layer}H{h}" for s, h in found)),
         "overlap with the wired": overlap(found, wanted), "largest other effect": rest},
        left_out="indirect object identification and colored objects in GPT-2 medium",
    )  # fmt: skip


@check("head_role_survey")
def roles() -> Measured:
    """The probes of roles name the wired heads and no other; patching and averaging do as said."""
    model = Wired()
    ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    reading = Reading({"input_ids": ids}, period=4)
    probes = [PreviousToken(), Induction(), DuplicateToken()]
    for probe in probes:
        probe.show(reading)
    with attach(model, probes, check=False), torch.no_grad():
        model(ids)
    named = {p.name: [h.name for h in p.told().heads() if h.value > 0.5] for p in probes}
    metric = logit_difference(1, 2)
    told = CLEAN.clone()
    told[0, 2], told[0, 4] = 2, 1
    record, clean = recorded(model, CLEAN, metric)
    _, corrupt = recorded(model, told, metric)
    last = hook_of(model)[1][1]
    with attach(model, Patched(record.parts, {last: range(2)}), check=False), torch.no_grad():
        recovery = (float(metric(model(told))) - corrupt) / (clean - corrupt)
    unused = Averaged([(last, 1)], means_of(model, CLEAN))
    with attach(model, unused, check=False), torch.no_grad():
        change = abs(float(metric(model(CLEAN))) - clean)
    return Measured(
        "in an induction circuit wired by hand previous token names L0H1 alone, induction L1H0 "
        "alone, duplicate token none; patching all heads of the last layer restores 1.0; averaging "
        "an unused head changes nothing",
        named == {"previous_token": ["L0H1"], "induction": ["L1H0"], "duplicate_token": []}
        and abs(recovery - 1) < 1e-5 and change < 1e-6,
        {"named": str(named), "recovery": recovery, "unused head": change},
        left_out="roles of large models that the survey collects",
    )  # fmt: skip


@check("sparse_attention_decomposition")
def signals() -> Measured:
    """Terms sum to the score, sources to the signal; without it the head looks away."""
    model = load(None)[0].double()
    sites = hook_of(model)[1]
    reading = repeated(2048, first=0, period=40, rows=1, seed=3)
    ids = reading.tokens
    assert ids is not None
    probe = Induction()
    probe.show(reading)
    with attach(model, probe, check=False), torch.no_grad():
        model(ids)
    reader = probe.told().top(1)[0]
    totals, parts, drops, chances, kepts, writers = [], [], [], [], [], []
    for query in range(52, 78, 5):  # of the second copy
        key = query - 40 + 1
        seen = watch(model, ids)
        found = signal(model, seen, reader.site, reader.head, query, key)
        traced = sources(seen, found)
        totals.append(abs(float(found.terms.sum()) - found.score))
        kept = float(found.terms[: found.kept].sum())
        parts.append(abs(sum(x for _, x in traced) - kept))
        kepts.append(found.kept)
        name = next(name for name, _ in traced if "H" in name)
        writers.append(name)
        layer, head = name[1:].split("H")
        at = _At(model, ids, reader, (sites[int(layer)], int(head)), query, key)
        directions = found.v[:, : min(found.kept, 5)]
        plain = at.weight(None)
        drops.append(plain - at.weight(directions))
        chances.append(sum(plain - at.weight(torch.randn_like(directions)) for _ in range(5)) / 5)
    drop, chance = (sum(x) / len(x) for x in (drops, chances))
    return Measured(
        "all terms sum to the raw score (1e-5, of scores near 100: rotations are float32), and "
        "what embedding, heads and MLPs write to the kept terms (the norm's scale held); taking at "
        "most five traced directions out of the head that wrote most of the signal lowers the "
        "induction head's weight by over twice what random directions of that rank do",
        max(totals) < 1e-5 and max(parts) < 1e-1 and drop > 0.05 and drop > 2 * chance,
        {"terms, off by": max(totals), "sources, off by": max(parts), "reader": reader.name,
         "writers": str(sorted(set(writers))), "directions kept": str(kepts),
         "weight lost without the signal": drop, "without random directions": chance},
        left_out="GPT-2 small on indirect objects; this is the model that ships",
    )  # fmt: skip


class _At:
    """The reader's weight on one key, with directions taken out of what a writer says."""

    def __init__(
        self, model: nn.Module, ids: Tensor, reader: Head, writer: tuple[Site, int], query: int,
        key: int,
    ) -> None:  # fmt: skip
        self.model, self.ids, self.reader, self.writer = model, ids, reader, writer
        self.place = (0, reader.head, query, key)

    def weight(self, directions: Tensor | None) -> float:
        stages = []
        if directions is not None:
            written = output_weights(self.model, self.writer[0])[0]
            stages = [Silenced(*self.writer, written, directions)]
        with attach(self.model, stages, check=False):
            call = watch(self.model, self.ids).calls[self.reader.site]
        return float(closed_weights(call, "check")[self.place])


@check("shapley_head_pruning")
def shapley() -> Measured:
    """Known games have their values; sampling six heads of a model agrees with every subset."""
    worth = torch.tensor([0.3, -0.1, 0.05, 0.2], dtype=torch.float64)

    def additive(inside: frozenset[int]) -> float:
        return float(worth[list(inside)].sum()) if inside else 0.0

    one = sampled(additive, 4, 1)
    known = gap(one.values, worth)
    assert one.empty is not None
    efficient = abs(float(one.values.sum()) - (one.full - one.empty))
    model, _ = _copier(2)
    torch.manual_seed(4)
    stretch = torch.randint(0, 40, (32, 12))
    ids = torch.cat([stretch, stretch], 1)
    heads: list[tuple[Site, int]] = [(s, h) for s in hook_of(model)[1] for h in range(3)]

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            said = model(ids)[:, 12:-1].argmax(-1)
        return float((said == ids[:, 13:]).double().mean())

    found = shapley_heads(model, accuracy, heads, permutations=40, width=1.0)
    cache: dict[frozenset[int], float] = {}

    def value(inside: frozenset[int]) -> float:
        if inside not in cache:
            out = taken_out([head for i, head in enumerate(heads) if i not in inside])
            with attach(model, out, check=False):
                cache[inside] = accuracy(model)
        return cache[inside]

    truth = exact(value, 6)
    within = bool(((found.values - truth).abs() <= found.bound).all())
    worse = [heads[i] for i in range(6) if truth[i] < 0]
    with attach(model, taken_out(worse), check=False):
        pruned = accuracy(model)
    return Measured(
        "in an additive game values are each player's worth, and sum to v(all) - v(none) in one "
        "order; over six heads of a trained copier 40 orders agree with all 64 subsets within "
        "their Bernstein bounds; without heads of negative value accuracy is no lower",
        known < 1e-9 and efficient < 1e-9 and within and pruned >= found.full - 1e-9,
        {"additive game, off by": known, "sum, off by": efficient,
         "largest gap to every subset": gap(found.values, truth),
         "smallest bound": float(found.bound.min()), "accuracy": found.full,
         "negative heads": len(worse), "accuracy without them": pruned},
        left_out="multilingual encoders",
    )  # fmt: skip
