"""What goes wrong, when, and for how long: drawn from a seed, or written by a person; and carried out on the twin.

A schedule is a list, so that a failing one can be made smaller by leaving faults out (shrink.py).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, get_args

from anabranch.simulator.device import DeviceHost
from anabranch.simulator.experiment import Deed, EventSection, FaultsSection
from anabranch.simulator.gateway import FREE_BYTES, GatewayHost
from anabranch.simulator.host import Host
from anabranch.simulator.power import Death
from anabranch.simulator.weather import Weather
from fl_protocol.errors import ConfigError

if TYPE_CHECKING:
    from anabranch.simulator.twin import Twin

GATEWAY, BROKER = "gateway", "broker"
MAX_EFFECTS = 40  # a death comes after so many more at most
WALL_JUMP_S = 86400.0
# Deeds that a random storm draws, by how often, and to whom.
_WEIGHTS: Mapping[Deed, float] = {
    "kill": 5, "power": 5, "cut": 3, "partition": 3, "slow": 1, "freeze": 1, "clock": 1, "disk-full": 2,
    "disk-fails": 1, "gate": 1, "lose": 2, "double": 2, "reorder": 2, "late": 2, "tamper": 1, "leave": 0.5,
    "broker-stops": 1, "broker-restart": 1, "broker-forgets": 1, "broker-wiped": 1,
}  # fmt: skip
_OF_DEVICES = frozenset({"gate", "leave"})
_OF_BROKER = frozenset({"broker-stops", "broker-restart", "broker-forgets", "broker-wiped", "half-dies", "lost"})
# What an event's `amount` may be, and is unless told: a share, seconds or times.
_AMOUNTS: Mapping[str, tuple[float, float, float]] = {
    "lose": (0.0, 1.0, 0.5), "double": (0.0, 1.0, 0.5), "tamper": (0.0, 1.0, 0.5), "reorder": (0.001, 1e6, 0.5),
    "lost": (0.0, 1.0, 0.5), "late": (0.001, 1e6, 60.0), "slow": (0.001, 1e6, 10.0), "clock": (-1e9, 1e9, 3600.0),
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, `at` a time, for `for_s` seconds.

    A death comes `after` so many more effects; `amount` is a share, seconds or times, as the deed has it.
    """

    number: int
    at: float
    deed: Deed
    who: str
    for_s: float
    after: int = 0
    amount: float = 0.0

    def __str__(self) -> str:
        more = f", after {self.after} effects" if self.after else ""
        much = f", {self.amount:.3g}" if self.amount else ""
        return f"#{self.number} at {self.at:.3f} s: {self.deed} {self.who} for {self.for_s:.1f} s{more}{much}"


def draw(section: FaultsSection, devices: Sequence[str], rng: Random) -> list[Fault]:
    """A storm: times uniform over it, the gateway as often as all devices together."""
    weights = {deed: w for deed, w in _WEIGHTS.items() if not section.deeds or deed in section.deeds}
    names, odds = list(weights), list(weights.values())
    faults = []
    for number in range(rng.randint(*section.count)):
        (deed,) = rng.choices(names, odds)
        who = BROKER if deed in _OF_BROKER else rng.choice(devices)
        if deed not in _OF_DEVICES | _OF_BROKER and rng.random() < 0.5:
            who = GATEWAY
        fault = Fault(
            number=number,
            at=rng.uniform(0, section.storm_s),
            deed=deed,
            who=who,
            for_s=min(rng.expovariate(1 / 20) + 0.1, section.storm_s),
            after=rng.randint(0, MAX_EFFECTS) if deed in ("kill", "power") else 0,
            amount=_amount(deed, rng),
        )
        faults.append(fault)
    return sorted(faults, key=lambda fault: fault.at)


def _amount(deed: Deed, rng: Random) -> float:
    match deed:
        case "lose" | "double" | "tamper":
            return rng.uniform(0.05, 0.5)  # of the messages
        case "reorder":
            return rng.expovariate(1 / 0.5) + 0.001  # seconds
        case "late":
            return rng.expovariate(1 / 120) + 0.001
        case "slow":
            return rng.uniform(2, 100)  # times
        case "clock":
            return rng.uniform(-WALL_JUMP_S, WALL_JUMP_S)
    return 0.0


def written(events: Sequence[EventSection], devices: Sequence[str], first: int = 0) -> list[Fault]:
    """Faults that the experiment's file names, numbered from `first`. Raises `ConfigError` for what cannot be."""
    faults = []
    for number, event in enumerate(events):
        of_broker = event.deed in _OF_BROKER
        if not of_broker and event.who not in devices and (event.who != GATEWAY or event.deed in _OF_DEVICES):
            gateway = "" if event.deed in _OF_DEVICES else "gateway, or "
            raise ConfigError(
                f"events[{number}].who = {event.who!r}, to whom {event.deed} cannot happen",
                f"{gateway}a device: {', '.join(devices[:8])}, ...",
            )
        low, high, usual = _AMOUNTS.get(event.deed, (0.0, 0.0, 0.0))
        amount = usual if event.amount is None else event.amount
        if not low <= amount <= high:
            raise ConfigError(
                f"events[{number}].amount = {amount:g} for {event.deed}",
                f"from {low:g} to {high:g}; {usual:g} unless told",
            )
        who = BROKER if of_broker else event.who
        faults.append(Fault(first + number, event.at_s, event.deed, who, event.for_s, event.after, amount))
    return faults


