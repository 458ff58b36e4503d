"""The gate on the int8 model: what it predicts, against the network that trained and against float."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.bundle import fill_initializers
from models.gates.bench import Arrays, Bench, Gate, infer_onnx, open_session
from models.spec import ModelSpec

AGREEMENT = 0.995  # of the predictions on held-out examples
SAME_OUTPUT = 0.02  # without labels: two outputs agree that differ by this share of the outputs' standard deviation
# Points that int8 may cost (`Bench.points_lost`). Four bits cost more.
LOSS_ALLOWED = {8: 1.0, 4: 4.0}


def int8_gate(bench: Bench) -> Iterator[Gate]:
    """The int8 and float graphs, filled with one trained version, on held-out examples."""
    spec, entries = bench.spec, bench.trained
    x, y = bench.held_out
    quantize = open_session(bench.bundle.graph("quantize"))
    names = [value.name for value in quantize.get_outputs()]
    given = {value.name: entries[value.name] for value in quantize.get_inputs()}
    stored: Arrays = dict(zip(names, quantize.run(None, given), strict=True))
    int8_graph = fill_initializers(bench.bundle.graph("int8"), stored)
    float_graph = fill_initializers(
        bench.bundle.graph("float"), {e.name: entries[e.name] for e in bench.bundle.float_entries}
    )
    fake = bench.output_torch(bench.step, entries, x)
    plain, int8 = (as_module(infer_onnx(open_session(graph), x), fake) for graph in (float_graph, int8_graph))
    agreement = float(agree(int8, fake, spec).mean())
    scores = [bench.score(output, y) for output in (plain, fake, int8)]
    listed = " ".join(score_text(score, spec) for score in scores)
    allowed, cost = LOSS_ALLOWED[spec.bits], bench.points_lost(scores[0], scores[2])
    yield Gate(
        "int8 against fake-quantized, held out",
        f"{agreement:.2%} agree; {spec.metric.name} float, fake, int8: {listed}",
        f"{AGREEMENT:.1%} agree, int8 at most {allowed:g} points worse than float",
        bool(agreement >= AGREEMENT and cost <= allowed),
    )


def agree(a: NDArray[Any], b: NDArray[Any], spec: ModelSpec) -> NDArray[np.bool_]:
    """For each example, whether two outputs of the module predict the same: one class, or nearly one value."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if not spec.labels:
        return np.asarray((np.abs(a - b) <= SAME_OUTPUT * b.std(0) + 1e-12).all(1))
    return np.asarray((a[:, 0] > 0) == (b[:, 0] > 0) if a.shape[1] == 1 else a.argmax(1) == b.argmax(1))


def as_module(logits: NDArray[Any], output: NDArray[Any]) -> NDArray[Any]:
    """An inference graph's logits in the shape of the module's `output`: (0, z) becomes the one logit z again."""
    return logits if logits.shape == output.shape else logits[:, 1:].reshape(output.shape)


def score_text(score: float, spec: ModelSpec) -> str:
    """A metric as people read it."""
    return f"{100 * score:.1f} %" if spec.labels else f"{score:.4g}"
