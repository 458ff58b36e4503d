"""`uq`: a uniform quantiser with a dead zone, then entropy coding; 0.1 to 2 bits a parameter.

Tensor by tensor, with s = step * rms(a):  q = sign(a) floor(|a| / s + 0.33), and what arrives is q s. Values below
0.67 s become zero, which costs almost no bits; error feedback brings them in a later update. Biased; contracts.
Tensors of fewer than 256 elements (biases, scales) have a step `fine` times finer: they are few, and sensitive.

    scales (scales.py), a byte a tensor · symbols, by `coder`: the large tensors' in a row, the small ones' in another

With `bits`, or a device's `max_bytes`, `step` is the finest that may be: each update takes the one that fits (rate.py).

Source: the measurements in `algorithms.md`, section 2, where it was the best of thirty. Added here: s is at most
max|a|, so that something always arrives: |a - q s|^2 <= (1 - 0.75/n) |a|^2, the contraction that error feedback rests
on (Stich et al. 2018). Without it a tensor of equal magnitudes would never be sent from step 1.5 up, and in 800 updates
of one steady Gaussian delta at step 3 the residual grew to 240 times its norm; with it, to 3 (to 1.4 at step 2).

That puts a floor under the bytes, since what error feedback leaves has a flat top: deltas of har_cnn took 150 to 650
bytes from step 4 up, whatever the step. Where bytes are bounded the dead zone therefore goes on growing with a step
beyond max|a|, from 0.67 max|a| to (1 - 0.33 max|a| / (step rms)) max|a|, and the step to 128: those deltas fit into 90.
"""

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import ClassVar, Self

import numpy as np
from numpy.random import Generator

from fl_protocol.compression import rice
from fl_protocol.compression.coders import Coder
from fl_protocol.compression.floats import finite
from fl_protocol.compression.grid import bounded, cut
from fl_protocol.compression.rate import Floats, Histogram, fit
from fl_protocol.compression.rice import MAX_MAGNITUDE
from fl_protocol.compression.scales import TINY, decode_scales, encode_scales, num_bytes
from fl_protocol.compression.sparse import worth
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, SparseVector, Vector

ROUNDING = np.float32(0.33)
SMALL = 256  # elements; a tensor below that has a finer step
DEFAULT_STEP, MIN_STEP, MAX_STEP = 1.0, 0.5, 8.0
MAX_FITTED_STEP = 128.0  # where bytes are bounded
DEFAULT_FINE, MAX_FINE = 4.0, 16.0
MIN_BITS, MAX_BITS = 0.01, 32.0
BELOW = 0.96  # of the wanted scale, so that the nearest one has its own edge within the wanted dead zone


