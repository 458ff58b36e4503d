"""The gates: the shipped bundle passes every one, and a bundle that is wrong in one way does not."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from models import losses
from models.build import build
from models.gates import BATCHES, Bench, run_gates
from models.gates.bench import in_torch
from models.gates.codes import codes_apart, codes_of, recording, replaying
from models.gates.drift import drift_gate
from models.gates.files import layout_gate, operators_gate, size_gate
from models.gates.gradient import gradient_gate
from models.gates.inference import agree, as_module, int8_gate
from models.gates.steps import codes_gate, one_step_gate
from models.metrics import ABSOLUTE_ERROR, balanced_accuracy
from models.optimizers import Adam
from models.spec import Input, load
from models.step import Step
from tests.models.specs import FLOAT, Parted, examples, module_of, toy

SHIPPED = Path(__file__).parents[2] / "anabranch" / "data" / "fan_vibration.bundle"


@pytest.fixture(scope="module")
def spec():
    return load("fan_vibration")


@pytest.fixture(scope="module")
def bundle(spec):
    return Bundle.read(build(spec))


def edited(bundle, graph, change):
    """The bundle with one of its graphs changed, as a broken exporter would have written it."""
    proto = onnx.load_from_string(bundle.graph(graph))
    change(proto.graph)
    return replace(bundle, graphs={**bundle.graphs, graph: proto.SerializeToString()})


def passed(gates):
    return [gate.passed for gate in gates] == [True]


def scale_the_filters(graph):
    for tensor in graph.initializer:
        if tensor.name == "filters":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.05), "filters"))


def forget_the_momentum_of_one_bias(graph):
    """As wrong as a term that a hand-written step leaves out, and as small: three numbers of seven thousand."""
    (decay,) = [node for node in graph.node if "classify.bias.momentum" in node.input]
    decay.input[:] = ["classify.bias.momentum" for _ in decay.input]


def test_the_shipped_bundle_passes_every_gate(spec):
    heard = []
    results = run_gates(Bundle.read(SHIPPED.read_bytes()), spec, heard.append)
    assert [gate for gate in results if not gate.passed] == []
    assert {f"batch {size}" for size in BATCHES} <= {gate.name.split(", ")[-1] for gate in results}
    assert heard[0] == "the manifest"


# --- any model ---------------------------------------------------------------------------------------------
class Table(nn.Module):
    """An embedding of whole numbers, one of which pads and has no gradient of its own, (B, 4) -> (B, 3)."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 8, padding_idx=0), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.table(x).mean(1))


def whole(splits):
    return type(splits)(*((np.clip(np.round(x * 2 + 2), 0, 4).astype(np.int64), y) for x, y in splits))


def fault(x):
    return (x[:, 0] > 0.5).astype(np.int64)


def smooth(x):
    return (x[:, 0] - 0.5 * x[:, 1]).astype(np.float32)


def hidden(outputs):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))


