"""After a storm the fleet must be at work again; and at the end of every run the books must balance."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anabranch.demo.ledgers import compare_ledgers
from anabranch.simulator.device import DeviceHost

if TYPE_CHECKING:
    from anabranch.simulator.twin import Twin

BEHIND = ("lost", "disconnected")


class Calm:
    """What must have happened after the last fault has ended, and whether it has."""

    def __init__(self, twin: "Twin") -> None:
        self._twin = twin
        self.began = twin.world.now
        self._version = twin.recorder.version
        self._owed = {
            (device.name, pending.incarnation, pending.seq)
            for device in twin.devices
            if not device.gone and device.conduct is None
            for pending in device.outbox.pending
        }

    def reached(self) -> str:
        """Why it may be called calm, or nothing."""
        return "" if self._missing_kinds() else "all is well"

    def missing(self) -> list[str]:
        """What has not happened in time."""
        return [what for what in self._missing_kinds().values() if what]

    def _missing_kinds(self) -> dict[str, str]:
        twin, found = self._twin, {}
        settled = twin.checker.settled
        self._owed = {name for name in self._owed if name not in settled}
        if self._owed:
            found["verdicts"] = f"{len(self._owed)} updates have no verdict, {min(self._owed)} among them"
        living = [device for device in twin.devices if not device.gone]
        if living and twin.recorder.version <= self._version and not twin.recorder.finished:
            found["releases"] = f"no release since version {self._version}"
        if held := [device.name for device in living if _held_lost(twin, device)]:
            found["beliefs"] = f"{held[0]} is connected, and the gateway takes it to be gone"
        return found


def _held_lost(twin: "Twin", device: DeviceHost) -> bool:
    service = twin.gateway.service
    if service is None or device.transport is None or not device.transport.connected:
        return False
    known = service.coordinator.fleet.devices[device.name]
    return known.state is None or known.state.state in BEHIND


def at_rest(twin: "Twin") -> str:
    """Whether every honest device that can has heard what became of its update."""
    honest = [device for device in twin.devices if device.conduct is None]
    waits = any(device.runs and device.outbox.pending for device in honest)
    return "" if waits or not twin.gateway.up else "all verdicts are heard"


def _rows_of(device: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["device"] == device]


def final_checks(twin: "Twin") -> None:
    """Ledgers, disposals, and memory against disk; with cheap checks also every release, made again."""
    checker, store = twin.checker, twin.store
    rows = [
        {
            "device": row.device,
            "incarnation": row.incarnation,
            "seq": row.seq,
            "verdict": row.verdict.verdict,
            "disposal": row.disposal or "",
            "version": row.version,
            "why": row.why,
        }
        for row in store.rows()
    ]
    # Who breaks the protocol keeps no books to believe: the store is held to its own rows alone.
    agreement = compare_ledgers(
        rows,
        {
            device.name: device.outbox.ledger() if device.conduct is None else _rows_of(device.name, rows)
            for device in twin.devices
        },
    )
    for contradiction in agreement.contradictions[:5]:
        checker.complain(f"ledgers at the end: {contradiction}")
    if twin.recorder.finished:
        left = [row["device"] for row in rows if row["disposal"] == "buffered"]
        if left:
            checker.complain(
                f"the task has ended, and {len(left)} accepted updates are neither counted nor quarantined"
            )
    service = twin.gateway.service
    if service is not None:
        loaded = store.load(twin.world.now)
        for name, task in service.coordinator.tasks.items():
            there = loaded.tasks[name]
            same = (task.release.sha256, task.release.version, [b.name for b in task.buffer]) == (
                there.release.sha256,
                there.release.version,
                [b.name for b in there.buffer],
            )
            final = {verdict: n for verdict, n in task.verdicts.items() if verdict != "deferred"}  # which has no row
            if not same or final != dict(there.verdicts):
                checker.complain(f"{name}: what the gateway has in memory is not what its disk says")
