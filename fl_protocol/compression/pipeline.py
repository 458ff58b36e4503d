"""From the plan's `codec` settings, which are data, to the compressor that they describe.

A device needs no new code for a new plan: it refuses what it does not know, by name.
"""

import re
from collections.abc import Mapping
from typing import Protocol

from numpy.random import Generator

from fl_protocol.compression.float16 import Float16
from fl_protocol.compression.none import Float32
from fl_protocol.compression.uq import DEFAULT_STEP, MAX_STEP, MIN_STEP, DeadZone
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import ModelLayout, Vector

_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,12})?")


class Compressor(Protocol):
    """Both halves of one codec, for deltas of one layout: float32, shape `(layout.num_parameters,)`."""

    @property
    def name(self) -> str:
        """As the plan's settings call it."""

    def compress(self, vector: Vector, rng: Generator, /) -> bytes:
        """A delta as bytes; `rng` is for codecs that round at random. Raises `ValueError` unless it is finite."""

    def decompress(self, payload: bytes) -> Vector:
        """What the bytes say, in memory bounded by the layout. Raises `ProtocolError(E_SCHEMA | E_SIZE | E_NAN)`."""


def make_compressor(settings: Mapping[str, str], layout: ModelLayout) -> Compressor:
    """The compressor of `settings`, e.g. `{"name": "uq", "step": "2.0"}`.

    Raises `ProtocolError(E_SCHEMA)` naming an unknown codec or parameter, or a value out of range.
    """
    left = dict(settings)
    compressor: Compressor
    match name := left.pop("name", ""):
        case "none":
            compressor = Float32(layout)
        case "float16":
            compressor = Float16(layout)
        case "uq":
            compressor = DeadZone(layout, _take_number(left, "step", DEFAULT_STEP, MIN_STEP, MAX_STEP))
        case _:
            raise ProtocolError(Code.SCHEMA, f"no codec is called {name!r:.80}")
    if left:
        raise ProtocolError(Code.SCHEMA, f"the codec {name} has no parameter {min(left)!r:.80}")
    return compressor


def _take_number(settings: dict[str, str], key: str, default: float, low: float, high: float) -> float:
    text = settings.pop(key, str(default))
    if not _NUMBER.fullmatch(text) or not low <= float(text) <= high:
        raise ProtocolError(Code.SCHEMA, f"{key} is a number from {low} to {high}, not {text!r:.80}")
    return float(text)
