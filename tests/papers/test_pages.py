"""Pages say what the catalogue and the code say, and link to pages that exist."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from regard.core.errors import RegardError
from regard.papers.catalogue import rows
from regard.papers.pages import BEGIN, END, authors, by_title, into_readme, pages, table, write
from regard.papers.standing import standings


@pytest.fixture(scope="module")
def made():
    return pages()


def test_there_is_an_index_and_a_page_for_each_paper(made):
    assert set(made) == {"index.md", *(f"{row.key}.md" for row in rows())}


def test_every_link_leads_to_a_page(made):
    for name, text in made.items():
        targets = re.findall(r"\]\(([^)]+)\)", text)
        assert targets, name
        assert {t for t in targets if not t.startswith("https://")} <= set(made), name


def test_every_page_of_a_paper_has_a_link_that_finds_it_by_its_title(made):
    for row in rows():
        outward = re.findall(r"\]\((https?://[^)]+)\)", made[f"{row.key}.md"])
        assert outward == [by_title(row.title)]
        (asked,) = parse_qs(urlsplit(outward[0]).query)["q"]
        assert asked == f'"{row.title}"'


def test_the_index_holds_every_paper_and_a_search_without_requests(made):
    index = made["index.md"]
    assert all(f"]({row.key}.md)" in index for row in rows())
    assert "papers-search" in index
    assert not re.search(r"https?://|src=", index)


def test_authors_are_of_rows_and_stand_on_their_pages(made):
    known = {row.key for row in rows()}
    assert set(authors()) <= known
    for key, names in authors().items():
        assert names.split(",")[0] in made[f"{key}.md"], key
        assert not names.endswith("."), key


def test_prose_cannot_become_markup(made):
    for row in rows():
        text = made[f"{row.key}.md"].replace("```", "")
        assert not re.search(r"(?<!\\)<[a-z/]", text), row.key
        title = text.splitlines()[0]
        assert not re.search(r"(?<!\\)[*_|]", title), row.key


def test_a_page_shows_the_state_that_was_computed(made):
    for one in standings():
        assert f"**{one.state}**" in made[f"{one.row.key}.md"]


def test_the_table_adds_up():
    *_, last = table().splitlines()
    name, total, *states = [cell.strip() for cell in last.strip("|").split("|")]
    assert (name, int(total)) == ("**all**", 390)
    assert sum(int(n or 0) for n in states) == 390


def test_writing_twice_touches_nothing(tmp_path, made, monkeypatch):
    monkeypatch.setattr("regard.papers.pages.pages", lambda: made)
    assert write(tmp_path) == len(made)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_the_readme_keeps_everything_but_the_table(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    assert into_readme(readme)
    text = readme.read_text()
    assert text == f"# Before\n\n{BEGIN}\n{table()}\n{END}\n\nafter\n"
    assert not into_readme(readme)


def test_the_readme_of_the_repository_is_up_to_date():
    """Run `regard papers docs --readme README.md` where this fails."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert BEGIN not in text or f"{BEGIN}\n{table()}\n{END}" in text


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_the_markers_is_left_alone(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(RegardError, match="markers"):
        into_readme(readme)
    assert readme.read_text() == text
    with pytest.raises(RegardError, match="a file that exists"):
        into_readme(tmp_path / "nowhere.md")
