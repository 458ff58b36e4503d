"""One object on its way to the device: from the disk if it is there, else in chunks; its hash checked at the end.

A version comes by the shortest way that is open: the delta that its manifest names, for a device that holds the version
before; else the delta or keyframe that the gateway finds, asked for with a `Want`; else whole. A way on which nothing
comes, or on which the wrong thing comes, is left for the next.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import Chunk, Delta, Get, Want
from fl_protocol.parts import SMALL
from fl_protocol.transfer import Fetch, MemoryParts, Parts, Silence, chunk_size_for
from fl_protocol.transport import Limits

LOOK_FOR_ROOM_S = 60.0  # how often one that waits for room in the device's byte budget is looked at
LOOK_S = 1.0  # how often a download under way is looked at, whether it has fallen silent
MOVING_S = 10.0  # a download that heard a chunk so lately is under way
BAD_OBJECT_S = (60.0, 3600.0)  # how long a corrupt object is left alone: at first, and at most
DISK_S = 60.0  # how long a download waits when the disk is full
WANT_S = 5.0  # silence after which a version is wanted again; it doubles
IN_VAIN = 3  # words without an answer, after which a way is left that has another behind it

Form = Literal["whole", "delta", "keyframe"]
Way = Literal["named", "asked", "whole"]


@dataclass(frozen=True)
class Target:
    """An object that is wanted, as a signed message names it; `chunk_size` 0: whatever the link carries.

    Of a version: `delta` is the SHA-256 of the object that makes it of version `version` - 1, and `delta_size` its
    size, where there is one; `asks`: the gateway can be asked for others. `task` says whose.
    """

    kind: Literal["bundle", "version", "release"]
    sha256: str
    size: int
    chunk_size: int = 0
    version: int = 0
    delta: str = ""
    delta_size: int = 0
    asks: bool = False
    task: str = ""

    @property
    def cost(self) -> int:
        """Bytes that it probably takes."""
        return self.delta_size or self.size


class Held(NamedTuple):
    """A version that the device holds; its number is -1 where only the disk has kept it."""

    version: int
    sha256: str


class Arrived(NamedTuple):
    """An object's bytes, and what they are of the target: `delta` from the version that was held.

    A large release of the agent was verified where its part lies: no bytes of it are here.
    """

    form: Form
    data: bytes


class Download:
    """The state of one download. Nothing is asked for before `ask_at`, since a broadcast may bring it."""

    def __init__(self, target: Target, ask_at: float, room: int | None = None, parts: Parts | None = None) -> None:
        self.target = target
        self._parts = parts or MemoryParts()
        self._full_until = float("-inf")  # the disk has no room
        self._complaints: list[ProtocolError] = []
        self.promised = target.cost if room is not None and target.cost <= room else 0  # bytes that there was room for
        self.lacks = 0  # bytes of what there was no room for when it was last looked at
        self._ask_at = self._look_at = ask_at
        self._missing = False  # the disk was asked, and does not have it
        self._held: Held | None = None
        self._ways: deque[Way] = deque(["whole"])
        self._fetch: Fetch | None = None
        self._form: Form = "whole"  # of what is fetched
        self._silence = Silence(WANT_S)
        self._unanswered = self._again = 0
        self._heard_at = float("-inf")
        self._failures = 0

    @property
    def wake_at(self) -> float:
        """When `next` may have something to say, if nothing happens before."""
        return self._look_at if self._missing else float("inf")

    def not_on_disk(self, held: Held | None = None) -> None:
        """The disk does not have it, or has it damaged; `held` is the version that a delta can begin from."""
        self._missing, self._held = True, held
        self._ways = self._all_ways()

    def _all_ways(self) -> deque[Way]:
        ways: deque[Way] = deque(["whole"])
        if self.target.asks:
            ways.appendleft("asked")
        if self.target.delta and self._held and self._held.version == self.target.version - 1:
            ways.appendleft("named")
        return ways

    def next(
        self, now: float, link: Limits, room: int | None = None, *, gateway_here: bool = True
    ) -> Get | Want | None:
        """What to ask for now, if anything: an object of at most `room` bytes (None: any), or one that was begun.

        Silence means nothing while the gateway is known to be away.
        """
        if not self._missing or now < self._ask_at:
            return None
        self._look_at = now + LOOK_S
        try:
            if room is not None and not self._has_room(link, room):
                self._look_at = now + LOOK_FOR_ROOM_S
                return None
            said = self._next(now, link)
            if said is None:
                return None
            self._unanswered += gateway_here
            if self._unanswered > IN_VAIN and len(self._ways) > 1:
                self._leave(again=True)
                said = self._next(now, link) if room is None or self._has_room(link, room) else None
        except ProtocolError as error:  # the disk is full, or the object is one that cannot be fetched
            self._complaints.append(error)
            self._wait_for_disk(now)
            return None
        return said

    def _has_room(self, link: Limits, room: int) -> bool:
        """Whether the rest of what is fetched was promised, or has room now; guessed, while that is asked."""
        unknown = self._ways[0] == "asked" and self._fetch is None
        fetch = None if unknown else self._fetching(link)
        size = math.ceil(fetch.size * (1 - fetch.progress)) if fetch else self.target.cost
        may = room >= 0 and size <= max(room, self.promised)
        self.promised, self.lacks = (size, 0) if may else (0, size)
        return may

    def _next(self, now: float, link: Limits) -> Get | Want | None:
        if self._ways[0] != "asked" or self._fetch is not None:
            return self._fetching(link).next_get(now)
        if not self._silence.over(now):
            return None
        self._silence.begin(now)
        target = self.target
        return Want(task=target.task, sha256=target.sha256, base=self._held.sha256 if self._held else None)

    def heard(self, chunk: Chunk, now: float, link: Limits) -> Arrived | None:
        """Take a chunk; the object, once it is whole. Raises `ProtocolError` for a bad chunk, and for a wrong hash."""
        if not self._missing or (self._ways[0] == "asked" and self._fetch is None):
            return None
        if now < self._full_until:
            return None
        try:
            fetch = self._fetching(link)
            if chunk.sha256 != fetch.sha256:
                return None
            whole = fetch.add(chunk, now)
        except ProtocolError as error:
            if error.code == Code.DISK:
                self._wait_for_disk(now)
            raise
        self._heard_at, self._unanswered = now, 0
        try:
            return Arrived(self._form, self._content(fetch)) if whole else None
        except ProtocolError:
            self.failed(now)
            raise

    def _content(self, fetch: Fetch) -> bytes:
        if self.target.kind != "release" or self.target.size <= SMALL:
            return fetch.data()
        fetch.verify()
        return b""

    def answered(self, delta: Delta, now: float) -> Arrived | None:
        """The gateway's answer to a `Want`, with the object if it came along.

        Raises `ProtocolError`: E_SIZE for an answer that is larger than the version itself, or in chunks that nobody
        makes; E_DISK where there is no room for it now.
        """
        fits = delta.sha256 == self.target.sha256 and delta.base in (None, self._held and self._held.sha256)
        if not self._missing or self._ways[0] != "asked" or self._fetch is not None or not fits:
            return None
        if max(delta.size, len(delta.data)) > 2 * self.target.size + 1024:
            self._leave()
            raise ProtocolError(Code.SIZE, f"{delta.size} bytes to make a version of {self.target.size}")
        if not delta.data:
            try:
                self._fetch = self._open(delta.object, delta.size, delta.chunk_size)
            except ProtocolError as error:
                if error.code == Code.DISK:
                    self._wait_for_disk(now)
                else:  # sizes that nobody can fetch
                    self._leave()
                raise
        self._form = "keyframe" if delta.base is None else "delta"
        self._heard_at, self._unanswered = now, 0
        if delta.data:
            return Arrived(self._form, delta.data)
        self._look_at = max(now, self._ask_at)
        return None

    def failed(self, now: float) -> None:
        """What came is of no use: go another way, or begin again, after a while."""
        if len(self._ways) > 1:
            self._leave()
            self._look_at = max(now, self._ask_at)
            return
        first, most = BAD_OBJECT_S
        self._ask_at = self._look_at = now + min(most, first * 2**self._failures)
        self._failures += 1
        self._fetch, self.promised = None, 0

    def moving(self, now: float) -> bool:
        """Whether a part of it came lately."""
        return self._fetch is not None and now - self._heard_at < MOVING_S

    @property
    def fetching(self) -> str:
        """The SHA-256 of the object that is on its way, or is wanted."""
        return self._fetch.sha256 if self._fetch else self.target.sha256

    def take_complaints(self) -> list[ProtocolError]:
        """What stood in the way, once."""
        complaints, self._complaints = self._complaints, []
        return complaints

    def resume(self, at: float = float("-inf")) -> None:
        """On a new connection, of this end or the gateway's: what was asked for before may be lost, and what was not
        answered may be now. Nothing is asked before `at`."""
        self._silence.forget()
        self._unanswered = self._again = 0
        if self._missing and (self._fetch is None or self._fetch.progress == 0):
            self._ways, self._fetch, self._form = self._all_ways(), None, "whole"
        if self._fetch is not None:
            self._fetch.resume()
        self._ask_at = max(self._ask_at, at)
        self._look_at = max(self._ask_at, min(self._look_at, at))

    def _leave(self, *, again: bool = False) -> None:
        """Take the next way. `again`: an object that the gateway named and does not send is first asked for anew."""
        if again and self._ways[0] == "asked" and self._fetch is not None and self._again < IN_VAIN:
            self._again += 1
        else:
            self._ways.popleft()
        self._fetch, self._form, self._unanswered = None, "whole", 0
        self._silence.forget()

    def _fetching(self, link: Limits) -> Fetch:
        target = self.target
        chunk_size = target.chunk_size or chunk_size_for(link.version, link.max_packet)
        if self._fetch is None or (not target.chunk_size and self._fetch.chunk_size != chunk_size):
            named = self._ways[0] == "named"
            self._form = "delta" if named else "whole"
            sha256, size = (target.delta, target.delta_size) if named else (target.sha256, target.size)
            self._fetch = self._open(sha256, size, chunk_size)
        return self._fetch

    def _open(self, sha256: str, size: int, chunk_size: int) -> Fetch:
        return Fetch(sha256, size, chunk_size, part=self._parts.open(sha256, sha256, size, chunk_size))

    def _wait_for_disk(self, now: float) -> None:
        """Nothing is asked for, and nothing taken, until there may be room again; what came before is kept."""
        self._ask_at = self._look_at = self._full_until = now + DISK_S
        self.resume()
