"""`regard bench`: compare layers on tasks, and measure how their speed and memory grow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from regard.cli.asking import at_least, listed, need_device, numbers, writable_folder
from regard.cli.completing import one_of_layers, one_of_tasks
from regard.cli.options import AsJson, Device, Out
from regard.cli.printing import console, print_json, print_rows, print_table

if TYPE_CHECKING:
    from regard.bench.sweep import News, SweepPlan


class _OrRun(TyperGroup):
    """A command group that runs `run` if the first word is not a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_OrRun, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Compare layers on tasks: regard bench mha gqa linear --tasks mqar,copy --budget 5m",
)  # fmt: skip
Layers = Annotated[
    list[str],
    typer.Argument(help="Layers, with settings: mha gqa:kv_heads=2", autocompletion=one_of_layers),
]


@app.command()
def run(
    layers: Layers,
    tasks: Annotated[
        str,
        typer.Option(
            help="Tasks, comma-separated: mqar:length=128,copy", autocompletion=one_of_tasks
        ),
    ] = "mqar,copy",
    patterns: Annotated[
        str, typer.Option(help="Some of cs, ns, cc, nc; default: the first of each task.")
    ] = "",
    seeds: Annotated[int, typer.Option(help="Seeds to train each from.")] = 1,
    budget: Annotated[str, typer.Option(help="5m, 500steps, 2Tflops; 200kparams with one.")] = "5m",
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.")] = 0,
    on: Annotated[str, typer.Option(help="here, or ray: the cluster of RAY_ADDRESS.")] = "here",
    out: Out = Path("bench"),
    dim: Annotated[int, typer.Option(help="Width of the backbone.")] = 64,
    heads: int = 4,
    depth: Annotated[int, typer.Option(help="Blocks of the backbone.")] = 2,
    positions: Annotated[str, typer.Option(help="sinusoidal, learned or none.")] = "sinusoidal",
    batch: Annotated[int, typer.Option(help="Batch size.")] = 64,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    device: Device = "cpu",
    speed: Annotated[bool, typer.Option(help="Also measure speed and memory.")] = True,
    as_json: AsJson = False,
) -> None:
    """Train every layer on every task, and write a report; the same command resumes."""
    from regard.bench.backbone import POSITIONS
    from regard.bench.results import gathered
    from regard.bench.run_budget import read_budget
    from regard.bench.sweep import plan
    from regard.core.errors import RuleError, ValueRangeError, fail, need

    need("pyarrow", "bench", "writes Parquet")
    if on not in ("here", "ray"):
        fail(RuleError, "--on", repr(on), "here or ray", "leave it out to train on this machine")
    for flag, value in (("--heads", heads), ("--dim", dim), ("--depth", depth), ("--batch", batch)):
        at_least(flag, value, 1)
    at_least("--seeds", seeds, 1)
    at_least("--workers", workers, 0)
    if not 0 < rate < 1:
        fail(ValueRangeError, "--rate", rate, "a rate between 0 and 1", "leave it out for 2e-3")
    if dim % heads:
        fail(ValueRangeError, "--dim", dim, f"a multiple of the {heads} heads", "pass --dim 64")
    if positions not in POSITIONS:
        fail(
            RuleError, "--positions", repr(positions), f"one of {', '.join(POSITIONS)}", "name one"
        )
    need_device("--device", device)
    allowed, workers = read_budget(budget), workers or _cores(device)
    if math.inf in (allowed.seconds, allowed.flops, allowed.params):
        fail(RuleError, "--budget", repr(budget), "a budget that ends", "write 5m or 500steps")
    writable_folder("--out", out)
    planned = plan(
        layers, listed("--tasks", tasks), patterns=listed("--patterns", patterns, empty=True),
        seeds=seeds, budget=allowed,
        workers=workers, dim=dim, heads=heads, depth=depth, positions=positions, batch=batch,
        rate=rate,
    )  # fmt: skip
    if on == "ray":
        from regard.bench.on_ray import carry_out_on_ray

        events = carry_out_on_ray(planned, out, device=device)
    else:
        from regard.bench.sweep import carry_out_all

        events = carry_out_all(planned, out, workers=workers, device=device)
    broken = _follow(events, planned, quiet=as_json)
    speeds = _speeds(layers, out, device, dim, heads, as_json) if speed else []
    results = gathered(planned, out, speed=tuple(speeds))
    _finish(results, out, as_json)
    if broken:
        raise typer.Exit(1)


