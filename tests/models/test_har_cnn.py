"""The first convolutions: people are split honestly, the layer is torch's convolution, and it learns in int8."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from anabranch import har
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from models.gates import BATCHES, Bench, open_session, run_gates
from models.har_cnn.model import Config, Conv1d, HarCnn
from models.spec import load
from models.to_onnx import export

SHIPPED = Path(__file__).parents[2] / "anabranch" / "data" / "har_cnn.bundle"
REAL = Path(os.environ.get(har.DATASETS) or "../shared/datasets")
# UCI HAR may not lie in this repository; where somebody has it, every rule here holds for it as well.
KINDS = ("made up", "real") if (REAL / har.ARCHIVE).is_file() else ("made up",)


def write_made_up_archive(folder):
    """Thirty people with the archive's format: each activity a direction of gravity, some with a gait."""
    rng, people, each = np.random.default_rng(0), 30, 4
    y = np.tile(np.repeat(np.arange(6), each), people)
    subject = np.repeat(np.arange(1, people + 1), 6 * each)
    gravity, gait, hertz = (
        rng.normal(0, 0.6, (6, 9, 1)),
        rng.normal(0, 0.4, (6, 9, 1)),
        np.array([1.5, 2, 2.5, 0, 0, 0]),
    )
    phase = 2 * np.pi * (hertz[y, None] * np.arange(har.WINDOW) / 50 + rng.random((len(y), 1)))
    posture = rng.normal(0, 0.4, (len(y), 9, 1))  # so that activities are not told apart with ease
    x = gravity[y] + posture + gait[y] * np.sin(phase)[:, None] + rng.normal(0, 0.1, (len(y), 9, har.WINDOW))
    is_test = np.isin(subject, har.TESTERS)
    np.savez(
        folder / har.ARCHIVE,
        x=x.astype(np.float32),
        y=y,
        subject=subject,
        is_test=is_test,
        channels=np.array(har.CHANNELS),
        classes=np.array([c.replace(" ", "_").upper() for c in har.CLASSES]),
    )


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    if request.param == "real":
        yield REAL
        return
    made_up = tmp_path_factory.mktemp("datasets")
    write_made_up_archive(made_up)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(har.DATASETS, str(made_up))
        yield made_up


@pytest.fixture(scope="module")
def bench(folder):
    return Bench(Bundle.read(SHIPPED.read_bytes()), load("har_cnn"))


# --- the data ----------------------------------------------------------------------------------------------
def test_every_person_is_in_one_split_and_the_official_test_people_test(folder):
    splits = [*((person,) for person in har.PEOPLE), har.VALIDATORS, har.TESTERS]
    assert sorted(person for split in splits for person in split) == list(range(1, 31))
    loaded = [*map(har.load_person, har.PEOPLE), har.load_validation(), har.load_test()]
    with np.load(folder / har.ARCHIVE) as data:
        assert set(data["subject"][data["is_test"]]) == set(har.TESTERS)
        for people, (x, y) in zip(splits, loaded, strict=True):
            chosen = np.isin(data["subject"], people)
            np.testing.assert_array_equal(x, data["x"][chosen].transpose(0, 2, 1))
            np.testing.assert_array_equal(y, data["y"][chosen])
            assert (x.shape[1:], x.dtype, y.dtype) == ((har.WINDOW, 9), np.float32, np.int64)
            assert set(y) == set(range(len(har.CLASSES)))


def test_signals_and_activities_have_the_order_of_the_archive(folder):
    with np.load(folder / har.ARCHIVE) as data:
        assert tuple(data["channels"]) == har.CHANNELS
        assert tuple(c.replace("_", " ").lower() for c in data["classes"]) == har.CLASSES


def test_the_pool_is_all_people_that_train(folder):
    x, y = har.load_training()
    assert len(x) == len(y) == sum(len(har.load_person(person)[1]) for person in har.PEOPLE)


@pytest.mark.parametrize("person", [0, har.TESTERS[0], 31])
def test_a_person_who_does_not_train_is_refused(person):
    with pytest.raises(ConfigError, match=f"person {person} "):
        har.load_person(person)


def test_without_the_data_the_operator_hears_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setenv(har.DATASETS, str(tmp_path))
    with pytest.raises(ConfigError, match=har.DATASETS):
        har.load_validation()


