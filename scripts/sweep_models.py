"""Attach to every class of models that transformers has, and to many of diffusers and timm.

    python scripts/sweep_models.py [--library L] [--minutes N] [--again CLASS ...] [--stale]

Each class is built with small random weights, run plainly, and run with a stage that does nothing;
of timm one model of each file, a small one, at its own size. timm needs a torchvision of torch's
build, and is left out where it does not import.
What was found is kept in docs/models-tried.json as it comes, so that a run that was ended goes on
where it was; a class whose process died is kept as such. docs/models-tried.md is written from it.
Classes tried with another version of their library are tried again; with --stale also those whose
row is of an older check, which looked at the first output alone.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.metadata
import json
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

KEPT, PAGE = ROOT / "docs" / "models-tried.json", ROOT / "docs" / "models-tried.md"
SECONDS, MEMORY = 40, 6 << 30
# What may come of a class, in the order of the page, and what it means.
OUTCOMES = {
    "unchanged": "attached; with a stage that does nothing the model gives what it gave, and "
                 "zeros in place of attention are felt",
    "attached": "attached, and its sites are named; no tiny input was found that the class takes",
    "refused": "it attends, in a way no hook reaches, and the error names the module",
    "no attention": "nothing in it attends",
    "changed": "attached, and the check failed: a fault of ours until it is explained",
    "unnamed": "attached, and attention passed by that no message names: a fault of ours",
    "broke": "an error that is none of ours came out of attaching: a fault of ours",
    "died": "the process ended while the class was tried",
    "not built": "no tiny model could be made of it here, by what its error says",
}  # fmt: skip


# Models to try, the first that can be built and fed counts, each with inputs for it.
Maker = Callable[[], Iterator[tuple[Any, Iterator[dict[str, Any]]]]]


class TookTooLongError(BaseException):
    """A class takes more CPU seconds than one may; no `except Exception` on the way keeps it."""


class EndedError(BaseException):
    """Somebody ends the sweep; the class that is being tried says nothing."""


def classes() -> list[str]:
    """Name the classes of transformers: those called ...Model, and one of each other type."""
    import transformers
    from transformers.models.auto import modeling_auto

    found = {n for n in dir(transformers) if n.endswith("Model") and not n.startswith("Auto")}
    found = {n for n in found if not n.endswith("PreTrainedModel")}
    types: dict[str, str] = {}
    for mapping, names in sorted(vars(modeling_auto).items()):
        if mapping.startswith("MODEL_") and mapping.endswith("_MAPPING_NAMES"):
            for kind, name in names.items():
                name = name if isinstance(name, str) else name[0]
                if mapping == "MODEL_MAPPING_NAMES":
                    found.add(name)
                types.setdefault(kind, name)
    based = modeling_auto.MODEL_MAPPING_NAMES
    found |= {name for kind, name in types.items() if kind not in based}
    return sorted(found & set(dir(transformers)))


def models(library: str) -> dict[str, Maker]:
    """Return what makes the model of each class, and inputs for it."""
    if library == "diffusers":
        from tests.diffusion import MAKERS

        return {make.__name__: _given(partial(_denoiser, make)) for make in MAKERS}
    if library == "timm":
        return _of_timm()
    import transformers

    from tests.tiny_models import inputs_of, tiny_models

    def make(name: str) -> Maker:
        def made() -> Iterator[tuple[Any, Iterator[dict[str, Any]]]]:
            for model in tiny_models(getattr(transformers, name)):
                yield model, inputs_of(model)

        return made

    return {name: make(name) for name in classes()}


def _of_timm() -> dict[str, Maker]:
    """Choose the model of each file of timm whose name is of the smallest size."""
    import timm
    import torch
    from timm.models import list_models, list_modules

    sizes = ("atto", "femto", "pico", "nano", "xxtiny", "xxs", "xtiny", "tiny", "mini", "small")
    chosen: dict[str, Callable[[], Any]] = {}
    for module in list_modules():
        names = list_models(module=module)
        if not names:
            continue
        rank = {s: i for i, s in enumerate(sizes)}
        name = min(names, key=lambda n: (min((rank[s] for s in sizes if s in n), default=99), n))

        def make(name: str = name) -> Any:
            torch.manual_seed(0)
            model: Any = timm.create_model(name, pretrained=False, num_classes=5)
            return model, {"x": torch.randn(1, *model.default_cfg["input_size"])}

        chosen[name] = _given(make)
    return chosen


def _denoiser(make: Callable[..., Any]) -> Any:
    """Build a model of diffusers, with a noisy picture and its time."""
    import torch

    from tests.diffusion import build

    torch.manual_seed(0)
    model, inputs = build(make)
    time = "timesteps" if "HiDream" in type(model).__name__ else "timestep"
    return model, {**inputs, time: torch.tensor([5])}


def _given(make: Callable[[], Any]) -> Maker:
    def made() -> Iterator[tuple[Any, Iterator[dict[str, Any]]]]:
        model, inputs = make()
        yield model.eval(), iter([inputs])

    return made


def tried(make: Maker) -> dict[str, Any]:
    """Build a model, run it plainly and attached, and say what came of it."""
    import torch

    from regard.core.errors import RegardError
    from regard.models import Null, UnsupportedModelError, attach
    from regard.models.checking import HookError, tensors_of
    from tests.alone import Alone

    try:
        model, given, why = chosen(make)
    except Exception as error:
        return {"outcome": "not built", "why": said(error)}
    found: dict[str, Any] = {}
    try:
        with torch.no_grad(), attach(model, [Null()], check=False) as attached:
            found["sites"] = len(attached.sites)
            kinds = [x.partition("(")[2].rstrip(")") for x in attached.unreached]
            if kinds:
                found["not reached"] = sorted(set(kinds))
            if given is not None:
                plain: list[Any] = []
                alone = Alone().watch(model, lambda: plain.append(model(**given)))
                left = sorted(alone - set(attached.unreached))
                if left:
                    return {"outcome": "unnamed", "why": ", ".join(left[:3]), **found}
        if given is None:
            return {"outcome": "attached", "why": why, **found}
        with attach(model, [Null()], check=given) as attached:
            found["check"] = attached.checked.partition("; not reached")[0]
        found["outputs"] = len(list(tensors_of(plain[0])))
        if "attention_mask" in given and not bool(given["attention_mask"].all()):
            found["padded row"] = True
    except HookError as error:
        return {"outcome": "changed", "why": said(error), **found}
    except UnsupportedModelError as error:
        none = "attends nowhere" in str(error)
        return {"outcome": "no attention" if none else "refused", "why": said(error), **found}
    except Exception as error:
        whose = "ours" if isinstance(error, RegardError) else "not ours"
        return {"outcome": "broke", "why": f"{whose}: {said(error)}", **found}
    return {"outcome": "unchanged", **found}


def chosen(make: Maker) -> tuple[Any, dict[str, Any] | None, str]:
    """Return the first model that takes some input, with it; else the first, and why not."""
    import torch

    from tests.tiny_models import with_placeholders

    first, why = None, "no input is known"
    for model, candidates in make():
        for given in candidates:
            inputs: dict[str, Any] | None = given
            for _ in range(2):
                try:
                    torch.manual_seed(0)
                    with torch.no_grad():
                        model(**inputs)
                except Exception as error:
                    why = said(error) if why == "no input is known" else why
                    inputs = with_placeholders(model, given, str(error))
                    if inputs is None:
                        break
                else:
                    return model, inputs, ""
        first = model if first is None else first
    return first, None, why


def said(error: BaseException) -> str:
    """Say an error in a line without paths."""
    words = " ".join(str(error).replace(str(ROOT), "").split())
    return f"{type(error).__name__}: {words[:180]}"


def read() -> dict[str, dict[str, Any]]:
    """Read what was kept, by library and class."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def keep(kept: dict[str, dict[str, Any]]) -> None:
    """Write what was found."""
    held = {
        library: {**one, "classes": dict(sorted(one["classes"].items()))}
        for library, one in sorted(kept.items())
    }
    text = json.dumps(held, indent=1, ensure_ascii=False)
    KEPT.with_suffix(".new").write_text(text + "\n", encoding="utf-8")
    KEPT.with_suffix(".new").replace(KEPT)


