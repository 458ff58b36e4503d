"""Values picked by number, and gradients summed where several picks were of one value."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.models.ops.compare import check, check_gradient, check_same, numbers

INDEXING = {
    "list": lambda x, _n: x[:, [0, 2, 2]],
    "from the end": lambda x, _n: x[:, :, [-1, 0]],
    "two lists": lambda x, _n: x[:, [0, 2, 2], [1, 3, 3]],
    "lists that lie apart": lambda x, _n: x.unflatten(2, (2, 3))[:, [0, 1], :, [2, 2]],
    "one of each example": lambda x, n: x[torch.arange(x.shape[0]), n],
    "a value of each example": lambda x, n: x[torch.arange(x.shape[0]), n, n + 1],
    "grid": lambda x, _n: x[:, torch.tensor([[0], [3]]), torch.tensor([[1, 2], [0, -1]])],
    "gather": lambda x, n: x.gather(1, n[:, None, None].expand(-1, 2, 6)),
    "index select": lambda x, _n: x.index_select(2, torch.tensor([5, 0, 0])),
    "scatter add": lambda x, n: torch.zeros_like(x).scatter_add(1, n[:, None, None].expand(-1, 4, 6), x),
    "one hot": lambda x, n: F.one_hot(n, 4).to(x.dtype) @ x.square().sum(0),
    "written where a mask is": lambda x, _n: x.clone().masked_fill_(x > 0.5, 0.5),
}


@pytest.mark.parametrize("name", INDEXING)
def test_an_index_and_its_gradient(name):
    batched = {
        "x": lambda b: numbers((b, 4, 6), seed=b),
        "n": lambda b: numbers((b,), torch.int64, seed=b, high=4),
    }

    def function(given):
        return INDEXING[name](given["x"], given["n"])

    check_same(function, batched, learns=("x",))
    check_gradient(function, {name: draw(3) for name, draw in batched.items()}, ("x",))


@pytest.mark.parametrize("rows", [10, 50])  # a product with ones and zeros, and a scatter
@pytest.mark.parametrize("padding", [None, 1, -1])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_an_embedding_and_its_gradient(rows, padding, shape):
    layer = nn.Embedding(rows, 4, padding_idx=padding)
    draw = lambda b: numbers((b, *shape), torch.int64, seed=b, high=rows)  # noqa: E731
    table = {"table": numbers((rows, 4))}

    def function(given):
        return F.embedding(given["x"], given["table"], padding_idx=layer.padding_idx)

    check_same(function, {"x": draw}, table, ("table",))
    if padding is None:  # a padding row has a slope, but is not to learn
        check_gradient(function, {"x": draw(3), **table}, ("table",))


def test_a_table_whose_rows_are_picked_by_batch_and_user():
    """Two embeddings multiplied: matrix factorisation."""
    batched = {"x": lambda b: numbers((b, 2), torch.int64, seed=b, high=40)}
    tables = {"users": numbers((40, 5)), "items": numbers((60, 5), seed=1)}

    def function(given):
        users, items = (F.embedding(given["x"][:, i], given[n]) for i, n in enumerate(("users", "items")))
        return (users * items).sum(1)

    check_same(function, batched, tables, tuple(tables))
    check_gradient(function, {"x": batched["x"](4), **tables}, tuple(tables))


def test_a_bag_of_embeddings():
    check(
        lambda given: F.embedding(torch.tensor([[1, 2, 2], [0, 0, 5]]), given["w"]).mean(1) @ given["x"].mean(0),
        {"w": numbers((6, 4), seed=3)},
        shape=(4, 6),
    )
