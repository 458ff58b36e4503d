"""Logs on standard error: one line for each thing that a person wants to know, or JSON lines for programs."""

import json
import logging
import time
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


def log_to_stderr(level: Literal["debug", "info", "warning", "error"], *, as_json: bool) -> None:
    """Send everything of `level` and above to standard error."""
    lines = logging.StreamHandler()
    lines.setFormatter(_Json() if as_json else _Lines())
    logging.basicConfig(level=level.upper(), handlers=[lines], force=True)
