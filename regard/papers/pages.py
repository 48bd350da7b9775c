"""Pages about the papers: one for each row, an index with a search, and the README's table."""

from __future__ import annotations

import functools
import json
import re
import statistics
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote_plus

from regard.core.errors import RuleError, fail
from regard.papers.catalogue import row
from regard.papers.claims import Number, sentences
from regard.papers.evidence_files import Evidence, MeasuredClaim
from regard.papers.index import asked_text, like
from regard.papers.related import text as related_words
from regard.papers.standing import STATES, Standing, counts, example, standings, where
from regard.papers.synonyms import SAME, STOP

BEGIN, END = "<!-- papers:begin -->", "<!-- papers:end -->"
SEARCH_BOX = (
    'id="papers-search" type="search" placeholder="share kv across layers" '
    'aria-label="Search the papers" autocomplete="off" style="width: 100%; padding: 0.6em; '
    'border: 1px solid currentColor; border-radius: 0.3em; font: inherit"'
)
MEANING = {
    "planned": "no code claims it yet",
    "built": "code claims it and can be imported; nothing that was measured counts",
    "partly": "some of what the catalogue asks for held in five seeds; the row's page says what "
    "was narrowed, left out, or failed",
    "shown": "all that the catalogue asks for held in five seeds, on this version of the code",
    "matched": "shown, and equal to an independent implementation or the paper's own number",
    "failed": "it was measured, and does not hold here",
    "reading": "a survey or a study, with nothing in it to run",
}


def pages(found: list[Standing] | None = None) -> dict[str, str]:
    """Make every page as Markdown, by file name: `index.md` and one for each row."""
    found = standings() if found is None else found
    return {"index.md": _index(found), **{f"{one.row.key}.md": _page(one) for one in found}}


