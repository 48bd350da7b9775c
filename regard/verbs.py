"""The verbs: what people do to a model's attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from regard.controls.registry import make_control
from regard.controls.steered import Steered
from regard.controls.steering import Steering
from regard.core.errors import CapabilityError, RuleError, fail, nearest, shape_of
from regard.models.attach import attach, hook_of
from regard.models.fingerprint import fingerprint
from regard.models.loading import load, shown_name
from regard.models.pipelines import Runner, is_pipeline
from regard.models.site import Site
from regard.policies.calibration import load_calibration
from regard.policies.registry import make_policies
from regard.policies.shrinking import Shrinking
from regard.policies.shrunk import Shrunk
from regard.probes.base import Probe
from regard.probes.looking import Look, Progress, need_sites, picture_of, quiet, readings_of
from regard.probes.maps import Maps
from regard.probes.reading import Reading
from regard.probes.registry import make_probes
from regard.probes.scores import Head, Scores, head_name, towers
from regard.probes.words import Words
from regard.views.compare import Comparison, compare_runs
from regard.views.one_head import SeenHead
from regard.views.rollout import roll_out
from regard.views.run_file import Run
from regard.views.seen import Seen
from regard.views.sound import spectrogram_of

# What one forward tells; importance needs a backward as well, and is read when it is asked for.
STANDARD = ("roles", "sinks", "shape")
DENOISING = ("words", "shape")
# Bytes of heads that are kept in full, where how many is said; and where it is not: a page of them
# is to be sent.
DEEP_BYTES, SENT_BYTES = 12 * 2**20, 4 * 2**20
# Heads that are kept in full where none are named; all of them where they take no more than this.
KEPT, FEW_BYTES = 12, 2**20
SHORT = 64


def see(
    model: Any = None,
    inputs: Any = None,
    probes: Any = None,
    *,
    tokenizer: Any = None,
    where: Any = None,
    heads: int | Sequence[tuple[int, int] | str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Seen:
    """Look at what the heads of a model do.

    `model` is a module, a name to load, or None for the small model that ships with Regard;
    `inputs` are text, texts, ids [b, n], or a dict of model inputs; of a pipeline of diffusers, a
    prompt or a dict of its arguments. `probes` are names, groups ("roles", "sinks", "shape",
    "vision"; "importance", which needs a backward pass too; "words" for models that make images;
    "standard" for what is read where none is named) or `Probe`s. `heads` says how many
    heads, or which, by (layer, head) or by name as "language.L3H1", are kept in full, so that a
    page can zoom to every weight; unless it is given 12 are, or all of a small model on a short
    text.
    No matrix of weights is made: memory grows with the length of the input, not with its square.

        seen = regard.see(model, "some text", tokenizer=tokenizer)
        print(seen.table())
        seen.save("heads.html")
    """
    count = heads if isinstance(heads, int) else 0
    if isinstance(heads, bool | str) or count < 0:
        fail(RuleError, "heads", repr(heads), "a number, or pairs (layer, head)", "pass heads=12")
    name = shown_name(model) if model is None or isinstance(model, str | Path) else ""
    runner = None
    if is_pipeline(model):
        for given, x in (("heads", heads), ("tokenizer", tokenizer)):
            if x is not None:
                fail(
                    RuleError, given, f"{shape_of(x)}, with a pipeline", "None",
                    "leave it out: a pipeline has its tokenizers, and is run once, with no second "
                    "run to keep heads of",
                )  # fmt: skip
        runner = Runner(model)
        name, model = type(model).__name__, runner.model
    elif model is None or isinstance(model, (str, Path)):
        model, loaded = load(model)
        tokenizer = tokenizer or loaded
    elif not isinstance(model, nn.Module):
        fail(
            RuleError, "model", shape_of(model), "a module, a pipeline, or a name to load",
            "leave it out for the model that ships",
        )  # fmt: skip
    else:
        config = getattr(model, "config", None)
        name = shown_name(getattr(config, "_name_or_path", "") or type(model).__name__)
    hook, sites = hook_of(model)
    denoises = hook.name == "diffusers"
    usual = DENOISING if denoises else STANDARD
    if any(site.grid for site in sites):
        usual = (*usual, "vision")
    made = make_probes(_with_usual(probes or usual, usual))
    if where is not None:  # a probe that was told its own sites keeps them
        chosen_sites, everywhere = Probe(where).where, Probe().where
        sites.select(chosen_sites)
        for probe in made:
            probe.where = chosen_sites if probe.where == everywhere else probe.where
    if heads is not None and not isinstance(heads, int):
        _need_heads(sites, heads)
    if runner is None:
        readings = readings_of(model, default_text() if inputs is None else inputs, tokenizer)
    else:
        readings = [Reading(runner.arguments(inputs), words=runner.words(inputs))]
    look = Look(model, readings, tokenizer, where, seed, progress, runs=runner)
    first = readings[0]
    tokens = first.tokens.shape[1] if first.tokens is not None else 256
    maps = Maps(tokens, None if runner is None else {"steps": 0})
    with quiet(model):
        look.run(made, maps)
        scores = _told(made, look)
        if not maps.found and not look.interrupted:
            need_sites([])
        seen = Seen(
            {"name": name, "kind": type(model).__name__, "dtype": str(_dtype(model))},
            [site for site in sites if site in maps.found] or list(sites),
            scores, () if denoises else first.words, maps.found, (), look.skipped,
            look.interrupted,
            # Of the text that is read where none is passed nobody asked for the end.
            notes=[x.cut for x in readings if x.cut and inputs is not None],
            made_from={"model": fingerprint(model), "inputs": first.digest},
            asked=heads is not None,
        )  # fmt: skip
        looked = [probe for probe in made if isinstance(probe, Words) and probe.sums]
        heard = spectrogram_of(first.inputs)
        seen.sound = heard is not None
        seen.image = picture_of(first) if heard is None else heard
        seen.rollout = None if maps.kept is None else roll_out(maps.kept.values())
        if looked:
            seen.words_seen = looked[0].maps()
        if runner is not None:  # a second run would make another image
            seen.image = runner.picture()
            return seen
        chosen = _chosen_heads(seen, heads)
        if chosen and not look.interrupted:
            seen.deep = look.deep(chosen, maps).found
            seen.interrupted = look.interrupted
    return seen


def _with_usual(probes: Any, usual: Sequence[str]) -> Any:
    """Replace the name "standard" by what is read where nothing is named."""
    many = [probes] if isinstance(probes, str | Probe) else probes
    if not isinstance(many, Sequence):
        return probes
    whole = [usual if isinstance(one, str) and one == "standard" else [one] for one in many]
    return [x for some in whole for x in some]


def _told(probes: Sequence[Probe], look: Look) -> dict[str, Scores]:
    """What each probe says; those that a group brought, and that could not look, are skipped."""
    scores = {}
    for probe in probes:
        if probe.name in look.skipped:
            continue
        try:
            said = probe.told()
        except CapabilityError as error:
            if probe.named:
                raise
            look.skipped[probe.name] = str(error.got)
        else:
            if said.values and all(bool(x.isnan().all()) for x in said.values.values()):
                # On a long text what no query has is what this model cannot do: its next tokens
                # are hidden, say.
                if said.tokens is not None and said.tokens < SHORT:
                    look.skipped[probe.name] = (
                        f"the text of {said.tokens:,} tokens is too short: no token counts for it"
                    )
            elif said.values:
                scores[said.name] = said
    return scores


def compare(a: Seen | Run | str | Path, b: Seen | Run | str | Path) -> Comparison:
    """Compare two looks at the same tokens: `write_page(compare(a, b), "change.html")`.

    Each is what `see` gave, or the name of a run file.
    """
    runs = []
    for name, x in (("run_a", a), ("run_b", b)):
        if not isinstance(x, Seen | Run | str | Path):
            fail(RuleError, name, shape_of(x), "what see() gave, or a run file", "name a run file")
        runs.append(x.run() if isinstance(x, Seen) else x if isinstance(x, Run) else Run.load(x))
    return compare_runs(*runs)


def shrink(
    model: Any,
    policies: Any,
    *,
    keep: Any = 0.25,
    calibrate: Any = None,
    tokenizer: Any = None,
    check: Any = True,
) -> Shrunk:
    """Make a trained model keep less, or attend to less, until it is detached.

    `model` may be a pipeline of diffusers. `policies` is a name, a `regard.policies.Policy`, or a
    list of these that stack: one that evicts, one that stores, one for prompts. `keep` is a share
    of the tokens seen, a number of tokens, or bytes ("2 MiB") for one row over all layers.
    `calibrate` is a calibration file, for policies that need one. At `keep=1.0` the model gives
    what it gave.

        with regard.shrink(model, "snapkv", keep=0.25) as shrunk:
            model.generate(ids)
            print(shrunk.report())
    """
    made = make_policies(policies)
    runner = Runner(model) if is_pipeline(model) else None
    model = model if runner is None else runner.model
    if calibrate is not None:
        load_calibration(made, model, calibrate)
    stage = Shrinking(made, keep)
    stage.pipeline = None if runner is None else runner.pipeline
    return Shrunk(attach(model, [stage], check=check), stage, tokenizer)


def steer(
    model: Any,
    control: Any,
    *,
    strength: Any = None,
    which: Any = None,
    where: Any = None,
    phase: str | None = None,
    tokenizer: Any = None,
    messages: Any = (),
    documents: Sequence[str] = (),
    prompt: Any = None,
    grid: tuple[int, int] | None = None,
    measure: str = "some",
    must_move: bool = True,
    check: Any = True,
) -> Steered:
    """Change the attention of a model on purpose, until it is detached; `receipt` tells what moved.

    `control` is a name, a `regard.controls.Control`, or edits. `which` names tokens (a word, which
    needs a `tokenizer`; numbers; a `TokenSet`), `strength` says how much (a number, or one for each
    row), `where` layers, heads and kinds of sites, `phase` "prompt", "decoded" or "both".
    `messages` and `documents` are what the prompt was made of, so that its parts are found;
    `prompt` [b, n] are its ids, where it comes in pieces. A control that moved nothing raises
    `NothingMoved`, unless `must_move=False`; weights are measured at "some", "all" or "none" of
    the calls.

        with regard.steer(model, "emphasis", which="Paris", tokenizer=tokenizer) as steered:
            model.generate(ids)
        print(steered.receipt)
    """
    made = make_control(control, strength=strength, which=which, where=where, phase=phase)
    runner = Runner(model) if is_pipeline(model) else None
    model = model if runner is None else runner.model
    stage = Steering(
        made, tokenizer=tokenizer, messages=messages, documents=documents, grid=grid,
        prompt=prompt, measure=measure, must_move=must_move,
        pipeline=None if runner is None else runner.pipeline,
    )  # fmt: skip
    return Steered(attach(model, [stage], check=check), stage)


def _need_heads(sites: Sequence[Site], heads: Sequence[tuple[int, int] | str]) -> None:
    """Raise unless each is a pair (layer, head), or the name, of a head of the model."""
    many = {site.layer: site.heads or 0 for site in reversed(sites) if site.layer is not None}
    named = towers(sites)
    names = [head_name(s, h, named[s]) for s in sites for h in range(s.heads or 0)]
    for one in heads:
        if isinstance(one, str):
            if one not in names:
                fail(
                    RuleError, "heads", repr(one), f"one of {len(names)} heads, as {names[:1]}",
                    nearest(one, names, "pass heads=[(1, 3)], say"),
                )  # fmt: skip
            continue
        pair = isinstance(one, Sequence) and len(one) == 2
        if not pair or one[0] not in many or not 0 <= one[1] < many[one[0]]:
            fail(
                RuleError, "heads", repr(one),
                f"pairs (layer, head), of layers {min(many, default=0)} to {max(many, default=0)} "
                f"and heads 0 to {max(many.values(), default=1) - 1}", "pass heads=[(1, 3)], say",
            )  # fmt: skip


def _chosen_heads(
    seen: Seen, heads: int | Sequence[tuple[int, int] | str] | None
) -> list[tuple[Site, int]]:
    """Which heads to keep in full: those asked for, or the most telling, within a budget."""
    most = DEEP_BYTES
    if heads is None:
        every = [(site, head) for site in seen.drawn for head in range(site.heads or 0)]
        if sum(_cost(seen, site) for site, _ in every) <= FEW_BYTES:
            return every
        heads, most = KEPT, SENT_BYTES
    if not isinstance(heads, int):
        by_layer = {site.layer: site for site in reversed(seen.sites)}
        pairs = [x if isinstance(x, str) else (by_layer[x[0]], x[1]) for x in heads]
        return [(seen[x].site, seen[x].head) if isinstance(x, str) else x for x in pairs]
    tops = [seen.scores[name].top(3) for name in seen.role_names]
    ranked: list[Head | SeenHead] = [*seen.most_telling()]  # the page opens these
    ranked += [top[place] for place in range(3) for top in tops if place < len(top)]
    ranked += [h for x in seen.scores.values() for h in x.top(1)]
    # A kind of attention, or a tower, without a role is looked into as well: its narrowest head.
    if "entropy" in seen.scores:
        narrow: dict[tuple[str, str], Head] = {}
        for one in sorted(seen.scores["entropy"].heads(), key=lambda x: x.value):
            narrow.setdefault((one.site.kind, seen.towers[one.site]), one)
        if len(narrow) > 1:
            ranked = [*ranked[: max(0, heads - len(narrow))], *narrow.values(), *ranked]
    found: dict[tuple[Site, int], int] = {}
    left = most
    for head in ranked if heads else ():  # none, where none are asked for
        cost = _cost(seen, head.site)
        fits = cost <= left or (not found and cost <= DEEP_BYTES)
        if head.site in seen.drawn and (head.site, head.head) not in found and fits:
            found[head.site, head.head] = cost
            left -= cost
        if len(found) == heads:
            break
    return list(found)


def _cost(seen: Seen, site: Site) -> int:
    """How many bytes queries and keys of a head take."""
    drawn = seen.drawn.get(site)
    return 0 if drawn is None else 2 * (drawn.n + drawn.m) * (site.head_size or 64)


def _dtype(model: Any) -> Any:
    return next((p.dtype for p in model.parameters()), None)


def default_text(length: int = 6000) -> str:
    """Text that every machine has: a module of the standard library, code and prose together."""
    import inspect
    import textwrap

    return inspect.getsource(textwrap)[:length]


__all__ = ["compare", "default_text", "see", "shrink", "steer"]
