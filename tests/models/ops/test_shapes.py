"""Views, slices and joins, with gradients that go back to where the values came from."""

import pytest
import torch
from hypothesis import assume, settings
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from models.to_onnx import export
from tests.models.ops.compare import check, num_nodes, numbers

SHAPES = {
    "transpose": lambda x: x.transpose(1, 2) * x.mT,
    "permute there and back": lambda x: x.permute(2, 0, 1).permute(1, 2, 0) * x,
    "batch moved": lambda x: x.permute(1, 0, 2).reshape(-1, 6).reshape(4, -1, 6).permute(1, 0, 2),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(2, (2, 3)),
    "squeeze": lambda x: x[:, :1].squeeze(1) * x.unsqueeze(2).unsqueeze(-1).squeeze(-1).squeeze(2)[:, 1],
    "stack": lambda x: torch.stack([x, 2 * x, x.square()], 1),
    "cat": lambda x: torch.cat([x, x.square()[:, :2], x[:, 3:]], 1),
    "split": lambda x: sum(f * part for f, part in enumerate(torch.split(x, 2, 2), 1)),
    "split unevenly": lambda x: torch.cat([p.square() * f for f, p in enumerate(torch.split(x, [1, 3, 2], 2), 2)], 2),
    "chunk": lambda x: x.chunk(2, 1)[1] * x.chunk(2, 1)[0],
    "one chunk": lambda x: x.chunk(1, 1)[0],
    "select": lambda x: x[:, 1] * x[:, -1] + x[:, :, 2:].select(1, 0).sum(1, keepdim=True),
    "flip": lambda x: x.flip(1) * x.flip(2).flip(1, 2),
    "roll": lambda x: x.roll(1, 1) * x,
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "cut by padding": lambda x: F.pad(x, (-1, 2)),
    "repeat": lambda x: x.repeat(1, 2, 3),
    "repeat with a new dimension": lambda x: x[:, 0].repeat(2, 1, 1).permute(1, 0, 2),
    "repeat interleaved": lambda x: x.repeat_interleave(2, 1),
    "expand": lambda x: x[:, :, None].expand(-1, -1, 3, -1),
    "every second": lambda x: x[:, ::2],
    "every third from the second on": lambda x: x[:, :, 1::3],
    "pixel shuffle": lambda x: x.reshape(-1, 2, 2, 6).permute(0, 2, 1, 3).reshape(-1, 4, 6),
    "windows": lambda x: x.unfold(1, 2, 1),
    "last windows": lambda x: x.unfold(2, 3, 2),
    "outer": lambda x: torch.einsum("bti,bsi->bts", x, x),
    "upsample": lambda x: F.interpolate(x[:, None], scale_factor=2, mode="nearest").flatten(1),
    "triangle": lambda x: x * torch.ones(4, 6).tril(),
    "movedim": lambda x: x.movedim(2, 1).contiguous(),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_and_its_gradient(name):
    check(lambda given: SHAPES[name](given["x"] * given["w"]), {"w": numbers((4, 6), seed=1)})


@settings(max_examples=40, deadline=None)
@drawn(
    axis=st.sampled_from([1, 2]),
    start=st.integers(-8, 8) | st.none(),
    end=st.integers(-8, 8) | st.none(),
    step=st.integers(1, 4),
)
def test_any_slice_and_its_gradient(axis, start, end, step):
    cut = (slice(None),) * axis + (slice(start, end, step),)
    assume(torch.zeros(1, 5, 7)[cut].numel())
    check(lambda given: given["x"][cut], shape=(5, 7), slopes=False)


@settings(max_examples=25, deadline=None)
@drawn(order=st.permutations([0, 1, 2, 3]), sizes=st.tuples(*[st.integers(1, 3)] * 3))
def test_any_permutation_even_of_dimensions_of_size_one(order, sizes):
    """Some of these are but another shape, and written as such."""
    back = [order.index(d) for d in range(4)]
    check(lambda given: (given["x"].permute(order).square()).permute(back).flatten(1), shape=sizes, slopes=False)


def test_a_chain_of_views_is_one_node():
    graph = export(
        lambda g: {"out": g["x"].flatten(1).unsqueeze(1).reshape(-1, 2, 3).exp()}, {"x": numbers((1, 6))}, {}
    )
    assert num_nodes(graph) == 2


def test_the_batch_size_in_a_shape_is_no_number():
    """A reshape that the author wrote with x.shape[0] works at every batch size."""
    check(lambda given: given["x"].reshape(given["x"].shape[0] * 2, 2, 6).sum(1).reshape(given["x"].shape[0], -1))
