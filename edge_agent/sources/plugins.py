"""Sources that other packages bring: entry points of the group `anabranch.sources`, loaded only when configured.

    [project.entry-points."anabranch.sources"]
    opcua = "my_package.opcua:open_source"

`open_source(options, state_dir)` gets the table `[data.options]` and the device's directory, and gives a `Source`.
"""

import importlib.metadata
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.sources import Dataset, InputSpec, Source
from edge_agent.sources.checks import checked
from fl_protocol.errors import ConfigError

GROUP = "anabranch.sources"
log = logging.getLogger("edge_agent")


class PluginSource:
    """Somebody else's source, held to what ours are held to: its arrays are checked, and its words stay in the log.

    What it says of an example may quote it; so what leaves the device says only that there is something to mend.
    """

    def __init__(self, name: str, source: Source) -> None:
        self._name, self._source = name, source

    def load(self, spec: InputSpec) -> Dataset:
        """Its examples. Raises `ConfigError` for whatever it raises."""
        try:
            dataset = self._source.load(spec)
            place = Path(self._name)
            train, held_out = (checked(place, part.x, part.y, spec) for part in (dataset.train, dataset.validation))
            newest = checked(place, dataset.newest, train.y[:1], spec).x
        except Exception as error:  # a plug-in's bug must not end the device
            log.warning("source %s: %r", self._name, error, exc_info=not isinstance(error, ConfigError))
            raise ConfigError(f"the source {self._name!r} gives no examples", "the device's own log says why") from None
        if not len(train):
            raise ConfigError(f"the source {self._name!r} has nothing to train on", "the device's own log says more")
        return Dataset(train, held_out, newest)

    def summary(self) -> str:
        """Whose examples these are."""
        return f"the source {self._name!r}"


def open_plugin(name: str, options: Mapping[str, Any], state_dir: Path) -> PluginSource:
    """The source of that name. Raises `ConfigError` for one that is not installed, or does not open."""
    found = importlib.metadata.entry_points(group=GROUP)
    if name not in found.names:
        known = ", ".join(sorted({"folder", "ring", *found.names}))
        raise ConfigError(f"data.source is {name!r}, and no such source is installed", f"installed are: {known}")
    try:
        return PluginSource(name, found[name].load()(options, state_dir))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the source {name!r} does not open: {type(error).__name__}: {error}",
            "mend [data.options], or the package that brings it",
        ) from error
