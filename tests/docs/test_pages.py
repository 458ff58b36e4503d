"""Pages hang together: links lead somewhere, figures name their script, decisions have their form."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, README, ROOT, anchors, codes, links, pages, tables

ADRS = sorted((DOCS / "decisions").glob("*.md"))
SECTIONS = ["Context", "Decision", "Consequences"]
MAX_LINES = 60  # of a decision: half a page, and a generous one
BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """To a file that exists, and to a heading that it has."""
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in anchors(target), f"{link}: {target.name} has {sorted(anchors(target))}"


def test_every_page_in_docs_is_linked() -> None:
    """A page that no other page leads to is not read."""
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in pages() for link in links(page)}
    for page in DOCS.rglob("*.md"):
        assert page in linked or page.parent.name == "decisions", f"nothing links to {page.relative_to(ROOT)}"


def test_every_figure_names_the_script_that_made_it() -> None:
    """Each row of the README's table of figures ends with a script in benchmarks/."""
    figures = [table for table in tables(README) if table.heads[-1] == "script"]
    assert len(figures) == 1, "the README has one table of figures"
    assert figures[0].rows
    for row in figures[0].rows:
        script = codes(row[-1])[0].split()[0]
        assert script.startswith("benchmarks/"), f"{row[0]}: {script}"
        assert (ROOT / script).is_file(), f"{row[0]}: there is no {script}"


def test_every_benchmark_is_listed_and_no_other() -> None:
    """benchmarks/README.md has a row for each script that a person runs."""
    scripts = {path.name for path in BENCHMARKS.glob("*.py") if "__name__ ==" in path.read_text()}
    (table,) = [table for table in tables(BENCHMARKS / "README.md") if table.heads[0] == "script"]
    assert {codes(row[0])[0] for row in table.rows} == scripts


@pytest.mark.parametrize("page", ADRS, ids=lambda page: page.stem)
def test_a_decision_has_its_form(page: Path) -> None:
    """Number and title as the file's name says, date, status, then context, decision and consequences."""
    text = page.read_text()
    title = re.match(r"# (\d{4})\. (\S.*)\n\n- Date: \d{4}-\d{2}-\d{2}\n- Status: (\w+)", text)
    assert title, "it begins with `# NNNN. Title`, `- Date: YYYY-MM-DD`, `- Status: ...`"
    assert page.name.startswith(f"{title[1]}-")
    assert title[3] in {"proposed", "accepted", "superseded"}
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert len(text.splitlines()) <= MAX_LINES


def test_decisions_are_numbered_without_a_gap() -> None:
    """The next decision has the next number."""
    assert [int(page.name[:4]) for page in ADRS] == list(range(1, len(ADRS) + 1))
