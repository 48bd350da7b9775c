"""Pages show words and obey none: whatever a model, layer or task is called, no tag is added.

A Content-Security-Policy in a page cannot forbid a `<meta http-equiv="refresh">`, which browsers
follow wherever it stands. What forbids it is that no word from outside is read as HTML: in every
place where a word can stand, a hostile one leaves the tags of the page as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from regard.bench.report import report
from regard.bench.results import Results
from regard.views.page import page
from regard.views.run_file import Run
from tests.bench.test_report import record
from tests.views.runs import seen

HOSTILE = (
    "'\"></script></style></title><meta http-equiv=refresh content='0;url=//x'>"
    "<script>alert(1)</script><img src=//x onerror=alert(1)>{}$TITLE${SCRIPT}&lt;b&gt;\u2028"
)


class Tags(HTMLParser):
    """Every tag and the names of its attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.policies: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))
        held = dict(attrs)
        if "http-equiv" in held:
            self.policies.append(held["http-equiv"])
        assert not any(name.startswith("on") for name in held), "a handler in a tag"
        for name in ("src", "href", "action", "formaction"):
            assert not (held.get(name) or "").startswith(("http", "//", "javascript"))


def places(x: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all texts in a tree."""
    inner = (
        x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list | tuple) else ()
    )
    if isinstance(x, str):
        yield path
    for key, y in inner:
        yield from places(y, (*path, key))


def put(x: Any, path: tuple[Any, ...], word: str) -> Any:
    """Return a tree with a word put in one place."""
    if not path:
        return word
    made = list(x) if isinstance(x, tuple) else copy.copy(x)
    made[path[0]] = put(x[path[0]], path[1:], word)
    return tuple(made) if isinstance(x, tuple) else made


def sweep() -> dict[str, Any]:
    records = [
        record(layer, task, 0.4, seed=seed, tests={"longer": 0.3})
        for layer in ("mha", "own") for task in ("copy", "mqar") for seed in (0, 1)
    ]  # fmt: skip
    speed = [
        {"who": who, "what": "forward", "n": n, "seconds": n * 1e-4, "bytes": n * 100}
        for who in ("mha", "own") for n in (64, 128, 256, 512)
    ]  # fmt: skip
    left_out = (("third", "copy", "cs", "a reason"),)
    return {"records": records, "speed": speed, "left_out": left_out, "title": "A title",
            "budget": "5m"}  # fmt: skip


def of_sweep(said: dict[str, Any]) -> str:
    records = tuple(said["records"])
    more = {name: said[name] for name in ("title", "budget", "left_out")}
    return report(Results(records, len(records) + 1, speed=tuple(said["speed"]), **more))


def of_run(manifest: dict[str, Any]) -> str:
    return page(Run(manifest, {"scores/sink": np.zeros((2, 4), np.float32)}))


def manifest() -> dict[str, Any]:
    found = seen(n=12).run().manifest
    return {**found, "tokens": found["tokens"][:2]}


PAGES: dict[str, tuple[Callable[[], Any], Callable[[Any], str]]] = {
    "the report of a sweep": (sweep, of_sweep),
    "the page of a run": (manifest, of_run),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_word_adds_no_tag(name: str) -> None:
    make, write = PAGES[name]
    content = make()
    tried, shapes = 0, set[Any]()
    for path in places(content):
        shape = tuple("" if isinstance(x, int) else x for x in path)
        if shape in shapes:
            continue  # the second row of a list is written as the first
        shapes.add(shape)
        try:
            plain = Tags(write(put(content, path, "xyzzy")))
        except (KeyError, ValueError, IndexError):
            continue  # a word that is a key, such as the pattern of a task
        hostile = Tags(write(put(content, path, HOSTILE)))
        assert hostile.found == plain.found, path
        assert hostile.policies == ["Content-Security-Policy"], path
        tried += 1
    assert tried >= 12


def test_names_of_tests_and_of_facts_add_no_tag() -> None:
    def written(word: str) -> Tags:
        one = record("mha", "copy", 0.4, tests={word: 0.3})
        one["machine"][word] = "a fact"
        return Tags(report(Results((one,), 1)))

    assert written(HOSTILE).found == written("xyzzy").found


def test_names_of_arrays_add_no_tag() -> None:
    x = np.zeros(2, np.float32)
    plain, hostile = (Tags(page(Run(manifest(), {name: x}))) for name in ("xyzzy", HOSTILE))
    assert hostile.found == plain.found
    assert hostile.policies == ["Content-Security-Policy"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_may_load_and_send_nothing(name: str) -> None:
    make, write = PAGES[name]
    text = write(make())
    policy = text.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    rules = dict(x.strip().partition(" ")[::2] for x in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy
    # It must stand before all else that it is to rule.
    assert text.index("Content-Security-Policy") < text.index("<style") < text.index("<body")
