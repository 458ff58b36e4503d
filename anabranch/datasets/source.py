"""Where a public data set comes from, how its files become the ones that we read, and how we know that they are.

Facts and pure functions: whoever fetches (`python -m models data NAME`) brings the network and the disk.
"""

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fl_protocol.errors import ConfigError

DATASETS = "ANABRANCH_DATASETS"
_DEFAULT_FOLDER = "../shared/datasets"


class Origin(Protocol):
    """The files of an archive or of a folder."""

    def read(self, pattern: str) -> bytes:
        """The one file whose path ends with `pattern` (`*` within a name). Raises `ConfigError`: none, or several."""
        ...


@dataclass(frozen=True)
class Source:
    """A public data set: `urls` to fetch, of at most `max_bytes` each; `convert` makes of them what `files` names.

    `files`: path below the folder of data sets -> SHA-256 (see `digest`). `convert` raises `ConfigError` or
    `ValueError` for what is not in the original's format.
    """

    urls: tuple[str, ...]
    max_bytes: int
    files: Mapping[str, str]
    convert: Callable[[Origin], Mapping[str, bytes]]


def datasets_folder() -> Path:
    """$ANABRANCH_DATASETS, by default `../shared/datasets`."""
    return Path(os.environ.get(DATASETS) or _DEFAULT_FOLDER)


def dataset_file(name: str, path: str) -> Path:
    """A file of the data set `name` that does not ship with us. Raises `ConfigError` that says how to get it."""
    file = datasets_folder() / path
    if not file.is_file():
        raise ConfigError(
            f"there is no {file}", f"python -m models data {name}   fetches it into ${DATASETS} (or that default)"
        )
    return file


def digest(path: str, data: bytes) -> str:
    """SHA-256, hexadecimal: of a file's bytes; of an .npz what is in its arrays, however they are compressed.

    Raises `ValueError`, `KeyError`, `EOFError` or `zipfile.BadZipFile` for an .npz that is none.
    """
    if not path.endswith(".npz"):
        return hashlib.sha256(data).hexdigest()
    whole = hashlib.sha256()
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            array = np.ascontiguousarray(arrays[name])
            whole.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            whole.update(array.tobytes())
    return whole.hexdigest()


def npz(**arrays: Any) -> bytes:
    """An .npz in memory, compressed."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def unchanged(paths: Mapping[str, str]) -> Callable[[Origin], dict[str, bytes]]:
    """A conversion of files that are read as they are published: our path -> the pattern of theirs."""
    return lambda origin: {path: origin.read(pattern) for path, pattern in paths.items()}
