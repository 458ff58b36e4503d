"""Examples from a folder of `.npz` (arrays x and y) or `.csv` files (one example a row), read in order of their names.

Files whose name starts with `validation` are held out for the device's own report; without one the last tenth is,
in time order, since the rows of a sensor resemble their neighbours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.sources import Dataset, Examples, InputSpec
from edge_agent.sources.csv_file import read_csv
from edge_agent.sources.npz_file import read_npz
from fl_protocol.errors import ConfigError

MAX_FILES = 10_000
_Read = Callable[[Path, InputSpec, str, int], Examples]  # file, what is asked, label column, bytes that are left
_READERS: dict[str, _Read] = {".npz": read_npz, ".csv": read_csv}


@dataclass
class FolderSource:
    """A folder; what it held is kept in memory, at most `max_bytes`, and read again only when a file changed."""

    path: Path
    label: str = ""  # the label's column in CSV files; the last one unless named
    max_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        self._stamp: object = None
        self._dataset: Dataset | None = None

    def load(self, spec: InputSpec) -> Dataset:
        """The folder's examples. Raises `ConfigError` naming file, row or column, and the mend."""
        files = self._files()
        stamp = (spec, [_stamp(f) for f in files])
        if self._dataset is None or stamp != self._stamp:
            self._dataset = None  # the old examples go before the new ones come: one copy in memory
            self._dataset = self._read(files, spec)
            self._stamp = stamp
        return self._dataset

    def summary(self) -> str:
        """How much there is, without reading it. Raises `ConfigError` where there is nothing."""
        sizes = [size for _, size, _ in map(_stamp, self._files())]
        return f"{self.path} holds {len(sizes)} files, {sum(sizes) / 2**20:.1f} MB"

    def _files(self) -> list[Path]:
        try:
            files = sorted(f for f in self.path.iterdir() if f.suffix in _READERS and not f.name.startswith("."))
        except OSError as error:
            raise ConfigError(
                f"cannot read the data folder {self.path}: {error.strerror}",
                "create it, or point `path` in [data] to the folder with this device's examples",
            ) from None
        if not files:
            raise ConfigError(
                f"the data folder {self.path} holds no .npz and no .csv file",
                "put examples there (.npz with arrays x and y, or .csv); it is looked at again every minute",
            )
        if len(files) > MAX_FILES:
            raise ConfigError(
                f"the data folder {self.path} holds {len(files)} files; at most {MAX_FILES} are read",
                "join some, or move old ones away",
            )
        return files

    def _read(self, files: list[Path], spec: InputSpec) -> Dataset:
        held_out = [f for f in files if f.name.startswith("validation")]
        parts = {f: part for f, part in self._within_budget(files, spec) if len(part)}
        if not any(f not in held_out for f in parts):
            raise ConfigError(
                f"the data folder {self.path} has nothing to train on",
                "all of its files are empty or named `validation...`; add examples",
            )
        train = Examples.concatenate([part for f, part in parts.items() if f not in held_out])
        newest = train.x[-1:].copy()
        if any(f in held_out for f in parts):
            validation = Examples.concatenate([part for f, part in parts.items() if f in held_out])
        else:
            last_tenth = len(train) - len(train) // 10
            train, validation = train[:last_tenth], train[last_tenth:]
        return Dataset(train, validation, newest)

    def _within_budget(self, files: list[Path], spec: InputSpec) -> Iterator[tuple[Path, Examples]]:
        left = self.max_bytes
        for file in files:
            part = _READERS[file.suffix](file, spec, self.label, left)
            left -= part.x.nbytes + part.y.nbytes
            yield file, part


def _stamp(file: Path) -> tuple[str, int, int]:
    """What tells a changed file; one that vanished since it was listed is told by the reader."""
    try:
        stat = file.stat()
    except OSError:
        return file.name, -1, -1
    return file.name, stat.st_size, stat.st_mtime_ns