def write(folder: Path) -> int:
    """Write every page into `folder`, touching only those that changed; give their number."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for name, text in made.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return len(made)


def table(found: list[Standing] | None = None) -> str:
    """Make the table of states: a line for each kind of paper, and the sum."""
    lines = counts(standings() if found is None else found)
    total = {state: sum(line[state] for line in lines.values()) for state in STATES}
    head = ["kind", "rows", *STATES]
    body = [
        [kind, str(sum(line.values())), *(str(line[state] or "") for state in STATES)]
        for kind, line in [*lines.items(), ("**all**", total)]
    ]
    text = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in text)


def into_readme(path: Path) -> bool:
    """Put the table between the markers of a README; tell whether that changed it."""
    if not path.is_file():
        fail(RuleError, "readme", str(path), "a file that exists", "name the README to fill")
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        fail(
            RuleError,
            "readme",
            f"{path.name} without the two markers",
            f"{BEGIN} and {END}, once",
            "put each on a line of its own where the table shall stand",
        )
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    new = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if new != text:
        path.write_text(new, encoding="utf-8")
    return new != text


def _index(found: list[Standing]) -> str:
    script = files("regard.papers").joinpath("search.js").read_text(encoding="utf-8")
    lines = [
        "---\nhide: [toc]\n---",
        "",
        "# Papers",
        "",
        f"{len(found)} papers, each a row that runs or will. A row's state is computed from the "
        "code that claims it and from what its check measured:",
        "",
        *(f"- **{state}**: {meaning}" for state, meaning in MEANING.items()),
        "",
        table(found),
        "",
        'In the shell: `regard papers search "share kv across layers"`, `regard papers like moh`, '
        "`regard papers moh`, and `regard papers check gna`, which measures its claim again.",
        "",
        f"<input {SEARCH_BOX} hidden>",
        '<p id="papers-count"></p>',
        "",
        "| paper | what it is |",
        "|---|---|",
    ]
    for one in sorted(found, key=lambda one: one.row.title.lower()):
        row = one.row
        about = f"{row.year or 'undated'} · {row.kind} · {_plain(row.family)} · **{one.state}**"
        lines.append(f"| [{_plain(row.title)}]({row.key}.md)<br>{about} | {_plain(row.what)} |")
    lines += ["", f'<script id="papers-words" type="application/json">{words_of_search()}</script>']
    return "\n".join([*lines, "", f"<script>\n{script.strip()}\n</script>", ""])


def words_of_search() -> str:
    """Write what the search in a browser knows of words, as JSON on one line."""
    known = {
        "same": SAME, "stop": " ".join(sorted(STOP)), "related": related_words(),
        "asked": asked_text(),
    }  # fmt: skip
    return json.dumps(known, separators=(",", ":")).replace("<", "\\u003c")


def _page(one: Standing) -> str:
    row = one.row
    lines = [
        f"# {_plain(row.title)}",
        "",
        f"`{row.key}` · {row.year or 'undated'} · {row.kind} · {_plain(row.family)} · "
        f"**{one.state}**",
        "",
        _plain(row.what),
        "",
        f"{said_by(row.key)}[Search for the paper by its title]({by_title(row.title)})",
    ]
    if row.why_no:
        lines += ["", "## Why nothing of it is built", "", _plain(row.why_no)]
    for claim in one.claims:
        lines += ["", "## How to call it", "", f"`{claim.path}` in `{where(claim)}`", ""]
        lines += ["```python", example(claim), "```"]
    if row.how:
        lines += ["", "## How it is made", "", _plain(row.how), ""]
        lines += [f"Certainty about the paper's details: {row.certainty}."]
    if row.check:
        lines += ["", "## What would show that it works", "", _plain(row.check)]
    if one.evidence is not None:
        lines += ["", "## Evidence", "", *_evidence(one)]
    if row.headline:
        lines += ["", "## The paper's own number", "", _plain(row.headline)]
    near = [f"- [{_plain(hit.row.title)}]({hit.row.key}.md)" for hit in like(row.key, 5)]
    return "\n".join([*lines, "", "## Papers like this one", "", *near, ""])


def said_by(key: str) -> str:
    """Name the authors, where they are certain: nothing is guessed.

    >>> said_by("mqa"), said_by("gaam")
    ('Noam Shazeer. ', '')
    """
    found = authors().get(key)
    return f"{_plain(found)}. " if found else ""


@functools.cache
def authors() -> dict[str, str]:
    """Return the authors of rows whose authors are certain, by key."""
    text = files("regard.papers").joinpath("authors.json").read_text(encoding="utf-8")
    found: dict[str, str] = json.loads(text)
    return found


def by_title(title: str) -> str:
    """Return the address of a search for a title: identifiers are not kept, for few are certain.

    >>> by_title("Attention, & more")
    'https://scholar.google.com/scholar?q=%22Attention%2C+%26+more%22'
    """
    return f"https://scholar.google.com/scholar?q={quote_plus(chr(34) + title + chr(34))}"


def _evidence(one: Standing) -> list[str]:
    found = one.evidence
    assert found is not None
    about = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    lines = [f"**{one.verdict}**{f': {_plain(one.why)}' if one.why else ''}", ""]
    for sentence, word, why in outcome(found):
        lines += [f"*{_plain(sentence)}*: **{word}**{f' ({_plain(why)})' if why else ''}", ""]
        claims = [each for each in found.claims if each.answers == sentence]
        if claims:
            lines += ["| measured | least, median, most | | margin |", "|---|---|---|---|"]
            lines += [f"| {' | '.join(map(_plain, told(each)))} |" for each in claims]
            lines.append("")
    lines.append(
        f"{found.date}, seeds {_plain(str(found.seeds))}, {found.cost} on "
        f"{found.machine['cores']} cores of {_plain(str(found.machine['cpu']))}; {about}; commit "
        f"`{found.commit}`."
    )
    if found.confirmed:
        again = ", ".join(f"seed {one.seed} at `{one.commit}`" for one in found.confirmed)
        lines.append(f"Run again on later code, with the same numbers: {again}.")
    if found.beyond:
        lines += ["", f"Beyond what the catalogue asks, not measured: {_plain(found.beyond)}"]
    return lines


def outcome(found: Evidence) -> list[tuple[str, str, str]]:
    """Say of each sentence that the catalogue asks for how it ended, and why.

    The words are `held`, `narrowed`, `left out`, `failed`, and `unanswered`.
    """
    order = list(sentences(row(found.key).check or ""))
    order += [one.answers for one in found.claims if one.answers not in order]
    broken = {one.answers for one in found.failed}
    said = []
    for sentence in dict.fromkeys(order):
        if sentence in broken:
            word = "failed"
        elif sentence in found.left_out:
            word = "left out"
        elif sentence in found.narrowed:
            word = "narrowed"
        elif sentence in found.unanswered:
            word = "unanswered"
        else:
            word = "held"
        why = found.left_out.get(sentence) or found.narrowed.get(sentence) or ""
        said.append((sentence, word, why))
    return said


def told(one: MeasuredClaim) -> tuple[str, str, str, str]:
    """Write a claim as four cells: what was measured, its numbers, the bound, the margin."""
    word = "" if one.held else " (failed)"
    bound = spread(one.bound)
    asked = f"{one.relation} {bound}: {one.against}"
    if one.relation == "within":
        asked = f"within {bound} of {spread(one.comparator)}: {one.against}"
    elif one.bound != one.comparator:
        asked = f"{asked} ({spread(one.comparator)})"
    because = f"; {one.because}" if one.because else ""
    over = ", in the median" if one.over == "median" else ""
    margin = "" if one.relation == "equals" else spread(one.margin)
    return f"{one.says}{word}", spread(one.measured), f"{asked}{because}{over}", margin


def spread(numbers: list[Number]) -> str:
    """Write what five seeds gave: one value where they agree, else least, median and most.

    >>> spread([3, 3, 3]), spread([0.5, 0.25, 1.0]), spread(["a", "b", "a"])
    ('3', '0.25, 0.5, 1', 'a, b, a')
    """
    if all(number == numbers[0] for number in numbers):
        return shown(numbers[0])
    if any(isinstance(number, str | bool) for number in numbers):
        return ", ".join(map(shown, numbers))
    ordered = sorted(numbers, key=float)
    return ", ".join(shown(n) for n in (ordered[0], statistics.median(ordered), ordered[-1]))  # type: ignore[type-var]


def shown(number: object) -> str:
    """Write a measured number shortly.

    >>> shown(0.000123456), shown(3), shown(True)
    ('0.0001235', '3', 'yes')
    """
    if isinstance(number, bool):
        return "yes" if number else "no"
    return f"{number:.4g}" if isinstance(number, float) else str(number)


def _plain(text: str) -> str:
    """Escape what Markdown would read as its own, for prose that holds formulas."""
    text = text.replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]>|#])", r"\\\1", text)
