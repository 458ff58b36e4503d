"""The training step: who has which role, what stays still, what is refused and how."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from models import losses
from models.build import build
from models.gates import open_session, train_onnx
from models.metrics import ABSOLUTE_ERROR, RECONSTRUCTION_ERROR
from models.optimizers import Adam, Sgd
from models.spec import Input
from models.step import Step
from tests.models.specs import FLOAT, Parted, given, module_of, toy


def names(step, role):
    return [entry.name for entry in step.layout.with_role(role)]


def moved(step, **changes):
    """The entries that a training step changes."""
    before = given(step, **changes)
    after = step.train(before)
    return {
        n.removesuffix(".next") for n, t in after.items() if n.endswith(".next") and not torch.equal(t, before[n[:-5]])
    }


# --- roles -----------------------------------------------------------------------------------------------------
def test_parameters_then_statistics_then_personal_then_the_optimizer():
    step = Step(toy(module=Parted, personal=("head", "backbone.1.running_mean")))
    assert list(dict.fromkeys(entry.role for entry in step.layout.entries)) == [
        "parameter",
        "statistic",
        "personal",
        "optimizer",
    ]
    assert {"head.weight", "head.bias", "head.input_high", "backbone.1.running_mean"} <= set(names(step, "personal"))
    assert "backbone.1.running_var" in names(step, "statistic")
    trained = {*names(step, "parameter"), "head.weight", "head.bias"}
    assert {name.removesuffix(".momentum") for name in names(step, "optimizer")} == trained


def test_in_the_float_network_running_moments_are_measured_and_nothing_else():
    step = Step(toy(module=Parted), quantized=False)
    assert names(step, "statistic") == ["backbone.1.running_mean", "backbone.1.running_var"]


def test_a_frozen_backbone_is_shipped_once_and_stays_as_it_is():
    """Its normalisation goes by its own moments, its dropout drops nothing; ranges are measured all the same."""
    step = Step(toy(module=Parted, frozen=("backbone",)))
    assert names(step, "parameter") == ["head.weight", "head.bias"]
    assert {"backbone.0.weight", "backbone.1.running_mean", "backbone.1.running_var"} <= set(step.constants)
    assert step.feeds == ()
    assert {"head.weight", "head.bias", "head.input_high"} <= moved(step, batch=16)
    bundle = Bundle.read(build(step.spec))
    assert [e.name for e in bundle.float_entries] == ["head.weight", "head.bias"]


def test_what_the_author_froze_in_torch_is_frozen():
    class Half(Parted):
        def __init__(self):
            super().__init__()
            self.backbone.requires_grad_(False)

    assert names(Step(toy(module=Half)), "parameter") == ["head.weight", "head.bias"]


def test_frozen_normalisation_is_that_of_evaluation():
    class Shifted(Parted):
        def __init__(self):
            super().__init__()
            self.backbone[1].running_mean += 5.0
            self.backbone[3].p = 0.0

    frozen, free = (Step(toy(module=Shifted, frozen=f), quantized=False) for f in (("backbone.1",), ()))
    batch = given(frozen)
    evaluated = frozen.evaluate(batch)["loss_sum"] / 5
    torch.testing.assert_close(frozen.train(batch)["loss"], evaluated)
    assert abs(float(free.train(given(free))["loss"] - evaluated)) > 1e-3


def test_a_personal_part_never_leaves_the_device_and_starts_where_its_author_began():
    step = Step(toy(module=Parted, personal=("head",)))
    bundle = Bundle.read(build(step.spec))
    assert not any(e.name.startswith("head") for e in bundle.layout.shared)
    for name, tensor in step.personal.items():
        np.testing.assert_array_equal(bundle.personal_tensors[name], tensor)
    assert {"head.weight", "head.bias"} <= {e.name for e in bundle.float_entries}


@pytest.mark.parametrize("field", ["frozen", "personal", "keep_float"])
def test_a_prefix_that_matches_nothing_is_refused_with_the_nearest(field):
    with pytest.raises(ConfigError, match="did you mean 'backbone'") as caught:
        Step(toy(module=Parted, **{field: ("backbon",)})).layout  # noqa: B018
    assert field in caught.value.message


def test_a_prefix_ends_where_a_name_does():
    with pytest.raises(ConfigError):
        Step(toy(module=Parted, frozen=("head.w",))).layout  # noqa: B018


# --- seeds and bases ---------------------------------------------------------------------------------------
def test_dropout_asks_for_a_seed_and_another_seed_is_another_step():
    step = Step(toy(module=Parted))
    assert step.feeds == ("seed",)
    batch = given(step)
    once, again, other = (step.train({**batch, "seed": torch.tensor(seed)}) for seed in (3, 3, 4))
    assert torch.equal(once["head.weight.next"], again["head.weight.next"])
    assert not torch.equal(once["head.weight.next"], other["head.weight.next"])


def test_the_compiled_step_is_the_same_with_everything_that_a_bundle_can_ask_for():
    """Seed, base version, clipping, Adam, personal head, batch normalisation: ONNX and torch agree."""
    optimizer = Adam(learning_rate=0.01, weight_decay=0.01, proximal=0.1, clip_norm=0.5)
    step = Step(toy(module=Parted, personal=("head",), optimizer=optimizer))
    bundle = Bundle.read(build(step.spec))
    assert bundle.feeds == ("seed", "base")
    session = open_session(bundle.graph("train"))
    batch = given(step, batch=7, seed=5)
    batch |= {n: t + 0.1 for n, t in batch.items() if n.endswith((".base", ".second_moment"))}
    for _ in range(3):
        expected = step.train(batch)
        results = train_onnx(session, {name: tensor.numpy() for name, tensor in batch.items()})
        assert list(results) == list(expected)
        for name, tensor in expected.items():
            np.testing.assert_allclose(results[name], tensor, rtol=1e-4, atol=1e-5, err_msg=name)
        batch |= {n.removesuffix(".next"): t for n, t in expected.items() if n.endswith(".next")}


# --- outputs -------------------------------------------------------------------------------------------------
def run(bundle, graph, x):
    return open_session(bundle.graph(graph)).run(None, {"x": x})[0]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_logit_for_two_labels_becomes_two_whose_softmax_is_the_same(shape):
    module = module_of(lambda z: z.reshape(-1, *shape), nn.Linear(4, 1))
    spec = toy(module=module, labels=("fine", "faulty"), loss=losses.binary_cross_entropy)
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    logits = run(Bundle.read(build(spec)), "float", x)
    step = Step(spec, quantized=False)
    expected = step.logits({**step.entries, **step.constants, "x": torch.tensor(x)}).reshape(-1)
    np.testing.assert_array_equal(logits[:, 0], 0)
    np.testing.assert_allclose(logits[:, 1], expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [losses.squared_error, partial(losses.huber, delta=2.0)])
def test_a_regression_has_no_labels_and_its_error_is_better_when_lower(loss):
    spec = toy(module=lambda: nn.Linear(4, 1), labels=(), y=FLOAT, loss=loss, metric=ABSOLUTE_ERROR)
    bundle = Bundle.read(build(spec))
    assert (bundle.metric, bundle.better, bundle.labels) == ("absolute_error", "lower", ())


def test_an_autoencoder_gives_the_error_of_each_example():
    class Auto(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Linear(4, 2), nn.Linear(2, 4)

        def forward(self, x):
            return (self.up(self.down(x)) - x).square().mean(1)

    spec = toy(module=Auto, labels=(), loss=losses.reconstruction, metric=RECONSTRUCTION_ERROR)
    assert run(Bundle.read(build(spec)), "int8", np.ones((3, 4), np.float32)).shape == (3,)


def test_what_stays_float_is_filled_by_the_quantize_graph():
    """An embedding and a layer in `keep_float`: the int8 graph has their values of this version, as all others."""

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.hidden, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.hidden(self.table(x)))

    spec = toy(module=Embedded, x=Input((), torch.int64), keep_float=("head",))
    bundle = Bundle.read(build(spec))
    quantize = {value.name for value in open_session(bundle.graph("quantize")).get_outputs()}
    assert {"table.weight.float", "head.weight.float", "head.bias.float"} <= quantize
    assert run(bundle, "int8", np.array([0, 6])).shape == (2, 3)


def test_four_bits_leave_fifteen_codes():
    bundle = Bundle.read(build(toy(bits=4)))
    session = open_session(bundle.graph("quantize"))
    shared = bundle.layout.split(bundle.initial)
    results = dict(zip([o.name for o in session.get_outputs()], session.run(None, shared), strict=True))
    codes = np.concatenate([a.reshape(-1) for a in results.values() if a.dtype == np.int8])
    assert set(np.unique(codes)) <= set(range(-7, 8))
    assert len(np.unique(codes)) > 8


# --- what is refused -----------------------------------------------------------------------------------------
class Unused(Parted):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Undefined(Parted):
    def __init__(self):
        super().__init__()
        self.head.bias.data[0] = float("nan")


class Clashing(Parted):
    def __init__(self):
        super().__init__()
        self.momentum = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"module": module_of(lambda z: (z, z))}, "returns tuple"),
        ({"module": module_of(lambda z: z.sum())}, "returns float32 ()"),
        ({"module": module_of(lambda z: z[:, :2])}, "3 labels and an output of float32 (B, 2)"),
        ({"module": lambda: nn.Linear(5, 3)}, "fails on x of float32 (B, 4)"),
        ({"module": lambda: nn.Linear(4, 3).double()}, "float64"),
        ({"module": nn.ReLU}, "no parameters"),
        ({"module": lambda: 3}, "gives int"),
        ({"module": Unused}, "does not depend on spare.weight, spare.bias"),
        ({"module": Parted, "frozen": ("backbone", "head")}, "all parameters are frozen"),
        ({"loss": lambda output, y: y * 0.0}, "does not depend on 0.weight"),  # noqa: ARG005
        ({"module": Undefined}, "head.bias has initial values that are not finite"),
        ({"module": Clashing}, "calls a tensor 'momentum'"),
        ({"x": Input((4,), torch.float64)}, "x is torch.float64"),
        ({"loss": lambda output, y: output.mean()}, "the loss gives float32 ()"),  # noqa: ARG005
        ({"loss": losses.squared_error}, "the output is float32 (B, 3) and y is int64 (B)"),
        ({"y": Input((2,), torch.int64)}, "int64 (B, 2)"),
        ({"bits": 3}, "3 bits"),
    ],
)
def test_a_spec_that_cannot_be_built_is_refused_with_what_to_do(changed, said):
    with pytest.raises(ConfigError) as caught:
        build(toy(**changed))
    assert said in caught.value.message
    assert caught.value.hint


def test_building_twice_gives_the_same_bytes():
    assert build(toy(module=Parted)) == build(toy(module=Parted))


def test_a_plain_model_asks_nothing_new_of_a_device():
    """Its bundle has none of the fields that older devices do not know."""
    data = build(toy(optimizer=Sgd(learning_rate=0.1)))
    assert not any(field in data for field in (b'"feeds"', b'"better"', b"personal.f32"))
