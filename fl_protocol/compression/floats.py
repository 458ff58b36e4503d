"""IEEE numbers as little-endian bytes, checked on the way in and on the way out."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import Vector

Format = Literal["<f4", "<f2"]


def finite(vector: Vector, size: int) -> Vector:
    """`vector` as it is. Raises `ValueError` unless its shape is `(size,)` and every element a finite float32."""
    if vector.shape != (size,) or vector.dtype != np.float32:
        raise ValueError(f"wanted float32 of shape ({size},), not {vector.dtype} of shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError("a vector with NaN or infinity is never sent")
    return vector


def encode_floats(vector: Vector, to: Format) -> bytes:
    """Finite values in the format `to`, nearest even; what is too large for it becomes its largest."""
    largest = float(np.finfo(to).max)
    return np.clip(vector, -largest, largest).astype(to).tobytes()


def decode_floats(payload: bytes | memoryview, of: Format, size: int) -> Vector:
    """The inverse: float32, shape `(size,)`. Raises `ProtocolError(E_SIZE | E_NAN)`."""
    expected = size * np.dtype(of).itemsize
    if len(payload) != expected:
        raise ProtocolError(Code.SIZE, f"{size} numbers take {expected} bytes; {len(payload)} came")
    numbers: NDArray[np.floating] = np.frombuffer(payload, of)
    if not np.isfinite(numbers).all():
        raise ProtocolError(Code.NAN, "a payload holds NaN or infinity")
    return numbers.astype(np.float32)
