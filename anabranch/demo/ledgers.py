"""Do the gateway's store and the devices' own ledgers tell the same story? Pure, on rows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
_DISPOSALS = {"counted", "quarantined", "buffered"}


@dataclass(frozen=True)
class Agreement:
    """How many updates both sides know with the same verdict, what became of them, and every contradiction."""

    updates: int
    verdicts: Mapping[str, int]
    disposals: Mapping[str, int]
    unheard: int  # recorded by the gateway, whose answer had not reached the device when it stopped
    contradictions: Sequence[str] = field(default_factory=list)

    @property
    def agree(self) -> bool:
        """Whether nothing contradicts."""
        return not self.contradictions

    def __str__(self) -> str:
        if not self.agree:
            return f"LEDGERS DISAGREE: {'; '.join(self.contradictions[:5])}"
        became = ", ".join(f"{n} {what}" for what, n in sorted(self.disposals.items())) or "none accepted"
        unheard = f"; {self.unheard} answered after the device stopped" if self.unheard else ""
        return f"ledgers agree: {self.updates} updates ({became}{unheard})"


def compare_ledgers(store: Sequence[Row], devices: Mapping[str, Sequence[Row]]) -> Agreement:
    """Hold the store's rows (device, incarnation, seq, verdict, disposal, version, why) against each device's own.

    Every final verdict on a device is in the store, once, with the same word. Every accepted update has exactly one
    disposal: counted in one version, or quarantined or buffered. What only the store knows is at most each device's
    newest: one update is in flight, and its answer may come when the device has stopped.
    """
    told = {
        (device, row["incarnation"], row["seq"]): row["verdict"] for device, rows in devices.items() for row in rows
    }
    stored: Counter[tuple[str, str, int]] = Counter()
    known: dict[tuple[str, str, int], str] = {}
    for row in store:
        key = row["device"], row["incarnation"], row["seq"]
        stored[key] += 1
        known[key] = row["verdict"]
    unheard = [key for key in known if key not in told]
    contradictions = [
        *(f"{_name(k)} is in the store {n} times" for k, n in stored.items() if n != 1),
        *(f"{_name(k)} was {v}, but the store does not know it" for k, v in told.items() if k not in known),
        *(f"{_name(k)}: {v} here, {known[k]} there" for k, v in told.items() if known.get(k, v) != v),
        *_disposed_wrongly(store),
        *_lost(unheard, list(told)),
    ]
    return Agreement(
        updates=len(told.keys() & known.keys()),
        verdicts=dict(Counter(known.values())),
        disposals=dict(Counter(row["disposal"] for row in store if row["disposal"])),
        unheard=len(unheard),
        contradictions=contradictions,
    )


def _disposed_wrongly(store: Sequence[Row]) -> Iterator[str]:
    for row in store:
        key = row["device"], row["incarnation"], row["seq"]
        if (row["verdict"] == "accepted") != (row["disposal"] in _DISPOSALS):
            yield f"{_name(key)} was {row['verdict']}, its disposal is {row['disposal']}"
        in_version = row["version"] is not None  # of what is quarantined: in one that was withheld, or in none
        if row["disposal"] in ("counted", "buffered") and in_version != (row["disposal"] == "counted"):
            yield f"{_name(key)} is {row['disposal']}, in version {row['version']}"
        if row["disposal"] == "quarantined" and not row["why"]:
            yield f"{_name(key)} is quarantined without a reason"


def _lost(unheard: Sequence[tuple[str, str, int]], told: Sequence[tuple[str, str, int]]) -> Iterator[str]:
    """Only the newest update of a device may be unheard of there."""
    newest = {(device, life): seq for device, life, seq in sorted([*told, *unheard])}
    for device, life, seq in unheard:
        if newest[device, life] != seq:
            yield f"{_name((device, life, seq))} is in the store, but the device lost its verdict"


def _name(key: tuple[str, str, int]) -> str:
    return f"{key[0]}/{key[1][:4]}/{key[2]}"
