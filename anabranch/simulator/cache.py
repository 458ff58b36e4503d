"""Training results on disk, by their content: a run that is repeated need not compute again what it computed before.

Exact: the name of a result is a hash of everything that its bits depend on (see `learning.content`), so what is found
is what would be computed, on the same machine and versions of numpy and onnxruntime.
"""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from edge_agent.training import TrainingResult
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError

FORMAT = 1
VECTORS = ("parameters", "statistics", "personal")
NUMBERS = ("num_examples", "local_steps", "train_seconds")


class ResultCache:
    """A folder of results. Raises `ConfigError` for one that cannot be made."""

    def __init__(self, folder: Path) -> None:
        versions = "-".join((platform.machine(), version("numpy"), version("onnxruntime")))
        self._folder = folder / f"{FORMAT}-{versions}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot use the cache {folder}: {error.strerror}", "name another with --cache") from None

    def get(self, name: str) -> TrainingResult | None:
        """The result of that name; None where there is none, or a damaged one."""
        try:
            plain = msgpack.unpackb((self._folder / name).read_bytes())
            vectors: dict[str, Any] = {
                name: np.frombuffer(plain.pop(name), "<f4").astype(np.float32) for name in VECTORS
            }
            return TrainingResult(**vectors, **plain)
        except (OSError, ValueError, KeyError, TypeError, msgpack.UnpackException):
            return None

    def put(self, name: str, result: TrainingResult) -> None:
        """Keep a result. Raises `OSError`."""
        plain = {name: getattr(result, name).astype("<f4").tobytes() for name in VECTORS}
        plain |= {name: getattr(result, name) for name in NUMBERS}
        plain["metrics"] = dict(result.metrics)
        write_durably(self._folder / name, msgpack.packb(plain))
