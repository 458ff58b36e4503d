"""The machines of an experiment, drawn from its seed: who is how fast, how far away, and when awake."""

import csv
from collections.abc import Callable, Iterator, Sequence

from anabranch.simulator.device import DeviceHost, DeviceSpec
from anabranch.simulator.experiment import AvailabilitySection, Experiment, TierSection
from anabranch.simulator.world import World
from fl_protocol.errors import ConfigError


def draw_devices(experiment: Experiment, names: Sequence[str], world: World) -> list[DeviceSpec]:
    """One spec a name; tiers are dealt by their shares, so that each has its part whatever the seed."""
    fleet, rng = experiment.fleet, world.rng("fleet")
    for key in ("slow", "late"):
        if unknown := [name for name in getattr(fleet, key) if name not in names]:
            raise ConfigError(f"fleet.{key} names {unknown[0]}", f"the devices: {', '.join(names[:8])}, ...")
    tiers = _deal(fleet.tiers, len(names)) or [None] * len(names)
    rng.shuffle(tiers)
    attacks = _liars(experiment, names, world)
    specs = []
    for number, (name, tier) in enumerate(zip(names, tiers, strict=True)):
        slowness = tier.slowness if tier else 1.0
        slowness *= fleet.slow_by if name in fleet.slow else 1.0
        specs.append(
            DeviceSpec(
                name=name,
                number=number,
                tier=tier.name if tier else "",
                slowness=slowness * rng.lognormvariate(0.0, fleet.slowness_spread),
                memory_mb=tier.memory_mb if tier and tier.memory_mb else fleet.memory_mb,
                link=experiment.link.spec(tier),
                attack=attacks.get(name, ""),
                dies=fleet.dies,
                back_s=fleet.back_s,
                dies_until_s=experiment.faults.storm_s or float("inf"),
            )
        )
    return specs


def _deal(tiers: Sequence[TierSection], devices: int) -> list[TierSection | None]:
    """Each tier as often as its share says; what rounding leaves goes to those that it cost most."""
    counts = [int(tier.share * devices) for tier in tiers]
    by_loss = sorted(range(len(tiers)), key=lambda i: counts[i] - tiers[i].share * devices)
    for i in by_loss[: devices - sum(counts)]:
        counts[i] += 1
    return [tier for tier, count in zip(tiers, counts, strict=True) for _ in range(count)]


def _liars(experiment: Experiment, names: Sequence[str], world: World) -> dict[str, str]:
    liars: dict[str, str] = {}
    for number, attack in enumerate(experiment.attacks):
        unknown = [name for name in attack.devices if name not in names]
        if unknown:
            raise ConfigError(f"attacks[{number}].devices names {unknown[0]}", "name devices of the fleet")
        honest = [name for name in names if name not in liars]
        drawn = world.rng("attack", number).sample(honest, min(len(honest), round(attack.share * len(names))))
        liars |= dict.fromkeys((*attack.devices, *drawn), str(number))
    return liars


Spell = tuple[float, float]  # awake from, to


def spells(section: AvailabilitySection, spec: DeviceSpec, world: World) -> Iterator[Spell] | None:
    """When a device is awake, for ever; None for always. Raises `ConfigError` for a trace that cannot be read."""
    if section.kind == "always":
        return None
    if section.kind == "trace":
        rows = _rows(section)
        mine = rows[sorted(rows)[spec.number % len(rows)]]
        return _repeated(mine, section.period_s)
    return _turns(section, spec, world)


def _turns(section: AvailabilitySection, spec: DeviceSpec, world: World) -> Iterator[Spell]:
    rng = world.rng("awake", spec.name)
    starts_awake = rng.random() < section.awake_s / (section.awake_s + section.asleep_s)
    at = 0.0 if starts_awake else rng.expovariate(1 / section.asleep_s)
    while True:
        end = at + rng.expovariate(1 / section.awake_s)
        yield at, end
        at = end + rng.expovariate(1 / section.asleep_s)


def _repeated(mine: Sequence[Spell], period_s: float) -> Iterator[Spell]:
    start = 0.0
    while True:
        yield from ((start + a, start + b) for a, b in mine)
        start += period_s


def _rows(section: AvailabilitySection) -> dict[str, list[Spell]]:
    path, rows = section.trace, dict[str, list[Spell]]()
    assert path is not None
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                start, end = float(row["start_s"]), float(row["end_s"])
                last = rows.get(row["device"], [(0.0, 0.0)])[-1][1]
                if not last <= start < end <= section.period_s:
                    raise ValueError(f"{row['device']} from {start:g} to {end:g} s after {last:g} s")
                rows.setdefault(row["device"], []).append((start, end))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"cannot use {path}: {error}", "a CSV with device,start_s,end_s, each device's rows in order, in one period"
        ) from None
    if not rows:
        raise ConfigError(f"{path} has no rows", "a CSV with device,start_s,end_s")
    return rows


def live(device: DeviceHost, awake: Iterator[Spell] | None, first_at: float, on_change: Callable[[int], None]) -> None:
    """Let a device start at `first_at`, or at its first waking after that, and sleep and wake as `awake` says.

    `on_change` hears +1 as it wakes and -1 as it falls asleep.
    """
    world = device.world
    if awake is None:
        world.at(first_at, device.boot)
        on_change(1)
        return

    def wake(start: float, end: float) -> None:
        if device.boots:
            device.wake()
        else:
            device.boot()
        device.awake_s += end - start
        on_change(1)
        world.at(end, sleep)

    def sleep() -> None:
        device.sleep()
        on_change(-1)
        following()

    def following() -> None:
        start, end = next(awake)
        world.at(max(start, first_at), lambda: wake(start, end))

    following()
