"""From the plan's `codec` settings, which are data, to the compressor that they describe.

A device needs no new code for a new plan: it refuses what it does not know, by name. A codec turns a vector into
symbols and scales; its `coder` (coders.py), where it has one, turns symbols into bytes.
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol, Self

from numpy.random import Generator

from fl_protocol.compression.eden import Eden
from fl_protocol.compression.float16 import Float16
from fl_protocol.compression.none import Float32
from fl_protocol.compression.powersgd import PowerSgd
from fl_protocol.compression.qsgd import Qsgd
from fl_protocol.compression.randomk import RandomK
from fl_protocol.compression.sign import Sign
from fl_protocol.compression.ternary import Ternary
from fl_protocol.compression.threshold import Threshold
from fl_protocol.compression.topk import TopK
from fl_protocol.compression.uq import DeadZone
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, SparseVector, Vector


class Compressor(Protocol):
    """Both halves of one codec, for deltas of one layout: float32, shape `(layout.num_parameters,)`."""

    @property
    def name(self) -> str:
        """As the plan's settings call it."""

    def compress(self, vector: Vector, rng: Generator, /) -> bytes:
        """A delta as bytes; `rng` is for codecs that round at random. Raises `ValueError` unless it is finite."""

    def decompress(self, payload: bytes) -> Vector:
        """What the bytes say, in memory bounded by the layout. Raises `ProtocolError(E_SCHEMA | E_SIZE | E_NAN)`."""

    def decompress_sparse(self, payload: bytes) -> SparseVector | None:
        """The same without its zeros, in about the time and memory that the rest takes. Made dense it is, bit for bit,
        what `decompress` returns. None: there is no shorter form, or too few zeros; `decompress` reads the payload.
        """


class Codec(Compressor, Protocol):
    """A compressor's class: how settings make one, and settings that do."""

    example: ClassVar[dict[str, str]]

    @classmethod
    def make(cls, layout: ModelLayout, parameters: Parameters, max_bytes: int | None) -> Self:
        """One of `parameters`, all of which it reads. Raises `ProtocolError(E_SCHEMA)`."""


_ALL: tuple[type[Codec], ...] = (
    Float32,
    Float16,
    DeadZone,
    Qsgd,
    Ternary,
    Sign,
    TopK,
    Threshold,
    RandomK,
    Eden,
    PowerSgd,
)
CODECS: Mapping[str, type[Codec]] = {codec.example["name"]: codec for codec in _ALL}


def make_compressor(settings: Mapping[str, str], layout: ModelLayout, max_bytes: int | None = None) -> Compressor:
    """The compressor of `settings`, e.g. `{"name": "uq", "step": "2.0"}`.

    A device that has only `max_bytes` for an update says so: `uq` keeps to it as far as its range allows, the others
    have but one rate. The reader needs not know. Raises `ProtocolError(E_SCHEMA)` naming an unknown codec or parameter,
    or a value out of range.
    """
    parameters = Parameters(settings)
    codec = CODECS.get(parameters.name)
    if codec is None:
        raise ProtocolError(Code.SCHEMA, f"no codec is called {parameters.name!r:.80}")
    compressor = codec.make(layout, parameters, max_bytes)
    parameters.finish()
    return compressor
