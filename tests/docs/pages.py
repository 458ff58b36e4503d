"""The pages as data: headings, links, tables and code blocks of Markdown, as far as ours use it."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")
_NAMED = re.compile(r"`([\w./-]+)`:\s*$")


def pages() -> list[Path]:
    """Every Markdown page of the project."""
    folders = (DOCS, ROOT / "benchmarks", ROOT / "models", ROOT / "tests")
    return [*ROOT.glob("*.md"), *(page for folder in folders for page in sorted(folder.rglob("*.md")))]


def text_of(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    """Where its links go."""
    return _LINK.findall(text_of(page))


def anchors(page: Path) -> set[str]:
    """What a link may say behind `#`, as GitHub makes it of headings."""
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(text_of(page)))
    return {heading.replace(" ", "-") for heading in kept}


def codes(text: str) -> list[str]:
    """What stands in backticks."""
    return _CODE.findall(text)


@dataclass(frozen=True)
class Table:
    """A table, the heading above it, and the text between the two or since the last table."""

    heading: str
    before: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, head: str) -> list[str]:
        """The cells below `head`."""
        return [row[self.heads.index(head)] for row in self.rows]


def tables(page: Path) -> list[Table]:
    """Every table of a page, in order."""
    found, heading, before, rows = [], "", "", []
    for line in [*text_of(page).splitlines(), ""]:
        if line.startswith("|"):
            rows.append(tuple(cell.strip() for cell in line.strip()[1:-1].split("|")))
            continue
        if rows:
            heads, _, *others = rows
            found.append(Table(heading, before.strip(), heads, tuple(others)))
            before, rows = "", []
        if line.startswith("#"):
            heading, before = line.lstrip("# "), ""
        else:
            before += line + "\n"
    return found


@dataclass(frozen=True)
class Block:
    """A code block: its language, whether a reader would run it here, and the file that the line above it names."""

    language: str
    runs: bool
    file: str
    body: str


def blocks(page: Path) -> list[Block]:
    """Every code block of a page, in order."""
    text, found = page.read_text("utf-8"), []
    for match in _FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        above = text[: match.start()].rstrip("\n").rpartition("\n")[2]
        named = _NAMED.search(above)
        found.append(
            Block(language, language == "sh" and "norun" not in words, named[1] if named else "", match["body"])
        )
    return found
