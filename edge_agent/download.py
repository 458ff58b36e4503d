"""One object on its way to the device: from the disk if it is there, else in chunks; its hash checked at the end."""

from dataclasses import dataclass
from typing import Literal

from fl_protocol.errors import ProtocolError
from fl_protocol.messages import Chunk, Get
from fl_protocol.transfer import Fetch, chunk_size_for
from fl_protocol.transport import Limits

LOOK_S = 1.0  # how often a download under way is looked at, whether it has fallen silent
MOVING_S = 10.0  # a download that heard a chunk so lately is under way
BAD_OBJECT_S = (60.0, 3600.0)  # how long a corrupt object is left alone: at first, and at most


@dataclass(frozen=True)
class Target:
    """An object that is wanted, as a signed message names it; `chunk_size` 0: whatever the link carries."""

    kind: Literal["bundle", "version"]
    sha256: str
    size: int
    chunk_size: int = 0
    version: int = 0


class Download:
    """The state of one download. Nothing is asked for before `ask_at`, since a broadcast may bring it."""

    def __init__(self, target: Target, ask_at: float) -> None:
        self.target = target
        self._ask_at = self._look_at = ask_at
        self._missing = False  # the disk was asked, and does not have it
        self._fetch: Fetch | None = None
        self._heard_at = float("-inf")
        self._failures = 0

    @property
    def wake_at(self) -> float:
        """When `next_get` may have something to say, if nothing happens before."""
        return self._look_at if self._missing else float("inf")

    def not_on_disk(self) -> None:
        """The disk does not have it, or has it damaged."""
        self._missing = True

    def next_get(self, now: float, link: Limits) -> Get | None:
        """What to ask for now, if anything."""
        if not self._missing or now < self._ask_at:
            return None
        self._look_at = now + LOOK_S
        return self._fetching(link).next_get(now)

    def heard(self, chunk: Chunk, now: float, link: Limits) -> bytes | None:
        """Take a chunk; the object, once it is whole. Raises `ProtocolError` for a bad chunk, and for a wrong hash."""
        if not self._missing:
            return None
        fetch = self._fetching(link)
        whole = fetch.add(chunk, now)
        self._heard_at = now
        try:
            return fetch.data() if whole else None
        except ProtocolError:
            self.failed(now)
            raise

    def failed(self, now: float) -> None:
        """What came is of no use: begin again, after a while."""
        first, most = BAD_OBJECT_S
        self._ask_at = self._look_at = now + min(most, first * 2**self._failures)
        self._failures += 1
        self._fetch = None

    def moving(self, now: float) -> bool:
        """Whether a part of it came lately."""
        return self._fetch is not None and now - self._heard_at < MOVING_S

    def resume(self) -> None:
        """On a new connection: what was asked for before may be lost."""
        if self._fetch is not None:
            self._fetch.resume()

    def _fetching(self, link: Limits) -> Fetch:
        if self._fetch is None:
            chunk_size = self.target.chunk_size or chunk_size_for(link.version, link.max_packet)
            self._fetch = Fetch(self.target.sha256, self.target.size, chunk_size)
        return self._fetch
