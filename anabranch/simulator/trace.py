"""What happened, line by line: always as a hash, and as text for a person where one asked for it."""

import hashlib
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from anabranch.simulator.world import World


class Trace:
    """Every packet that was handed over, every durable transaction, every fault and every death.

    `text`, if given, takes the lines, and the log lines of the programs between them; these are not in the hash.
    """

    def __init__(self, world: World, text: TextIO | None = None) -> None:
        self._world, self._text = world, text
        self._hash = hashlib.sha256()
        self.lines = 0

    @property
    def keeps_text(self) -> bool:
        """Whether somebody will read it."""
        return self._text is not None

    @property
    def sha256(self) -> str:
        """Of all lines so far: two runs did the same when these are the same."""
        return self._hash.hexdigest()

    def line(self, who: str, what: str) -> None:
        """Something happened to `who`."""
        line = f"{self._world.now:12.6f}  {who:<12} {what}\n"
        self._hash.update(line.encode())
        self.lines += 1
        if self._text is not None:
            self._text.write(line)

    def packet(self, who: str, verb: str, topic: str, payload: bytes) -> None:
        """A message with its size and checksum."""
        self.line(who, f"{verb} {topic} {len(payload)} B {zlib.crc32(payload):08x}")

    def said(self, who: str, what: str) -> None:
        """A line of a program's own log: for people, outside of the hash."""
        if self._text is not None:
            self._text.write(f"{self._world.now:12.6f}  {who:<12} # {what}\n")

    @contextmanager
    def logs_of(self, who: "Speaker") -> Iterator[None]:
        """Take the programs' log lines into the text, or nowhere, while this lasts; `who.name` is whose turn it is."""
        take = _Take(self, who)
        loggers = [logging.getLogger(name) for name in ("edge_agent", "aggregator")]
        before = [(logger.level, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.addHandler(take)
            logger.setLevel(logging.INFO if self.keeps_text else logging.CRITICAL + 1)
            logger.propagate = False
        try:
            yield
        finally:
            for logger, (level, propagate) in zip(loggers, before, strict=True):
                logger.removeHandler(take)
                logger.setLevel(level)
                logger.propagate = propagate


class Speaker:
    """Whose turn it is; the hosts say so."""

    name = ""


class _Take(logging.Handler):
    def __init__(self, trace: Trace, who: Speaker) -> None:
        super().__init__()
        self._trace, self._who = trace, who

    def emit(self, record: logging.LogRecord) -> None:
        """One line of a program."""
        text = " | ".join(record.getMessage().splitlines())
        self._trace.said(self._who.name, f"{record.levelname.lower()}: {text}")
