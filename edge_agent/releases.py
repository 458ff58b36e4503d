"""`update-agent`: fetch a release of the agent, leave it for root's side, and say how that ended, whoever runs then.

    the command -> on the disk already? -> fetched in chunks, as the budget has room -> checked -> noted -> spooled
        -> root's side stops this agent, tries the new one -> it, or this one again, reads the report: how it ended

Before the note is on the disk, nothing has happened that a deadline or the gateway could not end. After it, root's side
goes on whatever the gateway says, and what it reports is what the command comes to. No I/O: see `ReleaseSpool`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edge_agent.commanding import NEVER, Commanding
from edge_agent.commands import KeptCommand
from edge_agent.download import Download, Target
from edge_agent.events import Effect, KeepRelease, LookForReport, Note, ReleaseKept, ReleaseSpooled, Send, SpoolRelease
from edge_agent.events import UpdateSeen as Seen
from edge_agent.identity import Identity
from fl_protocol.errors import Code
from fl_protocol.messages import Chunk
from fl_protocol.topics import Kind
from fl_protocol.transfer import Parts
from fl_protocol.transport import Limits

LOOK_S = 2.0  # how often root's report is looked at
ROOM = 3  # times its size: the part, what is unpacked of it, and the slot that it becomes; less is not begun with
MIN_FREE_MB = 64.0  # that stay free besides
Stage = Literal["asking", "fetching", "checking", "noting", "watching"]


@dataclass
class _Update:
    """The one under way."""

    cid: str
    sha256: str
    size: int
    stage: Stage = "asking"
    download: Download | None = None
    look_at: float = NEVER


class Releases:
    """One update at a time. `emit` takes the effects; `why` says of so many bytes why they wait."""

    def __init__(
        self,
        identity: Identity,
        commanding: Commanding,
        emit: Callable[[Effect], None],
        fleet_key: Callable[[], str],
        why: Callable[[int], str],
        parts: Parts | None = None,
    ) -> None:
        self._identity, self._commanding, self._emit = identity, commanding, emit
        self._fleet_key, self._why, self._parts = fleet_key, why, parts
        self._update: _Update | None = None
        self.gateway_here = True

    @property
    def _download(self) -> Download | None:
        return self._update.download if self._update else None

    @property
    def promised(self) -> int:
        """Bytes that are on their way because there was room for them."""
        return self._download.promised if self._download else 0

    @property
    def size(self) -> int:
        """Bytes of what is fetched; 0: nothing is."""
        return self._update.size if self._update and self._download else 0

    def wake_at(self, linked: bool) -> float:
        """When `next` has something to do, if nothing happens before; what is fetched needs a connection."""
        if self._update is None:
            return NEVER
        return min(self._update.look_at, self._download.wake_at if self._download and linked else NEVER)

    def resume(self, at: float = float("-inf")) -> None:
        """This end or the gateway has a new connection: ask again for what is missing, not before `at`."""
        if self._download:
            self._download.resume(at)

    def next(self, now: float, link: Limits | None, room: int | None, free_mb: float | None) -> None:
        """Begin what was asked for, go on with it; `room` is in bytes, None: any. `free_mb` on the disk, if known."""
        self._choose()
        update = self._update
        if update is None:
            return
        if update.stage == "asking":
            self._begin(update, now, free_mb)
        if update.stage == "watching" and now >= update.look_at:
            update.look_at = now + LOOK_S
            self._emit(LookForReport(update.sha256))
        if update.download and link:
            word = update.download.next(now, link, room, gateway_here=self.gateway_here)
            if word is not None:
                self._emit(Send(self._identity.topic(Kind.GET), word))
            for error in update.download.take_complaints():
                self._emit(Note("warning", f"the agent's release: {error}"))
            self._commanding.update_waits_for = self._why(update.download.lacks) if update.download.lacks else ""

    def heard(self, chunk: Chunk, now: float, link: Limits) -> None:
        """A chunk, perhaps of it. Raises `ProtocolError` for a bad one, or once the whole is not what it is called."""
        if (update := self._update) is None or update.download is None:
            return
        arrived = update.download.heard(chunk, now, link)
        if arrived is not None:
            update.stage, update.download = "checking", None
            self._emit(KeepRelease(update.sha256, self._fleet_key(), arrived.data))

    def kept(self, event: ReleaseKept, now: float) -> None:
        """It was looked for on the disk, or has come and was checked."""
        update = self._update
        if update is None or update.sha256 != event.sha256 or update.stage != "checking":
            return
        if event.code is not None:
            ours = event.code == Code.DISK
            self._commanding.end(update.cid, "failed" if ours else "rejected", event.why, event.code)
        elif event.number is None:
            update.stage = "fetching"
            update.download = Download(Target("release", update.sha256, update.size), now, None, self._parts)
            update.download.not_on_disk()
        else:
            update.stage = "noting"
            why = f"installing release {event.number} ({event.version})"
            self._commanding.note(update.cid, f"{event.number} {event.digest} {event.version}", why)

    def saved(self, command: KeptCommand, now: float) -> None:
        """A command is on the disk: where it is the note, root's side may have the release."""
        update = self._update
        if update and update.cid == command.cid and command.note and update.stage == "noting":
            update.stage, update.look_at = "watching", now + LOOK_S
            self._emit(SpoolRelease(update.sha256))

    def spooled(self, event: ReleaseSpooled) -> None:
        """It is with root's side."""
        if event.why and (update := self._update) and update.sha256 == event.sha256:
            self._commanding.end(update.cid, "failed", event.why, Code.DISK)

    def seen(self, event: Seen) -> None:
        """How far root's side is: it reports first, and takes the release away then."""
        update, report = self._update, event.report
        if update is None or update.sha256 != event.sha256 or update.stage != "watching" or event.spooled:
            return
        number, _, version = self._commanding.note_of(update.cid).split()
        if event.kept:  # a power cut came between the note and its name
            self._emit(SpoolRelease(update.sha256))
        elif report is None:
            self._commanding.end(
                update.cid, "failed", "the release is gone, and nothing was reported of it", Code.COMMAND
            )
        elif report.state == "executing":
            return
        elif report.number not in (int(number), 0):  # 0: it could not be read
            why = f"another release came in between, {report.number}: {report.state} {report.why}".rstrip()
            self._commanding.end(update.cid, "failed", why, Code.COMMAND)
        elif report.state == "successful":
            self._commanding.end(update.cid, "successful", f"release {number} ({version}) is installed")
        else:
            self._commanding.end(update.cid, "failed", report.why or "anabranch-update failed", Code.COMMAND)

    # --- inside ---

    def _choose(self) -> None:
        """The oldest that is asked for; all others are one too many."""
        updates = self._commanding.updates
        if self._update and self._update.cid not in updates:
            self._update, self._commanding.update_waits_for = None, ""
        for cid, (sha256, size) in list(updates.items()):
            if self._update is None:
                self._update = _Update(cid, sha256, size)
            elif cid != self._update.cid:
                self._commanding.end(cid, "rejected", "another update is under way", Code.COMMAND)

    def _begin(self, update: _Update, now: float, free_mb: float | None) -> None:
        if self._commanding.note_of(update.cid):
            update.stage, update.look_at = "watching", now
            return
        needs_mb = ROOM * update.size / 2**20 + MIN_FREE_MB
        if free_mb is not None and free_mb < needs_mb:
            why = f"{free_mb:.0f} MB are free on the disk, and it needs {needs_mb:.0f}"
            self._commanding.end(update.cid, "rejected", why, Code.DISK)
            self._update = None
            return
        update.stage = "checking"
        self._emit(KeepRelease(update.sha256, self._fleet_key()))
