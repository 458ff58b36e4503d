"""Logs: on standard error a line for each thing that a person wants to know, or JSON lines for programs.

The newest lines are kept in memory as well, for `collect-logs`.
"""

import json
import logging
import re
import time
from collections import deque
from contextlib import nullcontext
from typing import Literal


class _Lines(logging.Formatter):
    """`2026-11-22 12:00:00 WARNING the text`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")


class _Json(logging.Formatter):
    """`{"time": "2026-11-22T12:00:00Z", "level": "warning", "message": "the text"}`."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"time": when, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr(
    level: Literal["debug", "info", "warning", "error"], *, as_json: bool, ring: "LogRing | None" = None
) -> None:
    """Send everything of `level` and above to standard error, and keep it in `ring`."""
    lines = logging.StreamHandler()
    lines.setFormatter(_Json() if as_json else _Lines())
    logging.basicConfig(level=level.upper(), handlers=[lines, *([ring] if ring else [])], force=True)


LEAVES = {"leaves": True}  # `extra` of a line that `collect-logs` may send: one that quotes no example
KEPT_LINES = 500
MAX_LOG_BYTES = 8 * 1024  # of one answer: a packet for a small broker, whatever escapes JSON needs
MAX_LINE = 400
HIDDEN = "[hidden]"
_SECRETS = (
    (re.compile(r"-----BEGIN [A-Z ]+-----.*?(-----END [A-Z ]+-----|$)", re.DOTALL), HIDDEN),
    (re.compile(r"(\w+://)[^/\s@]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+\S+"), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"(?i)([\w-]*(?:pass(?:word|phrase|wd)?|secret|token|api[_-]?key|key|psk|credentials?|user(?:name)?|login))"
            r"([\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;]+)"
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"((?:/home|/Users|/var/home|/run/user|C:\\Users)[/\\])[^/\\\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+"), HIDDEN),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), HIDDEN),
    (re.compile(r"\b[0-9a-fA-F]{32,}\b"), HIDDEN),
    (re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}"), HIDDEN),
)


def scrubbed(text: str) -> str:
    """A line without what looks like a path's user, a key, a password, a token or an address of a person."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return " ".join(text.split())[:MAX_LINE]


class LogRing(logging.Handler):
    """The newest lines that may leave the device; in memory, so that they cost the flash nothing.

    A line is kept only if whoever wrote it marked it by `LEAVES`: what nobody thought of stays inside.
    """

    def __init__(self, lines: int = KEPT_LINES) -> None:
        super().__init__()
        self.setFormatter(_Lines())
        self._lines: deque[str] = deque(maxlen=lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, without its traceback."""
        if getattr(record, "leaves", False):
            bare = logging.makeLogRecord({**vars(record), "exc_info": None, "exc_text": None, "stack_info": None})
            self._lines.append(self.format(bare))

    def newest(self, lines: int) -> tuple[str, ...]:
        """At most so many, scrubbed, oldest first; fewer where they would take more than 8 KiB of JSON."""
        left, found = MAX_LOG_BYTES, deque[str]()
        with self.lock or nullcontext():
            kept = list(self._lines)[-lines:]
        for line in map(scrubbed, reversed(kept)):
            left -= len(json.dumps(line)) + 1
            if left < 0:
                break
            found.appendleft(line)
        return tuple(found)