def is_stale(row: dict[str, Any]) -> bool:
    """Whether a row is of the check that looked at the first output alone."""
    return "check" in row and "outputs" not in row


def sweep(library: str, minutes: float, again: list[str], stale: bool = False) -> int:
    """Try what was not tried, and where asked what is stale; return how many classes are left."""
    kept = read()
    version = importlib.metadata.version(library)
    home = kept.setdefault(library, {"version": version, "classes": {}})
    if home["version"] != version:
        home.update(version=version, classes={})
    rows = home["classes"]
    outcomes = {"not-built": "not built", "no-input": "attached"}
    wanted = {outcomes.get(x, x) for x in again}
    for name in [n for n, row in rows.items() if n in wanted or row["outcome"] in wanted]:
        del rows[name]
    known = models(library)
    home["of"] = len(known)
    begun = time.monotonic()
    for name in [n for n in rows if n not in known]:
        del rows[name]
    due = [name for name in known if name not in rows]
    if stale:
        due += sorted((n for n in known if is_stale(rows.get(n, {}))), key=several_outputs)
    for number, name in enumerate(due):
        if time.monotonic() - begun > 60 * minutes:
            return len(due) - number
        before = rows.get(name)
        rows[name] = {"outcome": "died"}  # unless it lives to say better
        keep(kept)
        try:
            rows[name] = in_time(known[name])
        except EndedError:
            del rows[name]
            rows.update({} if before is None else {name: before})
            keep(kept)
            return len(due) - number
        if before is not None and rows[name]["outcome"] == "not built":
            rows[name] = before  # it was, where a package is that is not here
        print(name, rows[name]["outcome"], rows[name].get("why", ""), flush=True)
        keep(kept)
    return 0


