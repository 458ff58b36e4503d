"""Figures on the pages of docs/: tables as Markdown, each between marks that name its benchmark and part."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Table = Sequence[Sequence[object]]


def as_text(tables: Sequence[Table], said: Mapping[str, Any]) -> str:
    """Tables under the command and the machine that made them; the first row of each is its head."""
    versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    lines = [f"`{said['command']}`; {said['machine']}; python {said['python']}, {versions}"]
    for table in tables:
        head, *rows = table
        marks: list[object] = ["---" if i < 1 else "---:" for i in range(len(head))]
        lines.append("\n".join(f"| {' | '.join(str(cell) for cell in row)} |" for row in (head, marks, *rows)))
    return "\n\n".join(lines)


def write_page(page: Path, texts: Mapping[str, str]) -> None:
    """Each text between its marks, `<!-- NAME -->` and `<!-- /NAME -->`. Raises `SystemExit` where there are none."""
    text = page.read_text("utf-8")
    for name, table in texts.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not begin or not end:
            raise SystemExit(f"{page} has no marks of {name}")
        text = f"{before}{begin}{table}\n{end}{after}"
    page.write_text(text, "utf-8")
