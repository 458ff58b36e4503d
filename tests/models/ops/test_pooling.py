"""Pooling and its gradients are torch's in float64; of several largest values the first one gets the gradient."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from fl_protocol.errors import ConfigError
from tests.models.ops.compare import check_module, check_same, numbers, of_module

POOLINGS = {
    "max": (nn.MaxPool2d(2), (6, 8)),
    "max, rows left over": (nn.MaxPool2d((2, 3)), (7, 7)),
    "max, overlapping": (nn.MaxPool2d(3, 2, 1), (7, 8)),
    "max, gaps": (nn.MaxPool2d(2, 3), (8, 8)),
    "max, dilated": (nn.MaxPool2d(2, 1, dilation=2), (6, 6)),
    "max, ceil_mode where nothing is left over": (nn.MaxPool2d(2, ceil_mode=True), (6, 6)),
    "max, series": (nn.MaxPool1d(2), (9,)),
    "max, series, overlapping": (nn.MaxPool1d(3, 2, 1), (9,)),
    "max over everything": (nn.AdaptiveMaxPool2d(1), (5, 4)),
    "max to divisors": (nn.AdaptiveMaxPool2d((2, 3)), (4, 6)),
    "max, series, to divisors": (nn.AdaptiveMaxPool1d(3), (12,)),
    "average": (nn.AvgPool2d(2), (6, 8)),
    "average, rows left over": (nn.AvgPool2d(3), (8, 7)),
    "average, overlapping": (nn.AvgPool2d(3, 2, 1), (7, 8)),
    "average, padding left out": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (7, 8)),
    "average, gaps": (nn.AvgPool2d(2, 3), (8, 9)),
    "average, series": (nn.AvgPool1d(2), (9,)),
    "average, series, overlapping": (nn.AvgPool1d(3, 1, 1, count_include_pad=False), (9,)),
    "average over everything": (nn.AdaptiveAvgPool2d(1), (5, 4)),
    "average to divisors": (nn.AdaptiveAvgPool2d((2, 3)), (4, 6)),
    "average, series, over everything": (nn.AdaptiveAvgPool1d(1), (12,)),
    "average, series, to divisors": (nn.AdaptiveAvgPool1d(4), (12,)),
}


def drawn(sizes, channels=3):
    return lambda batch: numbers((batch, channels, *sizes), seed=batch)


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_and_its_gradient_at_every_batch_size(name):
    module, sizes = POOLINGS[name]
    check_module(module, (3, *sizes))


@pytest.mark.parametrize("module", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3))], ids=str)
def test_of_equal_values_the_first_gets_the_gradient(module):
    """As in torch; behind a ReLU, and among quantized values, there are many."""
    check_same(
        of_module(module), {"x": lambda batch: numbers((batch, 2, 6, 6), seed=batch).round().relu()}, None, ("x",)
    )


@st.composite
def poolings(draw):
    rank = draw(st.integers(1, 2))
    kernel, stride = (tuple(draw(st.integers(1, top)) for _ in range(rank)) for top in (4, 4))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    sizes = tuple(draw(st.integers(1, 9)) for _ in range(rank))
    assume(all(n + 2 * p >= k for n, p, k in zip(sizes, padding, kernel, strict=True)))
    if draw(st.booleans()):
        return (nn.MaxPool2d if rank == 2 else nn.MaxPool1d)(kernel, stride, padding), sizes
    counted = draw(st.booleans())
    return (nn.AvgPool2d if rank == 2 else nn.AvgPool1d)(kernel, stride, padding, count_include_pad=counted), sizes


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(poolings())
def test_any_kernel_stride_and_padding(case):
    module, sizes = case
    check_same(of_module(module), {"x": drawn(sizes)}, None, ("x",), batches=(6, 1))


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override"),
        (nn.AdaptiveAvgPool2d(2), "divide"),
        (nn.AdaptiveMaxPool2d(2), "divide"),
    ],
    ids=str,
)
def test_what_onnx_cannot_pool_is_refused(module, word):
    with pytest.raises(ConfigError, match=word):
        check_module(module, (3, 5, 5))


def test_places_of_the_largest_values_are_refused():
    """Only their gradient is written."""
    with pytest.raises(ConfigError, match="max_pool_indices"):
        check_same(lambda given: nn.MaxPool2d(2, return_indices=True)(given["x"])[1], {"x": drawn((4, 4))})


def test_a_plane_without_a_channel_is_refused():
    with pytest.raises(ConfigError, match="dimensions"):
        check_same(
            lambda given: nn.functional.max_pool2d(given["x"].relu(), 2),
            {"x": lambda b: torch.ones(b, 4, 4)},
            None,
            ("x",),
        )
