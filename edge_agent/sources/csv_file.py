"""Examples from a `.csv` file: one example a row, its features in the model's order, its label in a named column."""

import csv
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.sources import Examples, InputSpec
from edge_agent.sources.checks import ExampleError, checked, too_large
from fl_protocol.errors import ConfigError


def read_csv(file: Path, spec: InputSpec, label: str, left: int) -> Examples:
    """The rows of `file`, at most `left` bytes of memory; a first row of names is optional. Raises `ConfigError`."""
    if math.prod(spec.y_shape) != 1:
        raise ConfigError(f"{file}: a row has one label; the model wants {spec.y_shape}", "save the examples as .npz")
    features, labels = array("f"), array("d")
    width = math.prod(spec.x_shape)
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = enumerate(csv.reader(stream, strict=True), start=1)
            names, column, first = _header(file, rows, label)
            for number, row in _chain(first, rows):
                if not row:
                    continue
                if len(row) != width + 1:
                    raise ConfigError(
                        f"{file}, row {number}: {len(row)} columns; the model wants {width} features and a label",
                        f"write the {width} values of an example of shape {spec.x_shape} in one row",
                    )
                at = column % len(row)
                for i, cell in enumerate(row):
                    if i != at:
                        features.append(_value(cell, _Where(file, number, i, names)))
                labels.append(_label(row[at], spec, _Where(file, number, at, names)))
                if len(features) * features.itemsize + len(labels) * labels.itemsize > left:
                    raise too_large(file, len(features) * features.itemsize, left)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExampleError(
            f"{file} is not a readable .csv file: {error}",
            "write UTF-8 text, comma-separated",
            told=f"{file} is not a readable .csv file",
        ) from None
    x = np.frombuffer(features, np.float32).reshape(-1, *spec.x_shape)
    y = np.frombuffer(labels, np.float64).reshape(-1, *spec.y_shape)
    return checked(file, x, y.astype(spec.y_dtype), spec)


_Row = tuple[int, list[str]]


def _header(file: Path, rows: Iterator[_Row], label: str) -> tuple[list[str], int, _Row | None]:
    """Column names, the label's column, and the first row if it was an example already."""
    first = next(rows, None)
    names = [] if first is None or all(map(_is_number, first[1][:-1])) else first[1]
    if not label:
        return names, -1, None if names else first
    if label not in names:
        raise ExampleError(
            f"{file} has no column {label!r}",
            f"`label` in [data] names one of: {', '.join(names)[:200]}" if names else "its first row holds no names",
            told=f"{file} has no column {label!r}",
        )
    return names, names.index(label), None


def _chain(first: _Row | None, rows: Iterator[_Row]) -> Iterator[_Row]:
    if first is not None:
        yield first
    yield from rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class _Where:
    """A cell. Its column's name is a cell too, of a first row that may have been an example."""

    file: Path
    row: int
    column: int  # from 0
    names: list[str]

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, column {self.names[self.column] if self.names else self.column + 1}"

    def complaint(self, cell: str, what: str, hint: str) -> ExampleError:
        """Raise this: what is wrong with the cell."""
        told = f"{self.file}, row {self.row}, column {self.column + 1}: {what}"
        return ExampleError(f"{self}: {cell!r:.40} is {what}", hint, told)


def _value(cell: str, where: _Where) -> float:
    if not _is_number(cell):
        raise where.complaint(cell, "not a number", "mend the cell, or leave the row out")
    return float(cell)


def _label(cell: str, spec: InputSpec, where: _Where) -> float:
    """A label by its name, or by its number."""
    if cell.strip() in spec.labels:
        return float(spec.labels.index(cell.strip()))
    value = _value(cell, where)
    if spec.labels and not value.is_integer():
        raise where.complaint(cell, "no label", f"labels are {', '.join(spec.labels)[:200]}")
    return value