@app.command("speed")
def speed_command(
    layers: Layers,
    lengths: Annotated[
        str, typer.Option(help="Tokens, comma-separated.")
    ] = "128,256,512,1024,2048,4096",
    what: Annotated[
        str, typer.Option(help="Some of forward, backward, decode.")
    ] = "forward,backward,decode",
    executors: Annotated[
        str, typer.Option(help="Also measure plain attention by executors: fused,...")
    ] = "",
    peers: Annotated[bool, typer.Option(help="Also measure PyTorch and x-transformers.")] = False,
    dim: int = 256,
    heads: int = 4,
    rounds: int = 3,
    device: Device = "cpu",
    out: Out = Path("bench"),
    as_json: AsJson = False,
) -> None:
    """Measure seconds and bytes against length, with fitted exponents."""
    from regard.bench.records import write_speed
    from regard.bench.report import write_report
    from regard.bench.results import Results, write_tables
    from regard.bench.speed import as_rows, exponents, measure
    from regard.core.errors import ValueRangeError, fail, need

    need("pyarrow", "bench", "writes Parquet")
    sizes, whats = numbers("--lengths", lengths), listed("--what", what)
    for flag, value in (("--heads", heads), ("--dim", dim), ("--rounds", rounds)):
        at_least(flag, value, 1)
    if dim % heads:
        fail(ValueRangeError, "--dim", dim, f"a multiple of the {heads} heads", "pass --dim 64")
    need_device("--device", device)
    writable_folder("--out", out)
    with _spinning(as_json) as told:
        rows = measure(
            layers, lengths=sizes, whats=whats,
            executors=listed("--executors", executors, empty=True), peers=peers,
            dim=dim, heads=heads, rounds=rounds, device=device, told=told,
        )  # fmt: skip
    found = exponents(rows)
    settings = {"layers": layers, "dim": dim, "heads": heads, "on": device}
    write_speed(out / "speed.json", settings, as_rows(rows))
    results = Results(
        (), 0, speed=tuple(as_rows(rows)), title="Speed and memory",
        budget=f"width {dim}, {heads} heads, batch 1",
    )  # fmt: skip
    write_tables(results, out)
    page = write_report(results, out / "speed.html")
    if as_json:
        print_json({"rows": as_rows(rows), "exponents": found, "report": str(page)})
        return
    print_table(list(found[0]), [[_shown(x) for x in row.values()] for row in found])
    console().print(f"open {page} to see the curves", markup=False)


@app.command("report")
def report_command(folder: Annotated[Path, typer.Argument(help="The folder of a sweep.")]) -> None:
    """Write the report and the tables of a sweep again, from the runs done so far."""
    from regard.bench.results import read_folder

    _finish(read_folder(folder), folder, False)


@app.command("tasks")
def tasks_command(as_json: AsJson = False) -> None:
    """List the tasks, their patterns and knobs."""
    from dataclasses import fields

    from regard.tasks import list as listing

    rows = []
    for x in listing():
        knobs = " ".join(f"{f.name}={f.default}" for f in fields(x.kind))
        rows.append([x.name, " ".join(x.patterns), knobs, x.about])
    head = ["task", "patterns", "knobs", "what it is"]
    print_rows(head, rows, as_json, cut=["knobs", "what it is"])


def _cores(device: str) -> int:
    import os

    return (os.cpu_count() or 1) if device == "cpu" else 1


