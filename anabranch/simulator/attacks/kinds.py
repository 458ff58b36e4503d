"""The attacks by name, with the settings that each has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_protocol.errors import ConfigError

if TYPE_CHECKING:
    from anabranch.simulator.experiment import AttackSection

Level = Literal["result", "examples", "colluding", "protocol"]


@dataclass(frozen=True)
class Kind:
    """What an attack works on, and its settings with their defaults; a `scale` of None follows from the fleet."""

    level: Level
    settings: Mapping[str, float | None]


KINDS: Mapping[str, Kind] = {
    "sign-flip": Kind("result", {"scale": 1.0}),
    "scaled": Kind("result", {"scale": 10.0}),
    "noise": Kind("result", {"scale": 1.0}),
    "free-ride": Kind("result", {}),
    "label-flip": Kind("examples", {"scale": 1.0}),
    "backdoor": Kind("examples", {"scale": 5.0, "target": 0, "poisoned": 0.5}),
    "alie": Kind("colluding", {"scale": None}),
    "ipm": Kind("colluding", {"scale": 0.6}),
    "min-max": Kind("colluding", {}),
    "just-inside": Kind("colluding", {"scale": 1.8}),
    "nan": Kind("protocol", {}),
    "replay": Kind("protocol", {"scale": 3.0, "every_s": 5.0}),
    "base-version": Kind("protocol", {"scale": 3.0}),
    "flooding": Kind("protocol", {"scale": 3.0, "every_s": 0.5}),
}
SETTINGS = ("scale", "target", "poisoned", "every_s")


@dataclass(frozen=True)
class Terms:
    """An attack with its settings: `scale` times what was learnt, or None: as the fleet has it.

    `target` is the label that a backdoor is to give, `poisoned` the share of a device's examples that teach it;
    `every_s` (s) is the time between two updates that nobody asked for, infinity: there are none.
    """

    kind: str
    scale: float | None = 1.0
    target: int = 0
    poisoned: float = 0.0
    every_s: float = float("inf")

    @property
    def level(self) -> Level:
        """What the attack works on."""
        return KINDS[self.kind].level


def read_terms(section: "AttackSection", where: str = "attacks") -> Terms:
    """A section's attack, with its own defaults. Raises `ConfigError` for another name, or a setting it has not."""
    known = KINDS.get(section.kind)
    if known is None:
        raise ConfigError(f"{where}.kind: there is no attack {section.kind!r}", f"one of: {', '.join(KINDS)}")
    given = {name: value for name in SETTINGS if (value := getattr(section, name)) is not None}
    for name, value in given.items():
        if name not in known.settings:
            has = ", ".join(known.settings) or "no setting"
            raise ConfigError(f"{where}.{name} = {value:g}, but {section.kind} has {has}", f"leave out `{name}`")
    settings = {**known.settings, **given}
    if "target" in settings:
        settings["target"] = int(settings["target"] or 0)
    return Terms(section.kind, **settings)
