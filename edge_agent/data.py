"""The `[data]` section as a source, with the ring and the sensors that fill it where it asks for those."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge_agent.config import AgentConfig
from edge_agent.ring import Ring
from edge_agent.ring_files import look
from edge_agent.sensors import Sensors
from edge_agent.sources import InputSpec, Source
from edge_agent.sources.folder import FolderSource
from edge_agent.sources.plugins import open_plugin
from edge_agent.sources.ring_source import RingSource, check_shape, describe_ring
from edge_agent.windows import Windows
from fl_protocol.connecting import transport_to
from fl_protocol.errors import ConfigError


class DescribedSource(Source, Protocol):
    """A source that says what it has."""

    def summary(self) -> str:
        """How much there is, without reading it. Raises `ConfigError` where there is nothing."""


@dataclass(frozen=True)
class Data:
    """Where examples come from. With a ring, `forget` erases them, from any thread: `RingSource.forget`."""

    source: DescribedSource
    sensors: Sensors | None = None

    @property
    def forgettable(self) -> RingSource | None:
        """The source that can erase its examples; None for a folder or a plug-in's place, which are not ours."""
        return self.source if isinstance(self.source, RingSource) else None

    def start(self) -> None:
        """Begin to listen to sensors."""
        if self.sensors:
            self.sensors.start()

    def close(self) -> None:
        """Stop, and put on the disk what waits. Raises what ended the sensors' thread."""
        if self.sensors:
            self.sensors.close()


def ring_directory(config: AgentConfig) -> Path:
    """Where the ring lies."""
    return config.data.path or config.device.state_dir / "ring"


def open_data(config: AgentConfig, failed: Callable[[], None] = lambda: None) -> Data:
    """What `[data]` names, not yet started; `failed` is called when the sensors' thread ends by itself.

    Raises `ConfigError`.
    """
    data = config.data
    if data.source == "folder":
        assert data.path is not None, "load_config saw to it"
        return Data(FolderSource(data.path, data.label, data.max_bytes))
    if data.source != "ring":
        return Data(open_plugin(data.source, data.options, config.device.state_dir))
    directory = ring_directory(config)
    ring = Ring(directory, config.sensors.form, config.ring)
    directory.chmod(0o700)
    broker = config.sensors.broker
    sensors = Sensors(
        Windows(config.sensors),
        ring,
        transport_to(broker, f"{config.device.fleet}.{config.device.id}.sensors", session_expiry_s=0),
        broker="the sensors' broker at {}:{}".format(*broker.address),
        failed=failed,
    )
    return Data(RingSource(ring, data.max_bytes, sensors.forget), sensors)


def look_at_data(config: AgentConfig, spec: InputSpec | None, name: str = "the bundle") -> str:
    """What there is, held against what a bundle asks for if that is given; changes nothing. Raises `ConfigError`."""
    if config.data.source == "ring":
        directory = ring_directory(config)
        held = look(directory)
        if spec is not None:
            check_shape(directory, config.sensors.form.shape, spec)
            return f"{describe_ring(directory, held)}; they fit {name}"
        return describe_ring(directory, held)
    source = open_data(config).source
    if spec is None:
        return source.summary()
    dataset = source.load(spec)
    return f"{len(dataset.train)} examples to train on, {len(dataset.validation)} held out; they fit {name}"


def no_ring(config: AgentConfig) -> ConfigError:
    """The complaint of a command about the ring where there is none."""
    return ConfigError(
        f'data.source is "{config.data.source}": there is no ring', 'only the examples of `source = "ring"` are ours'
    )
