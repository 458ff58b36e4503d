"""The int8 model at work: made on the device from a version's vector, without torch and without the onnx package."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.events import Guess
from edge_agent.runtime import open_session, run
from fl_protocol.bundle import Bundle, fill_initializers
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import Vector


def quantize(bundle: Bundle, version: Vector, personal: Vector | None = None, threads: int = 1) -> bytes:
    """The int8 ONNX graph of `version`, shape (layout.size,), with this device's own values of the personal entries.

    Without `personal` they are where they start. Raises `ProtocolError` for a bundle that cannot do it.
    """
    session = open_session(bundle.graph("quantize"), threads)
    names = [output.name for output in session.get_outputs()]
    tensors = run(session, names, bundle.tensors(version, personal))
    return fill_initializers(bundle.graph("int8"), dict(zip(names, tensors, strict=True)))


class Predictor:
    """One version's int8 model, ready to be asked. It runs on the processor: one example is too little for others."""

    def __init__(self, bundle: Bundle, version: Vector, personal: Vector | None = None, threads: int = 1) -> None:
        self._labels = bundle.labels
        self._session = open_session(quantize(bundle, version, personal, threads), threads)

    def predict(self, x: NDArray[Any]) -> Guess:
        """What the model says of `x`, shape (1, *x_shape). Raises `ProtocolError` where the graph fails."""
        started = time.perf_counter()
        (logits,) = run(self._session, ["logits"], {"x": x})
        milliseconds = (time.perf_counter() - started) * 1e3
        scores = logits[0].astype(np.float64).reshape(-1)
        if not np.isfinite(scores).all():
            raise ProtocolError(Code.NAN, "the int8 model's output is not finite")
        if not self._labels:
            return Guess(f"{scores[0]:.6g}", 1.0, milliseconds)
        exponentials = np.exp(scores - scores.max())
        best = int(scores.argmax())
        return Guess(self._labels[best], float(exponentials[best] / exponentials.sum()), milliseconds)
