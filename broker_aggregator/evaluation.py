"""A version measured on examples that the gateway holds; also what runs a bundle's graphs here."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from fl_protocol.tensors import Vector

BATCH = 256
MAX_EXAMPLES_BYTES = 1 << 30


def open_session(graph: bytes, threads: int = 1) -> Any:
    """An onnxruntime session on the processor, quiet, with little memory."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Examples:
    """Held-out examples of one `.npz`: `x`, shape (n, *x_shape), and `y`, shape (n, *y_shape)."""

    def __init__(self, path: Path, bundle: Bundle) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                x: NDArray[Any] = file["x"]
                y: NDArray[Any] = file["y"]
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{path} holds no examples: {type(error).__name__} {error}", "give an .npz with the arrays x and y"
            ) from None
        if x.shape[1:] != bundle.x_shape or y.shape[1:] != bundle.y_shape or len(x) != len(y) or not len(x):
            raise ConfigError(
                f"{path}: x {x.shape} and y {y.shape} are not examples of {bundle.name}",
                f"it wants x (n, {', '.join(map(str, bundle.x_shape))}) and y of the same n",
            )
        if x.nbytes > MAX_EXAMPLES_BYTES:
            raise ConfigError(f"{path}: {x.nbytes} bytes of examples", f"at most {MAX_EXAMPLES_BYTES} are held here")
        with np.errstate(over="ignore"):
            self.x = np.ascontiguousarray(x, bundle.x_dtype)
        self.y = np.ascontiguousarray(y, bundle.y_dtype)
        if not np.isfinite(self.x).all():
            raise ConfigError(f"{path}: x has values that are not finite float32", "leave those examples out")
        if bundle.labels and not ((self.y >= 0) & (self.y < len(bundle.labels))).all():
            raise ConfigError(
                f"{path}: y has labels outside 0..{len(bundle.labels) - 1}",
                f"{bundle.name} knows {', '.join(bundle.labels)}",
            )

    def __len__(self) -> int:
        return len(self.x)


class HeldOut(Protocol):
    """Examples side by side, as `Examples` has them."""

    @property
    def x(self) -> NDArray[Any]:
        """Shape (n, *x_shape)."""

    @property
    def y(self) -> NDArray[Any]:
        """Shape (n, *y_shape)."""

    def __len__(self) -> int: ...


class Evaluator:
    """Measures versions of one bundle on one set of examples."""

    def __init__(self, bundle: Bundle, examples: HeldOut) -> None:
        self._bundle, self._examples = bundle, examples
        self._session = open_session(bundle.graph("evaluate"))

    def measure(self, vector: Vector) -> tuple[float, float]:
        """(mean loss, share of correct examples) of a version, shape (layout.size,)."""
        tensors: Mapping[str, NDArray[Any]] = self._bundle.tensors(vector)
        loss = correct = 0.0
        for start in range(0, len(self._examples), BATCH):
            batch = slice(start, start + BATCH)
            feed = {**tensors, "x": self._examples.x[batch], "y": self._examples.y[batch]}
            loss_sum, hits = self._session.run(["loss_sum", "correct"], feed)
            loss += float(loss_sum)
            correct += float(hits)
        return loss / len(self._examples), correct / len(self._examples)