class Faults:
    """Carries a schedule out, and undoes what lasts; of faults that overlap the last to end mends."""

    def __init__(self, twin: "Twin", schedule: Sequence[Fault]) -> None:
        self._twin, self.schedule = twin, tuple(schedule)
        self._weather = Weather(twin.world, twin.trace, twin.broker, {})
        self._lasting: dict[int, Callable[[], None]] = {}  # what mends it
        self._at_once: Counter[tuple[str, str]] = Counter()  # (who, deed) -> how many of them last
        self._broker_down: set[int] = set()
        self._broker_forgets = False

    def start(self) -> None:
        """Let every fault happen at its time."""
        for fault in self.schedule:
            self._twin.world.at(fault.at, partial(self._happens, fault))

    def mend_all(self) -> None:
        """The storm is over: everything heals, and whoever is down starts, but for those that left."""
        for number in list(self._lasting):
            self._mend(number)
        for host in self._twin.hosts():
            host.spare()
            host.boot()

    def _happens(self, fault: Fault) -> None:
        self._twin.trace.line(fault.who, f"! {fault}")
        host = self._twin.host(fault.who)
        if fault.who == BROKER:
            self._to_broker(fault)
        elif host is not None and not host.gone:
            self._to_host(fault, host)

    def _lasts(self, fault: Fault, mend: Callable[[], None]) -> None:
        self._lasting[fault.number] = mend
        self._twin.world.after(fault.for_s, partial(self._mend, fault.number))

    def _mend(self, number: int) -> None:
        if mend := self._lasting.pop(number, None):
            self._twin.trace.line("", f"fault #{number} ends")
            mend()

    def _switch(self, fault: Fault, switch: Callable[[bool], None]) -> None:
        """Something is on while at least one such fault lasts."""
        key = fault.who, fault.deed
        self._at_once[key] += 1
        switch(True)

        def mend() -> None:
            self._at_once[key] -= 1
            if not self._at_once[key]:
                switch(False)

        self._lasts(fault, mend)

    def _to_host(self, fault: Fault, host: Host) -> None:
        assert isinstance(host, DeviceHost | GatewayHost)
        match fault.deed:
            case "kill" | "power":
                death: Death = "kill" if fault.deed == "kill" else "power"
                host.kill(death, after=fault.after, down_s=fault.for_s)
            case "leave":
                host.leave()
            case "freeze":
                host.sleep()
                self._lasts(fault, host.wake)
            case "cut":
                if host.transport:
                    host.transport.cut()
            case "partition":
                host.wire.part()
                if host.transport:
                    host.transport.went_silent()
                self._lasts(fault, host.wire.heal)
            case "slow":
                host.wire.slowness *= fault.amount
                self._lasts(fault, partial(_quicken, host, fault.amount))
            case "clock":
                host.clock_ms += int(fault.amount * 1000)
            case "lose" | "double" | "reorder" | "late" | "tamper":
                self._weather.begin(fault)
                self._lasts(fault, partial(self._weather.end, fault))
            case "disk-full":
                self._switch(fault, partial(_fill, host, fault.number % 2 == 1))
            case "disk-fails":
                self._switch(fault, partial(_fails, host))
            case "gate" if isinstance(host, DeviceHost):
                self._switch(fault, partial(_shut, host))

    def _to_broker(self, fault: Fault) -> None:
        broker = self._twin.broker
        match fault.deed:
            case "half-dies":
                for host in self._twin.devices[::2]:
                    host.leave()
                return
            case "lost":
                devices = self._twin.devices
                lost = self._twin.world.rng("lost", fault.number).sample(devices, round(fault.amount * len(devices)))
                for host in sorted(lost, key=lambda host: host.name):
                    host.leave()
                return
            case "broker-wiped":
                broker.kill()
                broker.wipe()
            case "broker-stops" if broker.running:
                broker.stop()
            case _:
                broker.kill()
        self._broker_down.add(fault.number)
        self._broker_forgets |= fault.deed == "broker-forgets"
        self._lasts(fault, partial(self._broker_back, fault.number))

    def _broker_back(self, number: int) -> None:
        """It is down as long as any of its faults lasts, and forgets if one of them makes it forget."""
        self._broker_down.discard(number)
        if not self._broker_down:
            self._twin.broker.restart(saved=self._broker_forgets)
            self._broker_forgets = False


def _quicken(host: "DeviceHost | GatewayHost", times: float) -> None:
    host.wire.slowness /= times


def _shut(host: DeviceHost, shut: bool) -> None:
    host.may_train = not shut


def _fails(host: "DeviceHost | GatewayHost", fails: bool) -> None:
    database = host.outbox if isinstance(host, DeviceHost) else host.store
    host.files_fail = database.fails = fails


def _fill(host: "DeviceHost | GatewayHost", is_told: bool, full: bool) -> None:
    """`is_told`: a gateway sees that its disk is full before a write does."""
    host.files.capacity = 0 if full else None
    if isinstance(host, DeviceHost):
        host.outbox.full = full
        return
    host.store.full = full
    host.free_bytes = 0 if full and is_told else FREE_BYTES


ALL_DEEDS = get_args(Deed)
