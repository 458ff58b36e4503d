"""What every bundle must pass before it is shipped: each gate measures, and says what it allows."""

from collections.abc import Callable, Iterator

from fl_protocol.bundle import Bundle
from models.gates.bench import Arrays, Bench, Gate, next_entries, open_session, train_onnx, train_torch
from models.gates.drift import drift_gate
from models.gates.files import layout_gate, operators_gate, size_gate
from models.gates.gradient import gradient_gate
from models.gates.inference import int8_gate
from models.gates.steps import BATCHES, codes_gate, one_step_gate
from models.spec import ModelSpec

__all__ = [
    "BATCHES",
    "Arrays",
    "Bench",
    "Gate",
    "next_entries",
    "open_session",
    "run_gates",
    "train_onnx",
    "train_torch",
]


def run_gates(bundle: Bundle, spec: ModelSpec, passing: Callable[[str], None] = lambda _: None) -> list[Gate]:
    """Every gate, measured on real examples; `passing` hears what comes next. Raises `ConfigError` without them."""
    bench = Bench(bundle, spec)
    gates: list[Gate] = []
    for said, measure in _GATES.items():
        passing(said)
        gates += measure(bench)
    return gates


def _one_step(bench: Bench) -> Iterator[Gate]:
    for step, session in bench.networks:
        for size in BATCHES:
            yield from one_step_gate(bench, step, session, size)


def _drift(bench: Bench) -> Iterator[Gate]:
    for step, session in bench.networks:
        yield from drift_gate(bench, step, session)


_GATES: dict[str, Callable[[Bench], Iterator[Gate]]] = {
    "the manifest": layout_gate,
    "the operators": operators_gate,
    "the size": size_gate,
    "one step against torch": _one_step,
    "the codes of a step": codes_gate,
    "many steps against torch": _drift,
    "the gradient": gradient_gate,
    "the int8 model": int8_gate,
}