def several_outputs(name: str) -> tuple[bool, str]:
    """Return a key that puts classes of transformers with an output of their own first."""
    import transformers

    forward = getattr(getattr(transformers, name, None), "forward", None)
    given = str(getattr(forward, "__annotations__", {}).get("return", ""))
    return "BaseModelOutput" in given or not given, name


def in_time(make: Callable[[], Any]) -> dict[str, Any]:
    """Try a class for at most its CPU time, which does not depend on what else runs."""

    def late(*_: Any) -> None:
        raise TookTooLongError(f"more than {SECONDS} s of CPU time")

    def ended(*_: Any) -> None:
        raise EndedError("the sweep was ended")

    before = signal.signal(signal.SIGPROF, late)
    before_end = signal.signal(signal.SIGTERM, ended)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tried(make)
    except TookTooLongError as error:
        return {"outcome": "not built", "why": said(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        signal.signal(signal.SIGTERM, before_end)


def page(kept: dict[str, dict[str, Any]]) -> str:
    """Write the page of all that was tried."""
    lines = [
        "# Models that were tried", "",
        "Written by `scripts/sweep_models.py` (`make models`) from [models-tried.json]"
        "(models-tried.json): every class is built with small random weights, run plainly, and run "
        "with a stage that does nothing. Real weights are [another page](support.md).", "",
    ]  # fmt: skip
    for library, home in sorted(kept.items()):
        rows = home["classes"]
        counts = collections.Counter(row["outcome"] for row in rows.values())
        padded = sum(bool(row.get("padded row")) for row in rows.values())
        in_part = sum("not reached" in row for row in rows.values())
        lines += [f"## {library} {home['version']}: {len(rows)} of {home['of']} tried", "",
                  "| outcome | classes | what it means |", "|---|---|---|"]  # fmt: skip
        lines += [f"| {x} | {counts[x]} | {OUTCOMES[x]} |" for x in OUTCOMES if counts[x]]
        old = sum(is_stale(row) for row in rows.values())
        lines += ["", f"Of those unchanged, {padded} were run with a padded row. {in_part} are "
                  "reached in part, and the modules that are not are named. "
                  f"Of {old} rows the first output alone was compared (`--stale`), of the others "
                  "every output.", ""]  # fmt: skip
        for outcome in OUTCOMES:
            chosen = {n: r for n, r in rows.items() if r["outcome"] == outcome}
            if chosen:
                lines += [f"### {library}: {outcome}", "", *_table(chosen), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Write the rows of one outcome: with reasons, or by name alone where there is no more."""
    plain = [n for n, r in rows.items() if not r.get("why") and "not reached" not in r]
    lines = []
    if plain:
        lines += [f"{', '.join(f'`{n}`' for n in plain)}."]
    rest = {n: r for n, r in rows.items() if n not in set(plain)}
    if rest:
        lines += [*([""] if plain else []), "| class | sites | not reached | why |",
                  "|---|---|---|---|"]  # fmt: skip
        for name, row in rest.items():
            why = row.get("why", "").replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_")
            kinds = ", ".join(f"`{x}`" for x in row.get("not reached", []))
            lines.append(f"| `{name}` | {row.get('sites', '')} | {kinds} | {why} |")
    return lines


def main() -> int:
    """Sweep, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument(
        "--library", choices=["transformers", "diffusers", "timm"], default="transformers"
    )
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--again", nargs="*", default=[], help="classes, or outcomes")
    parser.add_argument("--stale", action="store_true", help="also rows of an older check")
    given = parser.parse_args()
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    left = 0
    try:
        left = (
            0
            if given.minutes <= 0
            else sweep(given.library, given.minutes, given.again, given.stale)
        )
    except (ImportError, RuntimeError) as missing:  # a torchvision of another build than torch's
        print(f"{given.library} does not import here: {missing}")
    kept = read()
    PAGE.write_text(page(kept), encoding="utf-8")
    for library, home in sorted(kept.items()):
        counts = collections.Counter(row["outcome"] for row in home["classes"].values())
        print(f"{library}: {dict(counts)}; {left} left")
    return 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
