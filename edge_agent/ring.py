"""Examples on the device's own flash: a ring of segment files, bounded by bytes and by days, oldest first out.

Examples gather in memory and go to the disk as one segment, at `flush_kb` or after `flush_s`: flash is written in large
pieces, and a power cut (or kill -9) costs at most what came in the last `flush_s`. A segment that was synced is never
written again, so nothing can tear it. Sixteen small ones in a row are joined into one, which takes their place once it
is synced: a name says which flushes a segment holds, and one that another holds too is not read.
Why files and not SQLite: docs/decisions/0028. Methods may be called from any thread.
"""

import errno
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.ring_files import CLOCK_SET_S, ERASING, Held, Segment, Usable, erase, held_in, numbers_in, outermost
from edge_agent.segments import MAX_HEADER, Form, pack_segment, read_records
from edge_agent.sensing import RingConfig
from fl_protocol.durable import OS_FILES, Files, make_directory
from fl_protocol.errors import ConfigError

SHARE = 16  # of the ring, that a segment has at most: so much goes out at once
JOINED = 16  # small segments in a row become one
DAY_S = 86400.0
WAITING = 4  # blocks that wait in memory while the disk is full
_FULL = {errno.ENOSPC, errno.EDQUOT}


class Ring:
    """The ring in `directory`. Raises `ConfigError` for a disk that cannot be used, and for one of another `form`."""

    def __init__(
        self,
        directory: Path,
        form: Form,
        config: RingConfig,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        files: Files = OS_FILES,
    ) -> None:
        self.directory, self.form, self._config = directory, form, config
        self._wall, self._clock, self._files = wall, clock, files
        self._most = config.max_bytes // SHARE - len(pack_segment(form, np.empty(0, form.dtype)))  # of a segment's rows
        self._block_rows = int(min(config.flush_kb * 1024, self._most) // form.dtype.itemsize)
        if self._block_rows < 1:
            least = SHARE * (form.dtype.itemsize + MAX_HEADER) / 2**20
            raise ConfigError(
                f"ring.max_mb is {config.max_mb:g} and ring.flush_kb {config.flush_kb:g}: too little for an example"
                f" of {form.dtype.itemsize} bytes",
                f"max_mb of at least {least:.2f}, and flush_kb of at least {math.ceil(form.dtype.itemsize / 1024)}",
            )
        self._lock = threading.RLock()
        self._rows = np.empty(WAITING * self._block_rows, form.dtype)
        self._waiting, self._flush_at = 0, np.inf
        self._segments: list[Segment] = []
        self.damaged = 0  # bytes that were no whole segment at the start
        self.dropped = 0  # examples that found no room while the disk was full
        self.written = 0  # bytes given to the disk since the start
        self.generation = 0  # changes with what `read` gives
        self.newest: NDArray[np.float32] | None = None  # the last features seen, with or without a label
        with self._usable():
            self._start()

    # --- writing ---

    def see(self, x: NDArray[np.float32]) -> None:
        """Features that came just now; predictions are about them."""
        self.newest = x[np.newaxis]

    def append(self, x: NDArray[np.float32], y: float, time_s: float) -> None:
        """Add an example; `time_s` since 1970, 0 where nobody knows it. On the disk after `flush_s` at the latest."""
        with self._lock:
            if self._waiting == len(self._rows):
                self._rows[:-1] = self._rows[1:]
                self._waiting -= 1
                self.dropped += 1
            self._rows[self._waiting] = (time_s, y, x)
            self._waiting += 1
            self._flush_at = min(self._flush_at, self._clock() + self._config.flush_s)
            if self._waiting % self._block_rows == 0:
                self.flush()

    @property
    def wake_at(self) -> float:
        """When `tick` writes, on the clock that was given."""
        return self._flush_at

    def tick(self) -> None:
        """Write what has waited long enough."""
        if self._clock() >= self._flush_at:
            self.flush()

    def flush(self) -> bool:
        """Put what waits on the disk; False where that is full, and it waits on."""
        with self._lock, self._usable():
            while self._waiting:
                rows = self._rows[: min(self._waiting, self._block_rows)]
                try:
                    self._write(rows)
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
                    self._flush_at = self._clock() + self._config.flush_s
                    return False
                left = self._waiting - len(rows)
                self._rows[:left] = self._rows[len(rows) : self._waiting]
                self._waiting = left
                self.generation += 1
                self._join()
            self._flush_at = np.inf
            self._expire()
        return True

    def close(self) -> None:
        """Flush, and let go."""
        self.flush()

    # --- reading ---

    def read(self, max_bytes: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Features (n, *shape) float32 and labels (n,) float64 in time order: the newest that fit, none too old.

        Nobody who appends waits for it. Raises `ConfigError`.
        """
        row, wanted, total = self.form.dtype.itemsize, [], 0
        with self._lock, self._usable():
            self._expire()
            for segment in reversed(self._segments):
                if total and (total + segment.count) * row > max_bytes:
                    break
                wanted.append(segment)
                total += segment.count
        x, y = np.empty((total, *self.form.shape), np.float32), np.empty(total)
        times, end = np.empty(total), total
        with self._usable():
            for segment in wanted:  # the newest first, each into its place, so that two copies never meet
                records = self._records(segment)
                at = slice(end - len(records), end)
                x[at], y[at], times[at] = records["x"], records["y"], records["t"]
                end -= len(records)
        first = max(self._first_young(times[end:]) + end, total - max(1, max_bytes // row))
        return x[first:], y[first:]

    def held(self) -> Held:
        """What is on the disk."""
        with self._lock:
            return held_in(self._segments, self.form.shape, self.damaged)

    # --- forgetting ---

    def forget(self) -> Held:
        """Erase everything: overwritten, synced, removed, and gone from memory. What it was is returned.

        Once begun it is finished by the next start, whatever happens. Flash keeps what it moved elsewhere by itself;
        `fstrim` after this hands those blocks back.
        """
        with self._lock, self._usable():
            gone = self.held()
            self._rows[:] = np.zeros((), self.form.dtype)
            self._waiting, self._flush_at, self.newest = 0, np.inf, None
            self._segments = []
            self.generation += 1
            erase(self.directory, self._files)
            return gone

    # --- inside ---

    def _start(self) -> None:
        make_directory(self.directory, self._files)
        if self._files.is_file(self.directory / ERASING):
            erase(self.directory, self._files)
        found = []
        for first, last in numbers_in(self.directory, self._files):
            segment = Segment(first, last, 0)
            data = self._files.read(self.directory / segment.name)
            read = read_records(data)
            if read is None:  # the power went while it was made: nothing of it was ever promised
                self.damaged += len(data)
                self._files.remove(self.directory / segment.name)
                continue
            self._check(read[0])
            segment.size = len(data)
            found.append(segment.of(read[1]))
        self._segments = outermost(found)
        for segment in found:
            if segment not in self._segments:  # the power went between the joined one and their removal
                self._files.remove(self.directory / segment.name)
        self._expire()

    def _check(self, found: Form) -> None:
        if found != self.form:
            raise ConfigError(
                f"{self.directory} holds examples of shape {found.shape} ({found.meaning}); [sensors] now makes"
                f" {self.form.shape} ({self.form.meaning})",
                "take [sensors] back to what it was, or give up the old examples: `edge-agent data forget`",
            )

    def _write(self, rows: NDArray[Any]) -> None:
        number = self._segments[-1].last + 1 if self._segments else 1
        self._segments.append(self._create(number, number, rows))

    def _create(self, first: int, last: int, rows: NDArray[Any]) -> Segment:
        """A segment on the disk, name and all. Raises `OSError`; nothing is there then."""
        data = pack_segment(self.form, rows)
        self._make_room(len(data))
        segment = Segment(first, last, len(data)).of(rows)
        path = self.directory / segment.name
        try:
            with self._files.create(path, 0o600) as file:
                file.write(data)
                file.sync()
        except OSError:
            with suppress(OSError):
                self._files.remove(path)
            raise
        self._files.sync_directory(self.directory)
        self.written += len(data)
        return segment

    def _join(self) -> None:
        """Make one of the last small segments that hold as many flushes each, and again of what comes of that."""
        while len(tail := self._segments[-JOINED:]) == JOINED:
            small = self._block_rows * self.form.dtype.itemsize // 2
            flushes = {segment.last - segment.first for segment in tail}
            if len(flushes) > 1 or any(segment.size > small for segment in tail):
                return
            records = np.concatenate([self._records(segment) for segment in tail])
            if records.nbytes > self._most:
                return
            try:
                joined = self._create(tail[0].first, tail[-1].last, records)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                return
            if self._segments[-JOINED:] != tail:  # some went out, to make room
                self._files.remove(self.directory / joined.name)
                return
            self._segments[-JOINED:] = [joined]
            for segment in tail:
                self._files.remove(self.directory / segment.name)

    def _make_room(self, size: int) -> None:
        total = sum(segment.size for segment in self._segments)
        while self._segments and total + size > self._config.max_bytes:
            total -= self._segments[0].size
            self._remove_oldest()

    def _expire(self) -> None:
        """Remove segments in which everything is too old."""
        before = self._too_old_s()
        while self._segments and before and 0.0 < self._newest_of(0) < before:
            self._remove_oldest()
        self._make_room(0)

    def _newest_of(self, number: int) -> float:
        """The newest time in a segment; one without any is as old as what follows. 0: nobody knows."""
        return next((s.newest_s for s in self._segments[number:] if s.newest_s), 0.0)

    def _remove_oldest(self) -> None:
        self._files.remove(self.directory / self._segments[0].name)
        del self._segments[0]
        self.generation += 1

    def _too_old_s(self) -> float:
        """Examples of before this go; 0: none does, for want of a limit or of a clock."""
        now = self._wall()
        return now - self._config.days * DAY_S if self._config.days and now > CLOCK_SET_S else 0.0

    def _first_young(self, times: NDArray[Any]) -> int:
        """The first example that is not too old; one without a time is as old as the next that has one."""
        old = (times > CLOCK_SET_S) & (times < self._too_old_s())
        return int(old.nonzero()[0][-1]) + 1 if old.any() else 0

    def _records(self, segment: Segment) -> NDArray[Any]:
        """Its records; none where flash has gone bad since the start, or where it went out meanwhile."""
        try:
            read = read_records(self._files.read(self.directory / segment.name))
        except FileNotFoundError:
            read = None
        return np.empty(0, self.form.dtype) if read is None or read[0] != self.form else read[1]

    def _usable(self) -> Usable:
        return Usable(self.directory)
