"""Desired configuration: read, written to the disk as the last good one, put in force, told.

    twin/desired says revision 4 -> can it be? -> no: revision 3 stays, and `Reported.refused` says 4 and why
                                             -> yes: on the disk -> in force -> `Reported.revision` is 4

What is wanted stands above the device's own file, key by key; a key that is no longer wanted is as the file has it. A
start without a network begins with the last good one.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import msgspec

from edge_agent.budget import BudgetConfig
from edge_agent.commands import Configured
from edge_agent.events import Effect, Note, SaveConfigured, Send
from edge_agent.gate import GateConfig
from edge_agent.identity import Identity
from fl_protocol.adjustable import read_configuration
from fl_protocol.errors import Code, ConfigError
from fl_protocol.messages import Desired, Reported
from fl_protocol.topics import Kind

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """What the operator decides about the heart."""

    gate: GateConfig = field(default_factory=GateConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    predict_s: float = 10.0  # 0: never
    health_s: float = 30.0
    state_s: float = 10.0  # between two words of a device at work about what it is at
    measure_s: float = 10.0
    log_level: str = "info"


_FIELDS = {
    "inference.interval_s": "predict_s",
    "health.publish_s": "health_s",
    "health.state_s": "state_s",
    "health.measure_s": "measure_s",
    "log.level": "log_level",
}


def adjusted(settings: AgentSettings, configuration: Mapping[str, str]) -> AgentSettings:
    """The settings with the wanted configuration above them. Raises `ConfigError` naming key, value and mend."""
    values = read_configuration(configuration)
    sections: dict[str, dict[str, Any]] = {"gate": asdict(settings.gate), "budget": asdict(settings.budget)}
    others: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if key in _FIELDS:
            others[_FIELDS[key]] = value
        else:
            sections[section][name] = value
    gate, budget = _read(GateConfig, sections["gate"], "gate"), _read(BudgetConfig, sections["budget"], "budget")
    return replace(settings, gate=gate, budget=budget, **others)


def _read(cls: type[S], plain: dict[str, Any], section: str) -> S:
    try:
        return msgspec.convert(plain, cls)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"[{section}]: {error}", "see docs/operate.md for the keys that may be set from afar"
        ) from None


class Configuring:
    """`settings` are in force. `emit` takes the effects, `apply` is told of other settings than before."""

    def __init__(
        self,
        identity: Identity,
        own: AgentSettings,
        configured: Configured,
        emit: Callable[[Effect], None],
        apply: Callable[[AgentSettings], None],
    ) -> None:
        self._identity, self._own, self._emit, self._apply = identity, own, emit, apply
        self.settings = own
        self._good = Configured()
        self._saving: Configured | None = None
        self._refused: tuple[int, str] | None = None  # a revision, and why
        self._told: Reported | None = None  # on this connection
        try:
            self.settings, self._good = adjusted(own, configured.configuration), configured
            if configured.revision:
                self._note(configured, "the last good one")
        except ConfigError as error:  # this software knows less than the one that wrote it
            self._refuse(configured.revision, error)

    def connected(self) -> None:
        """The broker may have lost what was told."""
        self._told = None

    def take_desired(self, desired: Desired | None) -> None:
        """What the gateway wants, if it says so; told once a connection and change."""
        if desired is None or desired.configuration is None or desired.revision is None:
            return
        wanted = Configured(desired.revision, desired.configuration)
        if wanted in (self._good, self._saving):
            if self._saving is None:
                self._refused = None
                self._report()
            return
        if self._refused and self._refused[0] == wanted.revision:
            self._report()
            return
        try:
            adjusted(self._own, wanted.configuration)
        except ConfigError as error:
            self._refuse(wanted.revision, error)
            self._report()
            return
        self._saving = wanted
        self._emit(SaveConfigured(wanted))

    def saved(self, configured: Configured) -> None:
        """It is on the disk: it is in force."""
        if configured != self._saving:
            return
        self._good, self._saving, self._refused = configured, None, None
        self.settings = adjusted(self._own, configured.configuration)
        self._apply(self.settings)
        self._note(configured, "from the gateway")
        self._report()

    def _note(self, configured: Configured, whence: str) -> None:
        said = ", ".join(f"{key} = {text}" for key, text in sorted(configured.configuration.items()))
        text = f"configuration {configured.revision}, {whence}: {said or 'as the own file has it'}"
        self._emit(Note("info", text))

    def _refuse(self, revision: int, error: ConfigError) -> None:
        self._refused = revision, f"{error.message}: {error.hint}"[:400]
        self._emit(Note("error", f"configuration {revision} is refused, the last good one stays: {error.message}"))

    def _report(self) -> None:
        refused, why = self._refused or (None, "")
        reported = Reported(
            revision=self._good.revision,
            configuration=dict(self._good.configuration),
            refused=refused,
            code=Code.SCHEMA if refused is not None else "",
            why=why,
        )
        if reported != self._told:
            self._told = reported
            self._emit(Send(self._identity.topic(Kind.REPORTED), reported, retain=True))
