"""Start-up code is given back, and what is needed again still works."""

import hashlib
from pathlib import Path

import pytest

from edge_agent import pages
from edge_agent.pages import drop_untouched_text


def resident() -> int:
    """Bytes of files that are resident in this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile"))


def test_text_leaves_memory_and_comes_back_when_it_is_called():
    """Resident file pages shrink; everything still runs."""
    hashlib.sha256(b"touch")
    before = resident()
    assert drop_untouched_text() > 0
    assert resident() < before
    assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442")


def test_where_there_is_no_map_nothing_happens(monkeypatch, tmp_path):
    """Another system than Linux."""
    monkeypatch.setattr(pages, "MAPS", tmp_path / "none")
    assert drop_untouched_text() == 0


@pytest.mark.parametrize(
    "line", ["0-1000 r--p 0 0:0 5 /lib.so", "0-1000 rw-p 0 0:0 5 /lib.so", "0-1000 r-xp 0 0:0 0 [vdso]"]
)
def test_only_the_text_of_files_is_touched(monkeypatch, tmp_path, line):
    """What the loader has written to, and what is no file's, would be lost."""
    maps = tmp_path / "maps"
    maps.write_text(line + "\n")
    monkeypatch.setattr(pages, "MAPS", maps)
    assert drop_untouched_text() == 0
