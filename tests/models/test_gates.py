"""The gates: the shipped bundle passes every one, and a bundle that is wrong in one way does not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fl_protocol.bundle import Bundle
from models import gates
from models.gates import Bench, run_gates
from models.spec import load

SHIPPED = Path(__file__).parents[2] / "anabranch" / "data" / "fan_vibration.bundle"


@pytest.fixture(scope="module")
def bundle():
    return Bundle.read(SHIPPED.read_bytes())


@pytest.fixture(scope="module")
def spec():
    return load("fan_vibration")


def edited(bundle, graph, change):
    """The bundle with one of its graphs changed, as a broken exporter would have written it."""
    proto = onnx.load_from_string(bundle.graph(graph))
    change(proto.graph)
    return replace(bundle, graphs={**bundle.graphs, graph: proto.SerializeToString()})


def scale_the_filters(graph):
    for tensor in graph.initializer:
        if tensor.name == "filters":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.05), "filters"))


def forget_the_momentum_of_one_bias(graph):
    """As wrong as a term that a hand-written step leaves out, and as small: three numbers of seven thousand."""
    (decay,) = [node for node in graph.node if "classify.bias.momentum" in node.input]
    decay.input[:] = ["classify.bias.momentum" for _ in decay.input]


def test_the_shipped_bundle_passes_every_gate(bundle, spec):
    results = run_gates(bundle, spec)
    assert [gate for gate in results if not gate.passed] == []
    assert {f"batch {size}" for size in gates.BATCHES} <= {gate.name.split(", ")[-1] for gate in results}


@pytest.mark.parametrize("change", [scale_the_filters, forget_the_momentum_of_one_bias])
def test_a_step_that_computes_something_else_fails(bundle, spec, change):
    bench = Bench(edited(bundle, "train", change), spec)
    assert not gates._one_step(bench, bench.step, bench.session, 32).passed


def test_a_step_that_strays_over_a_hundred_steps_fails(bundle, spec):
    assert gates._drift(Bench(bundle, spec)).passed
    assert not gates._drift(Bench(edited(bundle, "train", forget_the_momentum_of_one_bias), spec)).passed


def test_a_gradient_that_is_not_the_slope_of_the_loss_fails(bundle, spec):
    def double_one_gradient(graph):
        (momentum,) = [node for node in graph.node if node.output[0] == "hidden2.bias.momentum.next"]
        momentum.input[0], momentum.input[1] = momentum.input[1], momentum.input[1]

    bench = Bench(edited(bundle, "train", double_one_gradient), spec)
    assert not gates._gradient(bench).passed


def test_an_int8_model_that_predicts_something_else_fails(bundle, spec):
    bench = Bench(edited(bundle, "int8", lambda graph: [scale_the_filters(graph) for _ in range(20)]), spec)
    assert not gates._int8(bench).passed


def test_a_layout_that_is_not_the_models_fails(bundle, spec):
    entries = bundle.layout.entries
    other = replace(bundle, layout=replace(bundle.layout, entries=(*entries[:-2], entries[-1], entries[-2])))
    assert not gates._layout(Bench(other, spec)).passed


def test_a_bloated_bundle_fails(bundle):
    assert gates._size(bundle).passed
    assert not gates._size(replace(bundle, graphs={**bundle.graphs, "float": b"\x00" * (1 << 20)})).passed


def test_an_operator_of_another_domain_fails(bundle):
    proto = onnx.load_from_string(bundle.graph("float"))
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    foreign = replace(bundle, graphs={**bundle.graphs, "float": proto.SerializeToString()})
    assert not gates._operators(foreign).passed
