"""`regard papers`: the catalogue in the shell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from regard.cli.asking import writable_folder
from regard.cli.completing import one_of_papers
from regard.cli.options import AsJson
from regard.cli.printing import console, print_json, print_table

if TYPE_CHECKING:
    from regard.papers.standing import Standing

Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many to show.")]
Key = Annotated[
    str, typer.Argument(help="The key of a row, such as moh.", autocompletion=one_of_papers)
]
EvidenceFolder = Annotated[
    Path | None,
    typer.Option("--evidence", help="Folder of the evidence; by default the package's own."),
]


class _Group(TyperGroup):
    """Read `regard papers moh` as `regard papers show moh`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Insert `show` before a word that is not a command."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Group, help="Papers as rows that run: find, read and check them.")


@app.callback(invoke_without_command=True)
def papers(
    ctx: typer.Context,
    kind: Annotated[str | None, typer.Option(help="Only this kind, such as mechanism.")] = None,
    family: Annotated[str | None, typer.Option(help="Only families with these words.")] = None,
    state: Annotated[str | None, typer.Option(help="Only this state, such as shown.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the papers; `regard papers KEY` shows one."""
    if ctx.invoked_subcommand is not None:
        return
    from regard.papers.catalogue import rows, unknown
    from regard.papers.standing import STATES, standing

    if state is not None and state not in STATES:
        unknown("state", state, STATES)
    found = [standing(row.key) for row in rows(kind, family)]
    found = [one for one in found if state in (None, one.state)]
    if as_json:
        print_json([_fields(one) for one in found])
        return
    lines = [
        (one.row.key, one.row.year or "", one.row.kind, one.row.family, _state(one), one.row.title)
        for one in found
    ]
    print_table(("key", "year", "kind", "family", "state", "title"), lines, cut=("family", "title"))
    print(f"{len(found)} papers; `regard papers show KEY` tells more")


@app.command()
def search(question: list[str], limit: Limit = 10, as_json: AsJson = False) -> None:
    """Find papers by words of their idea."""
    from regard.papers.index import search as find

    _hits(find(" ".join(question), limit), as_json)


@app.command()
def like(key: Key, limit: Limit = 10, as_json: AsJson = False) -> None:
    """Find papers like this one."""
    from regard.papers.index import like as find

    _hits(find(key, limit), as_json)


@app.command()
def show(key: Key, as_json: AsJson = False) -> None:
    """Show what a paper is, how to call it, where the code is, and its evidence."""
    from regard.papers.standing import standing

    one = standing(key)
    if as_json:
        print_json(_fields(one))
    else:
        _show(one)


@app.command()
def status(
    markdown: Annotated[bool, typer.Option(help="Print the table of the README.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count the papers by kind and state."""
    from regard.papers.pages import table
    from regard.papers.standing import STATES, counts, discover, standings

    found = standings()
    if markdown:
        print(table(found))
        return
    lines, problems = counts(found), discover()
    if as_json:
        print_json({"counts": lines, "not imported": problems})
        return
    total = {state: sum(line[state] for line in lines.values()) for state in STATES}
    print_table(
        ("kind", *STATES),
        [
            (kind, *(n or "" for n in line.values()))
            for kind, line in [*lines.items(), ("all", total)]
        ],
    )
    for one in found:
        if one.verdict not in ("none", "held"):
            print(f"{one.row.key}: {one.verdict}: {one.why}")
    for name, reason in problems.items():
        print(f"{name} could not be imported here, so its claims are not counted: {reason}")


@app.command()
def check(
    keys: Annotated[list[str] | None, typer.Argument(help="Rows to check.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every row with a check.")] = False,
    long: Annotated[bool, typer.Option("--long", help="Long checks too.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Even where evidence is fresh.")] = False,
    stale: Annotated[
        bool, typer.Option("--stale", help="Only rows without evidence of this code.")
    ] = False,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm", help="One seed where only the method's code changed; five if it differs."
        ),
    ] = False,
    seeds: Annotated[int, typer.Option(help="How many seeds; only five are kept.")] = 5,
    first: Annotated[int, typer.Option("--from", help="The first seed.")] = 0,
    budget: Annotated[
        str | None, typer.Option(help="Begin no check after this long, such as 30m or 90s.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Processes; 0: one per core.")] = 0,
    listing: Annotated[bool, typer.Option("--list", help="List the checks, run none.")] = False,
    evidence: EvidenceFolder = None,
    as_json: AsJson = False,
) -> None:
    """Run checks and keep what they measure; exit code 1 where a claim does not hold.

    The cheapest come first. `--all --stale --budget 30m` goes on where the last run ended.
    """
    import math
    import os

    from regard.cli.following import as_fields, follow
    from regard.core.errors import RuleError, fail
    from regard.papers.check_runner import cheapest_first, choose, run
    from regard.papers.checks import checks
    from regard.papers.evidence_files import FOLDER, load
    from regard.papers.standing import standing

    folder = FOLDER if evidence is None else writable_folder("--evidence", evidence)
    if listing:
        lines = [
            {
                "key": key,
                "long": one.long,
                "CPU s a seed": getattr(load(key, folder), "cpu_seconds", ""),
                "evidence": standing(key, folder).verdict,
            }
            for key, one in checks().items()
        ]
        if as_json:
            print_json(lines)
        else:
            print_table(
                ("key", "long", "form", "evidence"), [tuple(line.values()) for line in lines]
            )
        return
    if bool(keys) == everything:
        fail(
            RuleError,
            "keys",
            "both rows and --all" if keys else "no rows",
            "rows, or --all",
            "name rows to check, or give --all",
        )
    chosen = cheapest_first(choose(keys or [], long=long), folder)
    if stale:
        chosen = [key for key in chosen if not standing(key, folder).fresh]
    events = run(
        chosen,
        jobs=jobs or os.cpu_count() or 1,
        again=again,
        folder=folder,
        seeds=range(first, first + seeds),
        budget=math.inf if budget is None else _seconds(budget),
        confirm=confirm,
    )
    ended = follow(events, len(chosen), quiet=as_json)
    if as_json:
        print_json([as_fields(event) for event in ended])
    good = all(event.evidence is not None and event.evidence.held for event in ended)
    raise typer.Exit(0 if good else 1)


@app.command()
def docs(
    to: Annotated[Path, typer.Option(help="Folder to write the pages into.")] = Path("out/papers"),
    readme: Annotated[
        Path | None, typer.Option(help="Fill the table of this README instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page for each paper and an index, or the table of states into a README."""
    from regard.papers.pages import into_readme, write

    if readme is not None:
        changed = into_readme(readme)
        done: dict[str, object] = {"file": str(readme), "changed": changed}
        said = f"{readme}: {'table written' if changed else 'table was up to date'}"
    else:
        number = write(writable_folder("--to", to))
        done = {"folder": str(to), "pages": number}
        said = f"{number} pages in {to}"
    if as_json:
        print_json(done)
    else:
        print(said)


def _seconds(budget: str) -> float:
    """Read 90s, 30m, 2h, or a number of seconds."""
    from regard.core.errors import ValueRangeError, fail

    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (budget[:-1], budget[-1]) if budget[-1:] in units else (budget, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        fail(
            ValueRangeError, "--budget", repr(budget), "a time such as 90s, 30m or 2h", "write one"
        )
    return seconds


def _fields(one: Standing) -> dict[str, Any]:
    from dataclasses import asdict

    from regard.papers.standing import example, where

    return {
        **one.row.asdict(),
        "state": one.state,
        "code": [
            {"object": c.path, "place": c.place, "where": where(c), "call": example(c)}
            for c in one.claims
        ],
        "verdict": one.verdict,
        "why": one.why,
        "evidence": None if one.evidence is None else asdict(one.evidence),
    }


def _state(one: Standing) -> str:
    counted = one.verdict in ("none", "held", one.state)
    return one.state if counted else f"{one.state} ({one.verdict})"


def _show(one: Standing) -> None:
    from rich.markup import escape

    from regard.papers.index import like as find
    from regard.papers.pages import outcome, told
    from regard.papers.standing import example, where

    row, screen = one.row, console()

    def part(name: str, text: str | None) -> None:
        if text:
            screen.print(f"\n[bold]{name}[/]\n{escape(text)}")

    screen.print(f"[bold]{escape(row.title)}[/]")
    screen.print(
        f"{row.key} · {row.year or 'undated'} · {row.kind} · {escape(row.family)} · {_state(one)}"
    )
    part("What it is", row.what)
    part("Why nothing of it is built", row.why_no)
    for claim in one.claims:
        part(f"How to call it ({where(claim)})", example(claim))
    if not one.claims and not row.reading:
        part("Where the code is", "nowhere yet: no code claims this row")
    part(f"How it is made (certainty {row.certainty})", row.how)
    part("What would show that it works", row.check)
    if one.evidence is not None:
        found = one.evidence
        lines = [f"{one.verdict}{f': {one.why}' if one.why else ''}"]
        for sentence, word, reason in outcome(found):
            lines.append(f"{word}: {sentence}{f' ({reason})' if reason else ''}")
            for each in found.claims:
                if each.answers == sentence:
                    what, numbers, asked, _ = told(each)
                    lines.append(f"  {what}: {numbers}; {asked}")
        again = "".join(f", seed {one.seed} again at {one.commit}" for one in found.confirmed)
        lines.append(f"{found.date}, {found.cost}, commit {found.commit or 'unknown'}{again}")
        if found.beyond:
            lines.append(f"beyond that, not measured: {found.beyond}")
        part("Evidence", "\n".join(lines))
    part("The paper's own number", row.headline)
    part("Papers like this one", ", ".join(hit.row.key for hit in find(row.key, 5)))


def _hits(hits: list[Any], as_json: bool) -> None:
    if as_json:
        print_json([{**hit.row.asdict(), "score": hit.score, "words": hit.words} for hit in hits])
        return
    if not hits:
        print("nothing found: try other words")
        return
    print_table(
        ("key", "year", "what it is"),
        [(hit.row.key, hit.row.year or "", hit.row.what) for hit in hits],
    )