SPECS = {
    "everything": toy(
        module=Parted,
        personal=("head",),
        optimizer=Adam(learning_rate=0.01, weight_decay=0.01, proximal=0.1, clip_norm=1.0),
        examples=lambda: examples(n=1500),
    ),
    "frozen backbone": toy(module=Parted, frozen=("backbone",), examples=lambda: examples(n=1500)),
    "whole numbers": toy(
        module=Table,
        x=Input((4,), torch.int64),
        examples=lambda: whole(examples(n=1500)),
        optimizer=Adam(learning_rate=0.01),
    ),
    "one logit": toy(
        module=module_of(lambda z: z.reshape(-1), hidden(1)),
        labels=("fine", "faulty"),
        loss=partial(losses.binary_cross_entropy, positive_weight=2.0),
        metric=balanced_accuracy((0.7, 0.3)),
        examples=lambda: examples(fault, 1500),
    ),
    "a regression": toy(
        module=lambda: hidden(1),
        labels=(),
        y=FLOAT,
        loss=partial(losses.huber, delta=2.0),
        metric=ABSOLUTE_ERROR,
        examples=lambda: examples(smooth, 1500),
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_the_gates_measure_any_loss_optimizer_and_kind_of_example(name):
    spec = SPECS[name]
    results = run_gates(Bundle.read(build(spec)), spec)
    assert [gate for gate in results if not gate.passed] == []


def test_examples_that_are_not_what_the_spec_says_are_refused(bundle, spec):
    wrong = replace(spec, examples=lambda: examples())
    with pytest.raises(ConfigError, match="train: x is float32"):
        run_gates(bundle, wrong)


# --- a bundle that is wrong in one way ------------------------------------------------------------------------
@pytest.mark.parametrize("change", [scale_the_filters, forget_the_momentum_of_one_bias])
def test_a_step_that_computes_something_else_fails(bundle, spec, change):
    bench = Bench(edited(bundle, "train", change), spec)
    assert not passed(one_step_gate(bench, bench.step, bench.session, 32))


def test_a_float_step_that_is_a_little_off_fails(bundle, spec):
    bench = Bench(bundle, spec)
    session = Bench(edited(bundle, "train", scale_the_filters), spec).session
    assert passed(one_step_gate(bench, bench.plain, bench.plain_session, 5))
    assert not passed(one_step_gate(bench, bench.plain, session, 5))


def test_codes_of_another_network_fail(bundle, spec, monkeypatch):
    """The recording graph is compiled anew from the model: here the filters are changed on the way."""
    import models.gates.bench as bench_module

    assert passed(codes_gate(Bench(bundle, spec)))

    def off(function, inputs, stored):
        return export(function, inputs, {**stored, "filters": stored["filters"] * 1.05})

    export = bench_module.export
    monkeypatch.setattr(bench_module, "export", off)
    assert not passed(codes_gate(Bench(bundle, spec)))


def test_a_step_that_strays_over_many_steps_fails(bundle, spec):
    bench = Bench(edited(bundle, "train", forget_the_momentum_of_one_bias), spec)
    assert not passed(drift_gate(bench, bench.step, bench.session))


def test_a_gradient_that_is_not_the_slope_of_the_loss_fails(bundle, spec):
    def double_one_gradient(graph):
        (momentum,) = [node for node in graph.node if node.output[0] == "hidden2.bias.momentum.next"]
        momentum.input[0], momentum.input[1] = momentum.input[1], momentum.input[1]

    assert not passed(gradient_gate(Bench(edited(bundle, "train", double_one_gradient), spec)))


def test_an_int8_model_that_predicts_something_else_fails(bundle, spec):
    wrong = edited(bundle, "int8", lambda graph: [scale_the_filters(graph) for _ in range(20)])
    assert not passed(int8_gate(Bench(wrong, spec)))


def test_a_layout_that_is_not_the_models_fails(bundle, spec):
    entries = bundle.layout.entries
    other = replace(bundle, layout=replace(bundle.layout, entries=(*entries[:-2], entries[-1], entries[-2])))
    assert not passed(layout_gate(Bench(other, spec)))


def test_a_bloated_bundle_fails(bundle, spec):
    def bloat(graph):
        graph.initializer.append(numpy_helper.from_array(np.zeros(1 << 18, np.float32), "unused"))

    def unroll(graph):
        graph.node.extend(onnx.helper.make_node("Neg", ["x"], [f"unused {i}"]) for i in range(6001))

    assert passed(size_gate(Bench(bundle, spec)))
    assert not passed(size_gate(Bench(edited(bundle, "float", bloat), spec)))
    assert not passed(size_gate(Bench(edited(bundle, "train", unroll), spec)))


def test_an_operator_of_another_domain_fails(bundle, spec):
    proto = onnx.load_from_string(bundle.graph("float"))
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    foreign = replace(bundle, graphs={**bundle.graphs, "float": proto.SerializeToString()})
    assert not passed(operators_gate(Bench(foreign, spec)))


# --- codes of one run given to another -----------------------------------------------------------------------------
def test_a_step_on_its_own_recorded_codes_is_the_same_step_and_chooses_them_again():
    spec = SPECS["everything"]
    bench = Bench(Bundle.read(build(spec)), spec)
    given = {**bench.initial, **next(bench.batches(32)), **bench.hyper(), **bench.fed(0)}
    first = in_torch(recording(Step(spec)), given, bench.step.constants, torch.float32)
    again = in_torch(replaying(Step(spec)), {**given, **codes_of(first)}, bench.step.constants, torch.float32)
    assert codes_apart(first, again) == 0
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_one_code_that_another_run_chose_is_counted_and_its_consequences_are_not():
    spec = SPECS["everything"]
    bench = Bench(Bundle.read(build(spec)), spec)
    given = {**bench.initial, **next(bench.batches(32)), **bench.hyper(), **bench.fed(0)}
    first = in_torch(recording(Step(spec)), given, bench.step.constants, torch.float32)
    operands = [name for name in codes_of(first) if name.removeprefix("codes:").isdigit()]
    changed = {name: array.copy() for name, array in first.items()}
    changed[operands[0]].reshape(-1)[0] += 0.1 * np.abs(first[operands[0]]).max()
    again = in_torch(replaying(Step(spec)), {**given, **codes_of(changed)}, bench.step.constants, torch.float32)
    forwards = {name: again[name] for name in operands}
    assert codes_apart(changed, {operands[0]: forwards[operands[0]]}) == 1
    assert codes_apart(first, {operands[0]: forwards[operands[0]]}) == 0
    assert any(not np.array_equal(first[name], again[name]) for name in first if name.endswith(".next"))


# --- what agreeing means ---------------------------------------------------------------------------------------
def test_two_outputs_agree_by_class_by_sign_or_within_a_share_of_the_spread():
    a = np.array([[1.0, 2], [3, 1]])
    assert agree(a, a[:, ::-1], toy(labels=("a", "b"))).tolist() == [False, False]
    assert agree(np.array([-1.0, 1]), np.array([-2.0, -2]), toy(labels=("a", "b"))).tolist() == [True, False]
    spread = np.array([0.0, 10.0])
    assert agree(spread + np.array([0.05, 0.2]), spread, toy(labels=())).tolist() == [True, False]


def test_a_point_is_a_percent_of_all_examples_or_of_the_untrained_networks_error():
    spec = SPECS["a regression"]
    bench = Bench(Bundle.read(build(spec)), spec)
    x, y = bench.held_out
    untrained = float(np.abs(bench.output_torch(bench.step, bench.initial, x)[:, 0] - y).mean())
    assert bench.points_lost(0.0, untrained) == pytest.approx(100)
    assert Bench(bench.bundle, toy()).points_lost(0.9, 0.89) == pytest.approx(1)


def test_two_logits_of_an_inference_graph_are_one_of_the_module():
    logits = np.array([[0.0, 3], [0, -1]])
    assert as_module(logits, np.zeros(2)).tolist() == [3, -1]
    assert as_module(logits, np.zeros((2, 2))) is logits