# --- the layer ---------------------------------------------------------------------------------------------
def conv_weight(weight, span):
    """The linear layer's weight as torch's convolution wants it, (out, in, span)."""
    return weight.reshape(len(weight), span, -1).transpose(1, 2)


sizes = st.tuples(*(st.integers(1, high) for high in (3, 3, 4, 3, 4)))


@given(sizes, st.integers(0, 1000))
def test_the_layer_and_its_gradients_are_those_of_torchs_convolution(size, seed):
    """In float64, for any sizes: forward, and the gradients of input, weight and bias."""
    inputs, outputs, taps, stride, more = size
    generator = torch.Generator().manual_seed(seed)
    conv = Conv1d(inputs, outputs, taps, stride).double()
    x = torch.randn(2, stride * (taps + more), inputs, generator=generator, dtype=torch.float64, requires_grad=True)
    weight, bias = conv.linear.weight, conv.linear.bias
    ours = conv(x)
    theirs = F.conv1d(x.transpose(1, 2), conv_weight(weight, taps * stride), bias, stride).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * slope).sum(), [x, weight, bias]) for out in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_the_slopes_that_finite_differences_find(stride):
    conv = Conv1d(2, 3, 3, stride).double()
    x = torch.randn(2, 10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    names = ("linear.weight", "linear.bias")

    def forward(x, *parameters):
        return torch.func.functional_call(conv, dict(zip(names, parameters, strict=True)), (x,)).sin()

    assert torch.autograd.gradcheck(forward, (x, *conv.parameters()))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_compiled_gradients_are_torchs_at_any_batch_size(batch, stride):
    """Two layers, so that a gradient goes through one; the reference is float64."""
    generator = torch.Generator().manual_seed(batch)
    module = torch.nn.Sequential(Conv1d(2, 4, 3, stride), torch.nn.ReLU(), Conv1d(4, 3, 2, 1))
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    x = torch.randn(batch, 12, 2, generator=generator)

    def gradients(given):
        of = {name: given[name].detach().requires_grad_() for name in parameters}
        loss = torch.func.functional_call(module, of, (given["x"],)).square().mean()
        return dict(zip((f"{name}.gradient" for name in of), torch.autograd.grad(loss, list(of.values())), strict=True))

    session = open_session(export(gradients, {"x": x[:1]}, parameters))
    reference = gradients({name: t.double() for name, t in {**parameters, "x": x}.items()})
    for result, expected in zip(session.run(None, {"x": x.numpy()}), reference.values(), strict=True):
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-5, atol=1e-7)


def test_samples_that_a_stride_leaves_over_are_refused():
    with pytest.raises(ConfigError, match="5 samples"):
        Conv1d(2, 3, 2, stride=2)(torch.zeros(4, 5, 2))


# --- the model ---------------------------------------------------------------------------------------------
def test_the_network_sees_each_signal_in_its_own_unit(folder):
    """The constants are the training people's: close to 0 and 1 after them, whatever the unit."""
    config, (x, _) = Config(), har.load_training()
    model = HarCnn(config)
    assert len(model.mean) == len(model.deviation) == len(har.CHANNELS)
    if folder == REAL:
        np.testing.assert_allclose(x.mean((0, 1)), config.mean, atol=0.01)
        np.testing.assert_allclose(x.std((0, 1)), config.deviation, atol=0.01)


def test_the_shipped_bundle_passes_every_gate(bench):
    assert [gate for gate in run_gates(bench.bundle, bench.spec) if not gate.passed] == []


def test_convolutions_run_on_int8_kernels(bench, tmp_path):
    """Every layer, as onnxruntime optimizes the graph: no float product is left."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(bench.bundle.graph("int8"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert kinds.count("QGemm") == 4


def test_a_few_hundred_steps_teach_it_what_unseen_people_do(bench):
    """300 steps of 32 on pooled people are under two epochs of the real data: 89 % of nine unseen people's windows."""
    x, y = bench.examples[1]
    shared = {e.name: bench.trained[e.name] for e in bench.bundle.layout.shared}
    results = open_session(bench.bundle.graph("evaluate")).run(["correct"], {**shared, "x": x, "y": y})
    assert results[0] / len(y) >= 0.85
