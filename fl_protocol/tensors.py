"""`ModelLayout`: named tensors <-> one flat float32 vector, with a fingerprint.

A version of the model is one flat vector, shape `(layout.size,)`: all `parameter` entries in layout order, then all
`statistic` entries. `personal` and `optimizer` entries live on the device and are never part of it.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import Code, ProtocolError

Vector = NDArray[np.float32]  # a whole model or its delta, flat, shape (P,)
Role = Literal["parameter", "statistic", "personal", "optimizer"]

MAX_ENTRIES = 4096
MAX_RANK = 8
MAX_NAME = 128
MAX_ELEMENTS = 1 << 28  # 1 GiB of float32: far above any edge model, far below an overflow


@dataclass(frozen=True)
class SparseVector:
    """A vector of `size` values that are all zero but for those at `indices`, which strictly grow."""

    indices: NDArray[np.int64]
    values: NDArray[np.float32]
    size: int


@dataclass(frozen=True)
class TensorEntry:
    """One named float32 tensor of a model and what may be done with it."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelLayout:
    """The order, shapes and roles of a model's tensors.

    Raises `ProtocolError(E_SCHEMA)` on construction for duplicate names, unknown roles, or sizes out of bounds.
    """

    entries: tuple[TensorEntry, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.entries) <= MAX_ENTRIES:
            raise ProtocolError(Code.SCHEMA, f"a layout has 1..{MAX_ENTRIES} entries, not {len(self.entries)}")
        names = [entry.name for entry in self.entries]
        if len(set(names)) != len(names):
            raise ProtocolError(Code.SCHEMA, "a layout names one tensor twice")
        for entry in self.entries:
            if not 0 < len(entry.name) <= MAX_NAME or not entry.name.isascii():
                raise ProtocolError(
                    Code.SCHEMA, f"tensor name {entry.name!r:.80} is not 1..{MAX_NAME} ASCII characters"
                )
            if entry.role not in get_args(Role):
                raise ProtocolError(Code.SCHEMA, f"tensor {entry.name} has the unknown role {entry.role!r:.40}")
            if len(entry.shape) > MAX_RANK or any(not 0 < d <= MAX_ELEMENTS for d in entry.shape):
                raise ProtocolError(Code.SCHEMA, f"tensor {entry.name} has the impossible shape {entry.shape}")
        if sum(entry.size for entry in self.entries) > MAX_ELEMENTS:
            raise ProtocolError(Code.SCHEMA, f"a layout holds at most {MAX_ELEMENTS} elements")
        if not any(entry.role == "parameter" for entry in self.entries):
            raise ProtocolError(Code.SCHEMA, "a layout without a parameter has nothing to learn")

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, object]]) -> Self:
        """Build from the bundle manifest's JSON rows `{name, shape, role}`."""
        entries = []
        for row in rows:
            name, shape, role = row.get("name"), row.get("shape"), row.get("role")
            if not isinstance(name, str) or not isinstance(shape, list) or not isinstance(role, str):
                raise ProtocolError(Code.SCHEMA, "a layout row is {name: text, shape: [int], role: text}")
            if not all(type(d) is int for d in shape):
                raise ProtocolError(Code.SCHEMA, f"tensor {name!r:.80}: every dimension is a whole number")
            entries.append(TensorEntry(name, tuple(shape), role))  # type: ignore[arg-type]  # checked above
        return cls(tuple(entries))

    def to_rows(self) -> list[dict[str, object]]:
        """The inverse of `from_rows`."""
        return [{"name": e.name, "shape": list(e.shape), "role": e.role} for e in self.entries]

    def with_role(self, *roles: Role) -> tuple[TensorEntry, ...]:
        """Entries of the given roles, in layout order."""
        return tuple(e for e in self.entries if e.role in roles)

    @cached_property
    def shared(self) -> tuple[TensorEntry, ...]:
        """What a version consists of, in the vector's order: parameters, then statistics."""
        return self.with_role("parameter") + self.with_role("statistic")

    @cached_property
    def num_parameters(self) -> int:
        """P: elements that learn; a delta's length."""
        return sum(e.size for e in self.with_role("parameter"))

    @cached_property
    def num_statistics(self) -> int:
        """Elements that are measured, not learnt."""
        return sum(e.size for e in self.with_role("statistic"))

    @property
    def size(self) -> int:
        """Length of a version's vector."""
        return self.num_parameters + self.num_statistics

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that two layouts share exactly when they mean the same vector."""
        text = json.dumps([[e.name, list(e.shape), e.role] for e in self.entries], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def split(self, vector: Vector) -> dict[str, Vector]:
        """Views into `vector`, shape `(size,)`, by tensor name and in each tensor's shape."""
        return split_entries(self.shared, vector)

    def join(self, tensors: Mapping[str, NDArray[np.floating]]) -> Vector:
        """The inverse of `split`: a new vector; entries that are not shared are left out."""
        return join_entries(self.shared, tensors)

    def parameter_slices(self) -> list[tuple[TensorEntry, slice]]:
        """Where each parameter stands in a delta; codecs work tensor by tensor."""
        slices, start = [], 0
        for entry in self.with_role("parameter"):
            slices.append((entry, slice(start, start + entry.size)))
            start += entry.size
        return slices


def vector_bytes(vector: Vector) -> bytes:
    """A version as the object that its SHA-256 names: its float32 values, little-endian."""
    return vector.astype("<f4", copy=False).tobytes()


def split_entries(entries: Sequence[TensorEntry], vector: Vector) -> dict[str, Vector]:
    """Views into `vector`, which holds these entries one after the other, by name and in each one's shape."""
    total = sum(e.size for e in entries)
    if vector.shape != (total,):
        raise ValueError(f"the layout wants a vector of shape ({total},), not {vector.shape}")
    tensors, start = {}, 0
    for entry in entries:
        tensors[entry.name] = vector[start : start + entry.size].reshape(entry.shape)
        start += entry.size
    return tensors


def join_entries(entries: Sequence[TensorEntry], tensors: Mapping[str, NDArray[np.floating]]) -> Vector:
    """The inverse of `split_entries`: a new vector. Raises `ValueError` for a tensor of another shape."""
    flat = []
    for entry in entries:
        tensor = np.asarray(tensors[entry.name], np.float32)
        if tensor.shape != entry.shape:
            raise ValueError(f"tensor {entry.name} has shape {tensor.shape}, the layout wants {entry.shape}")
        flat.append(tensor.reshape(-1))
    return np.concatenate(flat) if flat else np.zeros(0, np.float32)
