"""Convolutions of every shape and their gradients, whichever way of writing them is chosen, are torch's in float64."""

import itertools

import onnx
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from fl_protocol.errors import ConfigError
from models.to_onnx import export
from tests.models.ops.compare import check_gradient, check_module, check_same, numbers, of_module

CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 4, 3, padding=1), (7, 9)),
    "without bias": (nn.Conv2d(3, 4, 3, bias=False), (6, 6)),
    "kernel, stride, padding and dilation all uneven": (nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 0), (1, 2)), (8, 7)),
    "stride that leaves rows over": (nn.Conv2d(2, 3, 3, stride=3), (8, 10)),
    "groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (5, 6)),
    "pointwise": (nn.Conv2d(5, 4, 1), (4, 3)),
    "pointwise with stride and padding": (nn.Conv2d(4, 4, 1, stride=2, padding=1, groups=2), (5, 5)),
    "over the whole plane": (nn.Conv2d(3, 4, (4, 5)), (4, 5)),
    "padding same": (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (7, 7)),
    "depthwise, small plane": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (7, 7)),
    "depthwise, small plane, stride": (nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False), (14, 14)),
    "depthwise in strips": (nn.Conv2d(3, 3, 3, padding=1, groups=3), (14, 14)),
    "depthwise in strips, uneven": (nn.Conv2d(3, 3, (2, 3), (1, 1), (0, 2), (2, 1), groups=3), (16, 13)),
    "depthwise in strips, stride": (nn.Conv2d(3, 3, (3, 5), 2, 1, groups=3), (40, 12)),
    "depthwise, wide plane": (nn.Conv2d(3, 3, 3, padding=1, groups=3), (9, 36)),
    "depthwise, wide plane, stride": (nn.Conv2d(3, 3, 3, 2, 1, groups=3), (9, 37)),
    "many channels": (nn.Conv2d(8, 3, 3, padding=1), (5, 5)),
    "many channels, groups": (nn.Conv2d(16, 4, 3, 2, 1, groups=2), (5, 5)),
    "depthwise, two outputs a channel": (nn.Conv2d(3, 6, 3, padding=1, groups=3), (6, 6)),
    "series": (nn.Conv1d(3, 5, 3, 2, 1, 2), (11,)),
    "series, pointwise": (nn.Conv1d(3, 5, 1), (9,)),
    "series, depthwise": (nn.Conv1d(4, 4, 3, padding=1, groups=4), (16,)),
    "series, depthwise, long": (nn.Conv1d(4, 4, 5, 2, 2, groups=4), (160,)),
    "transposed": (nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1), (5, 6)),
    "transposed, groups": (nn.ConvTranspose2d(4, 6, 2, 2, groups=2, bias=False), (3, 4)),
    "transposed, depthwise": (nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=4), (4, 4)),
    "transposed, pointwise": (nn.ConvTranspose2d(4, 3, 1), (4, 4)),
    "transposed series": (nn.ConvTranspose1d(3, 2, 4, 2, 1), (6,)),
}


def drawn(channels, sizes):
    return lambda batch: numbers((batch, channels, *sizes), seed=batch)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_and_its_gradients_at_every_batch_size(name):
    module, sizes = CONVOLUTIONS[name]
    check_module(module, (module.in_channels, *sizes))


@st.composite
def convolutions(draw, rank, depthwise):
    """A layer and sizes of its input that give it at least one place."""
    group = draw(st.integers(2, 3)) if depthwise else draw(st.integers(1, 2))
    each = 1 if depthwise else draw(st.integers(1, 2))
    kernel, stride, dilation = (tuple(draw(st.integers(1, top)) for _ in range(rank)) for top in (4, 3, 2))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    sizes = tuple(draw(st.integers(1, 17)) for _ in range(rank))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(all(n + 2 * p >= r for n, p, r in zip(sizes, padding, reach, strict=True)))
    layer = nn.Conv2d if rank == 2 else nn.Conv1d
    outputs = group if depthwise else group * draw(st.integers(1, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 99)))
        return layer(group * each, outputs, kernel, stride, padding, dilation, group), sizes


@pytest.mark.parametrize(("rank", "depthwise"), [*itertools.product((1, 2), (False, True))])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_kernel_stride_padding_dilation_and_groups(rank, depthwise, data):
    module, sizes = data.draw(convolutions(rank, depthwise))
    learns = ("x", *(name for name, _ in module.named_parameters()))
    others = {name: p.detach() for name, p in module.named_parameters()}
    x = drawn(module.in_channels, sizes)
    check_same(of_module(module), {"x": x}, others, learns, batches=(6, 1))
    check_gradient(of_module(module), {"x": x(2), **others}, learns, samples=2)


def graph_of(module, x, stored):
    state = {name: p.detach() for name, p in module.named_parameters()}
    function = of_module(module)
    step = lambda given: {"out": function(given)}  # noqa: E731
    graph = export(step, {"x": x}, state) if stored else export(step, {"x": x, **state}, {})
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


def test_a_depthwise_convolution_stays_one_where_its_weight_is_stored():
    """onnxruntime then lays the weight out beforehand, and int8 graphs need the very operator."""
    module = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    assert graph_of(module, torch.zeros(1, 4, 7, 7), stored=True) == ["Conv"]
    assert "Conv" not in graph_of(module, torch.zeros(1, 4, 7, 7), stored=False)


def test_gradients_that_nobody_asks_for_are_not_computed():
    """The first layer's input needs none."""
    module = nn.Conv2d(2, 3, 3)
    learns = ("weight", "bias")
    others = {name: p.detach() for name, p in module.named_parameters()}
    graph = check_same(of_module(module), {"x": drawn(2, (6, 6))}, others, learns)
    assert "ConvTranspose" not in [node.op_type for node in onnx.load_from_string(graph).graph.node]


def test_three_dimensions_are_refused_with_a_hint():
    with pytest.raises(ConfigError, match="3 dimensions") as error:
        check_module(nn.Conv3d(1, 1, 2), (1, 3, 3, 3))
    assert "Conv2d" in error.value.hint
