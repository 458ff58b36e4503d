"""What goes wrong, when, and for how long: drawn from a seed, or written by a person; and carried out on the twin.

A schedule is a list, so that a failing one can be made smaller by leaving faults out (shrink.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, get_args

from anabranch.simulator.device import DeviceHost
from anabranch.simulator.experiment import Deed, EventSection, FaultsSection
from anabranch.simulator.gateway import GatewayHost
from anabranch.simulator.host import Host
from anabranch.simulator.power import Death
from fl_protocol.errors import ConfigError
from fl_protocol.wire import Arrive

if TYPE_CHECKING:
    from anabranch.simulator.twin import Twin

GATEWAY, BROKER = "gateway", "broker"
MAX_EFFECTS = 40  # a death comes after so many more at most
WALL_JUMP_S = 86400.0
# Deeds that a random storm draws, by how often, and to whom.
_WEIGHTS: Mapping[Deed, float] = {
    "kill": 5, "power": 5, "cut": 3, "partition": 3, "slow": 1, "freeze": 1, "clock": 1, "disk-full": 2,
    "disk-fails": 1, "gate": 1, "lose": 2, "double": 2, "reorder": 2, "late": 2, "leave": 0.5,
    "broker-stops": 1, "broker-restart": 1, "broker-forgets": 1, "broker-wiped": 1,
}  # fmt: skip
_OF_DEVICES = frozenset({"gate", "leave"})
_OF_BROKER = frozenset({"broker-stops", "broker-restart", "broker-forgets", "broker-wiped"})
_OF_NOBODY = frozenset({"half-dies"})


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
        case "lose" | "double":
            return rng.uniform(0.05, 0.5)  # of the messages
        case "reorder":
            return rng.expovariate(1 / 0.5)  # seconds
        case "late":
            return rng.expovariate(1 / 120)
        case "slow":
            return rng.uniform(2, 100)  # times
        case "clock":
            return rng.uniform(-WALL_JUMP_S, WALL_JUMP_S)
    return 0.0


def written(events: Sequence[EventSection], devices: Sequence[str]) -> list[Fault]:
    """Faults that the experiment's file names. Raises `ConfigError` for nobody's."""
    faults = []
    for number, event in enumerate(events):
        if event.deed not in _OF_BROKER | _OF_NOBODY and event.who not in (GATEWAY, *devices):
            raise ConfigError(
                f"events[{number}].who = {event.who!r}", f"gateway, or a device: {', '.join(devices[:8])}, ..."
            )
        faults.append(Fault(number, event.at_s, event.deed, event.who, event.for_s, event.after, event.amount))
    return faults


class Weather:
    """`MemoryBroker.fate` while some messages are lost, doubled, out of order or late on their way to a subscriber."""

    def __init__(self, twin: "Twin") -> None:
        self._twin = twin
        self._active: dict[int, tuple[Fault, Random]] = {}

    def begin(self, fault: Fault) -> None:
        """This fault begins; each draws from a generator of its own."""
        self._active[fault.number] = fault, self._twin.world.rng("weather", fault.number)
        self._twin.broker.fate = self._fate

    def end(self, fault: Fault) -> None:
        """It ends."""
        self._active.pop(fault.number, None)
        if not self._active:
            self._twin.broker.fate = None

    def _fate(self, client_id: str, topic: str, arrive: Arrive) -> None:
        world, late, copies = self._twin.world, 0.0, 1
        for fault, rng in self._active.values():
            if fault.who != client_id:
                continue
            match fault.deed:
                case "lose" if rng.random() < fault.amount:
                    self._twin.trace.line("broker", f"loses {topic} for {client_id}")
                    return
                case "double" if rng.random() < fault.amount:
                    copies += 1
                case "reorder" if rng.random() < 0.5:
                    late += rng.expovariate(1 / max(1e-3, fault.amount))
                case "late" if rng.random() < 0.3:
                    late += fault.amount
        for copy in range(copies):
            if late or copy:
                world.after(late + copy * 0.01, arrive)
            else:
                arrive()


class Faults:
    """Carries a schedule out, and undoes what lasts."""

    def __init__(self, twin: "Twin", schedule: Sequence[Fault]) -> None:
        self._twin, self.schedule = twin, tuple(schedule)
        self._weather = Weather(twin)
        self._lasting: dict[int, partial[None]] = {}  # what mends it

    def start(self) -> None:
        """Let every fault happen at its time."""
        for fault in self.schedule:
            self._twin.world.at(fault.at, partial(self._happens, fault))

    def mend_all(self) -> None:
        """The storm is over: everything heals, and whoever is down starts, but for those that left."""
        for number in list(self._lasting):
            self._mend(number)
        for host in self._twin.hosts():
            host.boot()

    def _happens(self, fault: Fault) -> None:
        self._twin.trace.line(fault.who, f"! {fault}")
        host = self._twin.host(fault.who)
        if fault.deed in _OF_BROKER | _OF_NOBODY:
            self._to_broker(fault)
        elif host is not None and not host.gone:
            self._to_host(fault, host)

    def _lasts(self, fault: Fault, mend: "partial[None]") -> None:
        self._lasting[fault.number] = mend
        self._twin.world.after(fault.for_s, partial(self._mend, fault.number))

    def _mend(self, number: int) -> None:
        if mend := self._lasting.pop(number, None):
            self._twin.trace.line("", f"fault #{number} ends")
            mend()

    def _to_host(self, fault: Fault, host: Host) -> None:
        assert isinstance(host, DeviceHost | GatewayHost)
        match fault.deed:
            case "kill" | "power":
                death: Death = "kill" if fault.deed == "kill" else "power"
                host.kill(death, after=fault.after, down_s=fault.for_s)
            case "leave":
                host.leave()
            case "freeze":
                self._freeze(fault, host)
            case "cut":
                if host.transport:
                    host.transport.cut()
            case "partition":
                host.wire.holds += 1
                if host.transport:
                    host.transport.went_silent()
                self._lasts(fault, partial(host.wire.heal))
            case "slow":
                host.wire.slowness *= fault.amount
                self._lasts(fault, partial(_quicken, host, fault.amount))
            case "clock":
                host.clock_ms += int(fault.amount * 1000)
            case "lose" | "double" | "reorder" | "late":
                self._weather.begin(fault)
                self._lasts(fault, partial(self._weather.end, fault))
            case "disk-full" if isinstance(host, GatewayHost):
                host.store.full, host.files.capacity = True, 0
                host.free_bytes = 0 if fault.number % 2 else host.free_bytes  # it may know before, or find out
                self._lasts(fault, partial(_empty, host))
            case "disk-full" if isinstance(host, DeviceHost):
                host.outbox.full, host.files.capacity = True, 0
                self._lasts(fault, partial(_empty, host))
            case "disk-fails":
                _fails(host, True)
                self._lasts(fault, partial(_fails, host, False))
            case "gate" if isinstance(host, DeviceHost):
                host.may_train = False
                self._lasts(fault, partial(setattr, host, "may_train", True))

    def _freeze(self, fault: Fault, host: "DeviceHost | GatewayHost") -> None:
        host.sleep()
        self._lasts(fault, partial(host.wake))

    def _to_broker(self, fault: Fault) -> None:
        broker = self._twin.broker
        match fault.deed:
            case "half-dies":
                for host in self._twin.devices[::2]:
                    host.leave()
                return
            case "broker-wiped":
                broker.kill()
                broker.wipe()
            case "broker-stops":
                broker.stop()
            case _:
                broker.kill()
        self._lasts(fault, partial(broker.restart, saved=fault.deed == "broker-forgets"))


def _quicken(host: "DeviceHost | GatewayHost", times: float) -> None:
    host.wire.slowness /= times


def _fails(host: "DeviceHost | GatewayHost", fails: bool) -> None:
    database = host.outbox if isinstance(host, DeviceHost) else host.store
    host.files_fail = database.fails = fails


def _empty(host: "DeviceHost | GatewayHost") -> None:
    host.files.capacity = None
    if isinstance(host, GatewayHost):
        host.store.full, host.free_bytes = False, 1 << 40
    else:
        host.outbox.full = False


ALL_DEEDS = get_args(Deed)
