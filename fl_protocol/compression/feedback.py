"""Error feedback (Seide et al. 2014; Karimireddy et al. 2019) whose residual moves only on a final verdict.

What a codec leaves out of one update is added to the next. In an asynchronous fleet updates are also refused, and
verdicts get lost, so both futures of the residual are worked out before the radio is touched, and stored with the
update:

    a = delta + residual;   a' = clip(a, clip_norm);   q = what decompress gives of a'
    accepted:               residual <- a' - q
    stale or rejected:      residual <- age * clip(a, 2 |delta|)
    silence or deferral:    the same bytes again, nothing moves

Whatever the verdicts, sum(accepted q) + residual + sum(discarded) = sum(deltas), since each clip and each ageing books
its loss in `discarded`; float32 rounding aside, of at most 2^-22 of the largest |a| a step and element.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from fl_protocol.compression.pipeline import Compressor
from fl_protocol.tensors import Vector

# By one half, what a device owes after any number of refusals is at most the norm of one delta, and it never sends more
# than that of two: refusals cannot breed refusals by the gateway's bound of five median norms. Nor is much lost: a
# delta refused at the default staleness of 20 would have counted (1 + 20)^-0.5 = 0.22.
AGE = 0.5


@dataclass(frozen=True)
class Prepared:
    """An update ready to be sent, and what becomes of the residual by its verdict; vectors of shape (P,)."""

    payload: bytes
    sent: Vector  # what the gateway will read
    if_accepted: Vector  # the next residual
    if_refused: Vector
    discarded_if_accepted: Vector  # what no later update will bring
    discarded_if_refused: Vector


def prepare(
    compressor: Compressor,
    delta: Vector,
    residual: Vector,
    *,
    clip_norm: float | None,
    rng: Generator,
    age: float = AGE,
) -> Prepared:
    """Compress `delta` with the kept `residual`; `clip_norm` bounds the L2 norm of what is compressed.

    Raises `ValueError` for vectors that are not finite, or shapes that do not fit.
    """
    if not np.isfinite(delta).all() or delta.shape != residual.shape:
        raise ValueError("a delta is finite, and as long as its residual")
    wanted = delta + residual
    clipped = wanted if clip_norm is None else clip(wanted, clip_norm)
    payload = compressor.compress(clipped, rng)
    sent = compressor.decompress(payload)
    if_refused = np.float32(age) * clip(wanted, 2 * _norm(delta))
    return Prepared(
        payload=payload,
        sent=sent,
        if_accepted=clipped - sent,
        if_refused=if_refused,
        discarded_if_accepted=wanted - clipped,
        discarded_if_refused=wanted - if_refused,
    )


def clip(vector: Vector, norm: float) -> Vector:
    """`vector`, shortened to the L2 `norm` if it is longer."""
    length = _norm(vector)
    return vector if length <= norm else vector * np.float32(norm / length)


def _norm(vector: Vector) -> float:
    return float(np.sqrt(np.sum(np.square(vector, dtype=np.float64))))