class DeadZone:
    """The default codec. `step` is in units of a tensor's root mean square: larger means fewer bytes and more loss."""

    name = "uq"
    example: ClassVar = {"name": "uq", "step": "2.0"}

    def __init__(
        self,
        layout: ModelLayout,
        step: float = DEFAULT_STEP,
        fine: float = DEFAULT_FINE,
        max_bytes: int | None = None,
        coder: str = "rice",
    ) -> None:
        self._step = step
        self._max_bytes = max_bytes
        self._coder = Coder(coder, -MAX_MAGNITUDE, MAX_MAGNITUDE)
        self._size = layout.num_parameters
        sliced = layout.parameter_slices()
        self._tensors = [where for _, where in sliced]
        self._finer = np.array([1.0 if entry.size >= SMALL else fine for entry, _ in sliced])
        large = [entry.size >= SMALL for entry, _ in sliced]
        self._groups = [[i for i, is_large in enumerate(large) if is_large == wanted] for wanted in (True, False)]
        self._places = [_side_by_side([sliced[i][0].size for i in group]) for group in self._groups]
        self._sizes = [places[-1].stop if places else 0 for places in self._places]
        self._starts = [np.array([place.start for place in places], np.int64) for places in self._places]

    @classmethod
    def make(cls, layout: ModelLayout, parameters: Parameters, max_bytes: int | None) -> Self:
        """As the plan's settings say: `step`, `fine`, `coder`, and `bits` a parameter at most."""
        step = parameters.number("step", DEFAULT_STEP, MIN_STEP, MAX_STEP)
        fine = parameters.number("fine", DEFAULT_FINE, 1.0, MAX_FINE)
        if parameters.has("bits"):
            target = int(parameters.number("bits", MAX_BITS, MIN_BITS, MAX_BITS) * layout.num_parameters / 8)
            max_bytes = target if max_bytes is None else min(target, max_bytes)
        return cls(layout, step, fine, max_bytes, parameters.choice("coder", ("rice", "range", "deflate")))

    def compress(self, vector: Vector, _rng: Generator, /) -> bytes:
        """Shape (P,) -> bytes, deterministic. Raises `ValueError` for a vector that is not finite."""
        values = bounded(finite(vector, self._size))
        peaks = np.array([np.abs(values[t]).max() for t in self._tensors], np.float64)
        rms = np.array([np.sqrt(np.mean(np.square(values[t], dtype=np.float64))) for t in self._tensors])
        units = rms / self._finer

        if self._max_bytes is None:
            return self._encode(values, np.minimum(self._step * units, peaks), np.zeros(len(peaks)))

        def encode(step: float) -> bytes:
            scales = np.minimum(step * units, peaks)
            if step <= self._step:
                return self._encode(values, scales, np.zeros(len(peaks)))
            # Scales have a byte, and are some percent apart: the dead zone's edge, which no reader needs, has no steps.
            beyond = np.minimum(1, peaks / np.maximum(step * units, TINY))  # below 1: the step is above max|a|
            return self._encode(values, BELOW * scales, (1 - 0.33 * beyond) * scales)

        return fit(encode, self._forecast(values, units), self._max_bytes, self._step, MAX_FITTED_STEP)

    def decompress(self, payload: bytes) -> Vector:
        """q s, shape (P,), by elementwise float32 multiplication alone: the same bits on every processor.

        Raises `ProtocolError(E_SIZE | E_SCHEMA | E_NAN)`.
        """
        head, stream = cut(payload, num_bytes(len(self._tensors)))
        scales = decode_scales(head, len(self._tensors))
        rows = self._coder.decode(stream, self._sizes)
        vector = np.empty(self._size, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # a hostile scale; found below
            for group, places, row in zip(self._groups, self._places, rows, strict=True):
                for i, place in zip(group, places, strict=True):
                    np.multiply(row[place], scales[i], out=vector[self._tensors[i]], casting="unsafe", dtype=np.float32)
        if not np.isfinite(vector).all():
            raise ProtocolError(Code.NAN, "a symbol times its scale is beyond float32")
        return vector

    def decompress_sparse(self, payload: bytes) -> SparseVector | None:
        """The same without its zeros, where the coder is `rice` and less than a third is not zero."""
        head, stream = cut(payload, num_bytes(len(self._tensors)))
        if self._coder.name != "rice" or not worth(rice.count(stream, self._sizes), self._size):
            return None
        scales = decode_scales(head, len(self._tensors))
        places, parts = [], []
        for group, starts, (positions, symbols) in zip(
            self._groups, self._starts, self._coder.decode_sparse(stream, self._sizes), strict=True
        ):
            counts = np.diff(np.searchsorted(positions, starts), append=len(positions))  # of each tensor
            moved = np.array([self._tensors[i].start for i in group], np.int64) - starts
            places.append(positions + np.repeat(moved, counts))
            with np.errstate(over="ignore"):  # a hostile scale; found below
                parts.append(symbols.astype(np.float32) * np.repeat(scales[group], counts))
        indices, values = np.concatenate(places), np.concatenate(parts)
        if all(map(len, places)):
            order = np.argsort(indices, kind="stable")
            indices, values = indices[order], values[order]
        if not np.isfinite(values).all():
            raise ProtocolError(Code.NAN, "a symbol times its scale is beyond float32")
        return SparseVector(indices, values, self._size)

    def _encode(self, values: Vector, wanted: Floats, least: Floats) -> bytes:
        """With scales near `wanted`; magnitudes below `least` become zero, too."""
        head, scales = encode_scales(wanted.astype(np.float32), "nearest")
        rows = [np.zeros(size, np.int32) for size in self._sizes]
        for group, places, row in zip(self._groups, self._places, rows, strict=True):
            for i, place in zip(group, places, strict=True):
                if scales[i] > 0:
                    tensor = values[self._tensors[i]]
                    row[place] = tensor / scales[i] + np.copysign(ROUNDING, tensor)  # truncated towards zero
                    if least[i] > 0:
                        row[place] *= np.abs(tensor) >= np.float32(least[i])
        return head + self._coder.encode(rows)

    def _forecast(self, values: Vector, units: Floats) -> Callable[[Floats], Floats]:
        histograms = []
        for group in self._groups:
            histograms.append(histogram := Histogram())
            for i in group:
                histogram.add(values[self._tensors[i]], units[i])
        overhead = num_bytes(len(self._tensors)) + 7 * sum(size > 0 for size in self._sizes)

        def forecast(steps: Floats) -> Floats:
            bits = [histogram.bits(steps, float(ROUNDING)) for histogram in histograms]
            return np.asarray(overhead + np.sum(bits, axis=0) / 8, np.float64)

        return forecast


def _side_by_side(sizes: list[int]) -> list[slice]:
    """Where tensors of these sizes stand in a row."""
    return [slice(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0))]