def _speeds(layers: list[str], out: Path, device: str, dim: int, heads: int, quiet: bool) -> Any:
    """Measure speeds, unless the same ones are on disk."""
    from regard.bench.records import kept_speed, write_speed
    from regard.bench.speed import as_rows, measure

    path = out / "speed.json"
    settings = {"layers": layers, "dim": dim, "heads": heads, "on": device}
    kept = kept_speed(path, settings)
    if kept is not None:
        return kept
    with _spinning(quiet) as told:
        # Short: `regard bench speed` measures longer texts, and in more rounds.
        rows = as_rows(
            measure(
                layers, lengths=(128, 256, 512, 1024), dim=dim, heads=heads, rounds=2,
                device=device, told=told,
            )
        )  # fmt: skip
    write_speed(path, settings, rows)
    return rows


def _finish(results: Any, out: Path, as_json: bool) -> None:
    from regard.bench.findings import findings
    from regard.bench.report import write_report
    from regard.bench.results import write_tables
    from regard.bench.statistics import ranking

    written = write_tables(results, out)
    page = write_report(results, out / "report.html")
    if as_json:
        ranks = [{"layer": n, "mean": x.mean, "low": x.low, "high": x.high}
                 for n, x in ranking(*results.scores())]  # fmt: skip
        print_json({"ranking": ranks, "findings": findings(results),
                    "files": [str(x) for x in (page, *written)]})  # fmt: skip
        return
    rows = []
    for name, x in ranking(*results.scores()):
        shown = [results.score(name, cell) for cell in results.cells]
        rows.append([name, f"{x.mean:.1%} ({x.low:.1%} to {x.high:.1%})",
                     *("–" if s is None else f"{s.mean:.1%}" for s in shown)])  # fmt: skip
    if rows:
        print_table(["layer", "above chance (95%)", *results.cells], rows)
    screen = console()
    for sentence in findings(results):
        screen.print(f"  {sentence}", markup=False)
    screen.print(
        f"\nopen {page} to read more; beside it: {', '.join(x.name for x in written)}", markup=False
    )
    if any((out / "older").glob("*")):
        screen.print(f"of other sweeps in this folder: {out / 'older'}", markup=False)


def _shown(x: Any) -> str:
    return f"{x:.4g}" if isinstance(x, float) else f"{x:,}" if isinstance(x, int) else str(x or "")


def _follow(events: Iterator[News], plan: SweepPlan, *, quiet: bool) -> int:
    """Show the progress of runs, and return how many broke; Ctrl-C keeps finished runs."""
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    screen = Console(stderr=True, quiet=quiet, highlight=False)
    names = {
        run.key: f"{run.layer} on {run.task} ({run.pattern}), seed {run.seed}" for run in plan.runs
    }
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"),
               TimeElapsedColumn())  # fmt: skip
    broken, done, bars = 0, 0, dict[str, Any]()
    try:
        with Progress(
            *columns, console=screen, transient=True, disable=not screen.is_terminal
        ) as shown:
            whole = shown.add_task("all runs", total=len(plan.runs), said="")
            for news in events:
                name = names[news.key]
                if news.what in ("started", "going"):
                    bar = bars.get(news.key)
                    if bar is None:
                        bar = bars[news.key] = shown.add_task(name, total=1.0, said="")
                    score = "" if news.score != news.score else f"score {news.score:.2f}"
                    shown.update(bar, completed=news.share, said=score)
                    continue
                if news.key in bars:
                    shown.remove_task(bars.pop(news.key))
                if news.what == "broke":
                    broken += 1
                    screen.print(f"[red]broke[/] {name}: {escape(news.trace.strip())}")
                else:
                    done += 1
                    word = "kept" if news.what == "kept" else "[green]done[/]"
                    # A run with NaN answers has no score.
                    final = float("nan") if news.score is None else news.score
                    screen.print(f"{word} {name}: score {final:.3f}")
                shown.update(
                    whole, completed=done + broken, said=f"{done + broken} of {len(plan.runs)}"
                )
    except KeyboardInterrupt:
        kept = f"{done} of {len(plan.runs)} runs done and kept"
        print(f"\nstopped: {kept}; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    return broken


@contextmanager
def _spinning(quiet: bool) -> Iterator[Any]:
    from rich.console import Console

    screen = Console(stderr=True, quiet=quiet)
    with screen.status("measuring speed") as status:
        yield lambda said: status.update(f"measuring speed: {said}")
