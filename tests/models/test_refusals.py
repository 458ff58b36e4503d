"""What cannot be compiled is named: the op, the layer of the author's network, and what to use instead."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from fl_protocol.errors import ConfigError
from models.build import compile_graphs
from models.spec import Input, Splits
from models.step import Step
from models.to_onnx import export
from tests.models.specs import toy


class Applied(nn.Module):
    """A layer that applies a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(layer):
    features = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), layer)
    return nn.Sequential(OrderedDict(features=features, classify=nn.Linear(6, 2)))


def compiled(module, loss=lambda out: out.square().mean()):
    """A training step, without its optimizer."""
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def step(given):
        leaves = {name: given[name].detach().requires_grad_() for name in parameters}
        value = loss(functional_call(module, leaves, (given["x"],)))
        return {"loss": value.detach(), "gradient": torch.autograd.grad(value, list(leaves.values()))[0]}

    return export(step, {"x": torch.zeros(1, 6), **parameters}, {})


class Bilinear(nn.Module):
    """Torch's own, of one input."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Bilinear(6, 6, 6)

    def forward(self, x):
        return self.inner(x, x)


@pytest.mark.parametrize(
    ("layer", "op", "where", "instead"),
    [
        (Bilinear(), "aten._trilinear", r"in features\.3\.inner \(Bilinear\)", "two nn.Linear"),
        (Applied(lambda x: torch.fft.rfft(x, 10).abs()), "aten._fft_r2c", r"in features\.3 \(Applied\)", "cosines"),
        (Applied(lambda x: x.sort(1).values), "aten.sort", r"in features\.3 \(Applied\)", "amax"),
        (Applied(lambda x: x.topk(6, 1).values), "aten.topk", r"in features\.3 \(Applied\)", "amax"),
        (Applied(lambda x: x.median(1, keepdim=True).values * x), "aten.median", r"features\.3 \(Applied\)", "mean"),
        (Applied(torch.erfinv), "aten.erfinv", r"in features\.3 \(Applied\)", "models/ops/"),
        (Applied(lambda x: x.cumprod(1)), "aten.cumprod", r"in features\.3 \(Applied\)", "logarithms"),
        (Applied(lambda x: x * torch.rand_like(x)), "aten.rand", r"in features\.3 \(Applied\)", "nn.Dropout"),
        (nn.RReLU(), "aten.", r"in features\.3 \(RReLU\)", ""),
        (Applied(lambda x: nn.functional.dropout(x, 0.5)), "aten.", r"in features\.3 \(Applied\)", "nn.Dropout"),
    ],
)
def test_an_op_without_translation_is_named_with_its_layer_and_a_way_out(layer, op, where, instead):
    with pytest.raises(ConfigError, match=where) as refused:
        compiled(network(layer))
    assert any(name in refused.value.message for name in op.split("|")), refused.value.message
    assert instead in refused.value.hint, refused.value.hint


def test_an_op_of_the_backward_pass_is_named_with_the_layer_whose_gradient_it_is():
    """The forward pass of `prod` can be written, its gradient can not."""
    with pytest.raises(ConfigError, match=r"in the gradient of features\.3 \(Applied\)"):
        compiled(network(Applied(lambda x: x * x.prod(1, keepdim=True))))


def test_an_op_outside_of_all_layers_is_said_to_be_there():
    with pytest.raises(ConfigError, match=r"aten\.erfinv.*, outside of all layers, in the loss"):
        compiled(network(nn.ReLU()), lambda out: torch.erfinv(out.tanh()).sum())


DECIDING = {
    "branch": lambda x: x if x.sum() > 0 else -x,
    "item": lambda x: x * (1 if x.max().item() > 0 else 2),
    "loop": lambda x: [x := x / 2 for _ in range(int(x.abs().amax()))][-1],
    "rows picked by a mask": lambda x: x[x[:, 0] > 0].mean(0) + x,
    "nonzero": lambda x: x + x.nonzero().shape[0],
    "unique": lambda x: x + torch.unique(x.detach()).sum(),
    "values picked by a mask": lambda x: x + x[x > 0].mean(),
}


@pytest.mark.parametrize("name", DECIDING)
def test_what_depends_on_values_is_refused_with_a_way_out(name):
    with pytest.raises(ConfigError, match=r"features\.3 \(Applied\)") as refused:
        compiled(network(Applied(DECIDING[name])))
    assert "torch.where" in refused.value.hint


FIXED = {
    "reshape": lambda x: x.reshape(6, -1),
    "a number": lambda x: x + torch.arange(int(x.shape[0]))[:, None],
    "take_along_dim, inside torch": lambda x: (
        torch.take_along_dim(x[:, :, None], x.long()[:, :1, None] * 0, 1)[:, 0] + x
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_batch_size_that_is_baked_in_is_refused(name):
    """The exporter traces a batch of 6; a graph that would work for that alone must not come out."""
    with pytest.raises(ConfigError, match="batch of 6 only"):
        compiled(network(Applied(FIXED[name])))


def test_float64_is_refused_where_it_is():
    with pytest.raises(ConfigError, match=r"float64, in features\.3 \(Applied\)"):
        compiled(network(Applied(lambda x: (x.double() * 2).float())))


def test_batch_norm_that_the_workshop_did_not_replace_is_refused():
    with pytest.raises(ConfigError, match=r"features\.3 \(Applied\)") as refused:
        compiled(network(Applied(lambda x: nn.functional.batch_norm(x, torch.zeros(6), torch.ones(6), training=True))))
    assert "nn.BatchNorm1d" in refused.value.hint


def test_a_write_into_a_part_of_a_tensor_is_refused_when_the_whole_is_read_later():
    def written(x):
        y = x.clone()
        y[:, 0] = 0
        return y

    with pytest.raises(ConfigError, match=r"writes into a part.*features\.3 \(Applied\)") as refused:
        compiled(network(Applied(written)))
    assert "torch.cat" in refused.value.hint


def test_a_network_that_fails_says_in_which_layer():
    with pytest.raises(ConfigError, match=r"features\.3 \(Linear\)") as refused:
        compiled(network(nn.Linear(5, 6)))
    assert "shape" in refused.value.hint


def test_hooks_are_gone_after_a_refusal():
    before = len(torch.nn.modules.module._global_forward_hooks)
    with pytest.raises(ConfigError):
        compiled(network(Applied(torch.erfinv)))
    assert len(torch.nn.modules.module._global_forward_hooks) == before


class WrittenOut(nn.Module):
    """A transformer's layer as the refusal of torch's own says to write it."""

    def __init__(self):
        super().__init__()
        self.attention, self.first, self.last = (
            nn.MultiheadAttention(4, 2, batch_first=True),
            *map(nn.LayerNorm, (4, 4)),
        )
        self.widen, self.narrow = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        h = self.first(x + self.attention(x, x, x, need_weights=False)[0])
        return self.last(h + self.narrow(self.widen(h).relu()))


def of_sequences(block, **fields):
    """A model of sequences of four numbers, (B, 5, 4), with that block."""
    examples = Splits(*[(np.zeros((4, 5, 4), np.float32), np.zeros(4, np.int64))] * 3)
    layers = lambda: nn.Sequential(OrderedDict(block=block(), flat=nn.Flatten(), classify=nn.Linear(20, 3)))  # noqa: E731
    return toy(module=layers, x=Input((5, 4), torch.float32), examples=lambda: examples, **fields)


def torchs_block(**options):
    return nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, **options)


@pytest.mark.parametrize("block", [torchs_block, lambda: nn.TransformerEncoder(torchs_block(), 2)])
def test_torchs_transformer_layer_is_refused_before_anything_runs_with_what_to_write_instead(block):
    with pytest.raises(ConfigError, match=r"^block(\.layers\.0)? \(TransformerEncoderLayer\)") as refused:
        _ = Step(of_sequences(block)).module
    assert all(f"nn.{part}" in refused.value.hint for part in ("MultiheadAttention", "LayerNorm", "Linear"))


@pytest.mark.parametrize(
    "spec",
    [of_sequences(WrittenOut), of_sequences(lambda: torchs_block(dropout=0.0), keep_float=("block",))],
    ids=["written out", "kept in float"],
)
def test_both_ways_out_of_that_refusal_compile(spec):
    assert set(compile_graphs(Step(spec), ("train", "int8"))) == {"train", "int8"}
