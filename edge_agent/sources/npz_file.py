"""Examples from an `.npz` file; the sizes in its headers are believed only as far as the memory allows."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edge_agent.sources import Examples, InputSpec
from edge_agent.sources.checks import ExampleError, checked, too_large
from fl_protocol.errors import ConfigError


def read_npz(file: Path, spec: InputSpec, label: str, left: int) -> Examples:  # noqa: ARG001
    """The arrays x and y of `file`, at most `left` bytes of memory. Raises `ConfigError`."""
    try:
        with zipfile.ZipFile(file) as archive:
            x = _read_array(file, archive, "x", left)
            y = _read_array(file, archive, "y", left - x.nbytes)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise ExampleError(
            f"{file} is not a readable .npz file: {error}",
            "write it with numpy.savez(file, x=..., y=...)",
            told=f"{file} is not a readable .npz file",
        ) from None
    return checked(file, x, y, spec)


def _read_array(file: Path, archive: zipfile.ZipFile, name: str, left: int) -> NDArray[Any]:
    if f"{name}.npy" not in archive.namelist():
        raise ConfigError(f"{file} has no array {name}", "write it with numpy.savez(file, x=..., y=...)")
    with archive.open(f"{name}.npy") as stream:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.kind not in "fiub":
            raise ConfigError(f"{file}: {name} is of type {dtype}", "save plain numbers")
        size = math.prod(shape) * dtype.itemsize
        if size > left:
            raise too_large(file, size, left)
    with archive.open(f"{name}.npy") as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))
