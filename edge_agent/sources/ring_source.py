"""Examples from the ring. The last tenth, in time order, is held out for the device's own report, as for a folder."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.ring import Ring
from edge_agent.ring_files import Held
from edge_agent.sources import Dataset, InputSpec
from edge_agent.sources.checks import checked
from fl_protocol.errors import ConfigError


class RingSource:
    """A ring; what it held is kept in memory, at most `max_bytes` of the newest, and read again when it changed.

    `forget` may be called from any thread; `erase` is what it does, the ring's own `forget` unless given.
    """

    def __init__(self, ring: Ring, max_bytes: int = 64 << 20, erase: Callable[[], Held] | None = None) -> None:
        self._ring, self._max_bytes, self._erase = ring, max_bytes, erase or ring.forget
        self._lock = threading.Lock()
        self._stamp: object = None
        self._dataset: Dataset | None = None

    def load(self, spec: InputSpec) -> Dataset:
        """The ring's examples. Raises `ConfigError` where there is none, or none that fits the model."""
        check_shape(self._ring.directory, self._ring.form.shape, spec)
        with self._lock:
            stamp = spec, self._ring.generation
            if self._dataset is None or stamp != self._stamp:
                self._dataset = None  # the old examples go before the new ones come: one copy in memory
                self._dataset = self._read(spec)
                self._stamp = stamp
            return self._dataset

    def newest(self, spec: InputSpec) -> NDArray[Any]:
        """The last window that sensors made, labelled or not; else the last example. Raises as `load` does."""
        check_shape(self._ring.directory, self._ring.form.shape, spec)
        seen = self._ring.newest
        return self.load(spec).newest if seen is None else seen.reshape(1, *spec.x_shape).astype(spec.x_dtype)

    def summary(self) -> str:
        """How much there is on the disk."""
        return describe_ring(self._ring.directory, self._ring.held())

    def forget(self) -> Held:
        """Erase all examples: on the disk, in the ring's memory and in this source's; what there was is returned.

        A training that is under way goes on with its own copy, and ends as always. Raises `ConfigError` for a disk
        that cannot be used; the next start then ends what was begun.
        """
        with self._lock:
            self._dataset = None
            return self._erase()

    def _read(self, spec: InputSpec) -> Dataset:
        x, y = self._ring.read(self._max_bytes)
        if not len(x):
            raise ConfigError(
                f"the ring {self._ring.directory} holds no example yet",
                "they come from [sensors]: `edge-agent data show` says what was heard, and what came of it",
            )
        if np.dtype(spec.y_dtype).kind in "iu":
            y = y.round()
        all_of_it = checked(
            self._ring.directory,
            x.reshape(len(x), *spec.x_shape),
            y.astype(spec.y_dtype).reshape(len(y), *spec.y_shape),
            spec,
        )
        last_tenth = len(all_of_it) - len(all_of_it) // 10
        return Dataset(all_of_it[:last_tenth], all_of_it[last_tenth:], all_of_it.x[-1:].copy())


def check_shape(directory: Path, shape: tuple[int, ...], spec: InputSpec) -> None:
    """Raises `ConfigError` for a ring that does not fit the model: dimensions of 1 do not matter, nor flattening."""
    wanted, has = ([n for n in s if n != 1] for s in (spec.x_shape, shape))
    if wanted != has and not (len(wanted) == 1 and wanted[0] == np.prod(has)):
        raise ConfigError(
            f"the ring {directory} has examples of shape {shape}; the model wants {spec.x_shape}",
            "set channels, `count` or `samples`, and `order` in [sensors] as the model's description says",
        )
    if np.prod(spec.y_shape) != 1:
        raise ConfigError(
            f"the ring {directory} has one label to an example; the model wants {spec.y_shape}",
            "take a model with one label, or another source",
        )


def describe_ring(directory: Path, held: Held) -> str:
    """For people."""
    return f"{directory} holds {held.examples} examples, {held.num_bytes / 2**20:.1f} MB in {held.segments} segments"
