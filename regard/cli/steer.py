"""`regard steer`: a model with and without a control, side by side, at some strengths."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated, Any

import typer

from regard.cli.asking import at_least, listed, numbers, whole
from regard.cli.completing import one_of_controls
from regard.cli.options import AsJson, ListThem, Model, Revision
from regard.cli.printing import console, print_json, print_rows, print_table

Name = Annotated[
    str, typer.Option("--control", help="A control.", autocompletion=one_of_controls)
]  # fmt: skip
Which = Annotated[
    str, typer.Option("--which", help="Words of the prompt to act on, comma-separated.")
]
Strengths = Annotated[str, typer.Option("--strength", help="Strengths, comma-separated: 0,0.5,1.")]
PROMPT = "def total(price, count):\n    return"


def command(
    model: Model = None,
    name: Name = "emphasis",
    prompt: Annotated[str, typer.Option(help="The prompt to continue.")] = PROMPT,
    which: Which = "",
    strength: Strengths = "0,1,2,4",
    layers: Annotated[str, typer.Option(help="Layers, comma-separated; default: all.")] = "",
    heads: Annotated[str, typer.Option(help="Heads as layer.head, comma-separated: 2.3,4.0.")] = "",
    tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 24,
    revision: Revision = None,
    list_them: ListThem = False,
    as_json: AsJson = False,
) -> None:
    """Steer a model at several strengths: its output, the attention moved, and the cost.

    KL compares next tokens on the prompt with the unsteered model; perplexity is that of unrelated
    text read after the prompt.
    """
    from regard.controls.registry import known

    if list_them:
        kinds = {kind.name: kind for kind in known().values()}
        head = ("control", "for", "nothing at", "in a sentence")
        lines = [
            (n, k.models, "-" if k.neutral is None else f"{k.neutral:g}", _first(k))
            for n, k in kinds.items()
        ]
        return print_rows(head, lines, as_json)
    from regard.cli.models import config_of, need_decoder, text_model
    from regard.controls.registry import control
    from regard.controls.side_by_side import sweep
    from regard.verbs import default_text

    at_least("--tokens", tokens, 1)
    strengths = _numbers("--strength", strength)
    where = _where(layers, heads)
    settings: dict[str, Any] = {} if where is None else {"where": where}
    words = [word for word in which.split(",") if word.strip()]
    if words:
        settings["which"] = words
    elif name == "emphasis":
        settings["which"] = "price" if prompt == PROMPT else _missing()
    made = control(name, **settings)
    otherwise = "steer it from Python: regard.steer(model, ...)"
    need_decoder(config_of(model, revision), otherwise)
    loaded, tokenizer = text_model(model, revision, otherwise)
    found = list(
        sweep(loaded, tokenizer, made, strengths, prompt, default_text(1500), tokens=tokens)
    )
    if as_json:
        return print_json({"control": made.describe(), "strengths": [asdict(x) for x in found]})
    sets = list(dict.fromkeys(s for x in found for s in x.masses))
    print_table(
        ("strength", "KL", "perplexity", "moved", *(f"mass on {s}" for s in sets)),
        [_cells(x, sets) for x in found],
    )
    for x in found:
        label = "without" if x.strength is None else f"strength {x.strength:g}"
        console().print(f"{label:>12} | {x.text!r}", markup=False)
    return None


def _first(kind: Any) -> str:
    return str((kind.__doc__ or "").strip().splitlines()[0])


def _cells(x: Any, sets: list[str]) -> tuple[str, ...]:
    label = "without" if x.strength is None else f"{x.strength:g}"
    masses = [
        f"{x.masses[s][0]:.3f} -> {x.masses[s][1]:.3f}" if s in x.masses else "" for s in sets
    ]
    return (label, f"{x.kl:.4f}", f"{x.perplexity:.2f}", f"{x.moved:.3f}", *masses)


def _missing() -> str:
    from regard.core.errors import RuleError, fail

    return fail(
        RuleError, "--which", "nothing", "words of the prompt to emphasize", "pass --which price"
    )


def _numbers(flag: str, said: str) -> list[float]:
    from regard.core.errors import ValueRangeError, fail

    try:
        found = [float(word) for word in listed(flag, said)]
    except ValueError:
        found = [math.nan]
    if not all(math.isfinite(x) for x in found):
        fail(ValueRangeError, flag, repr(said), "finite numbers by commas", "pass 0,0.5,1")
    return found


def _where(layers: str, heads: str) -> dict[str, Any] | None:
    """Read the --layers and --heads options."""
    from regard.core.errors import ValueRangeError, fail

    made: dict[str, Any] = {}
    if layers:
        made["layers"] = numbers("--layers", layers, 0)
    if heads:
        pairs = [[whole(x) for x in word.split(".")] for word in listed("--heads", heads)]
        if not all(len(pair) == 2 and None not in pair for pair in pairs):
            fail(ValueRangeError, "--heads", repr(heads), "layer.head by commas", "write 2.3,4.0")
        made["heads"] = [tuple(pair) for pair in pairs]
    return made or None
