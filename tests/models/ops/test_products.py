"""Linear layers, matrix products, attention, and recurrent layers as torch unrolls them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.models.ops.compare import check, check_module, num_nodes, numbers, of_module


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
def test_a_linear_layer_on_inputs_of_any_rank(bias, shape):
    check_module(nn.Linear(6, 3, bias=bias), shape)


def test_a_linear_layer_and_its_gradients_take_few_nodes():
    """Forward 1, gradients 3; the other six weigh the output's elements, for the test."""
    assert num_nodes(check_module(nn.Linear(6, 3), (6,))) <= 10


PRODUCTS = {
    "matmul": lambda x, w: x @ w,
    "transposed": lambda x, w: x @ x.transpose(1, 2) @ (x @ w),
    "bmm": lambda x, w: torch.bmm(x @ w, x.transpose(1, 2)),
    "baddbmm": lambda x, w: torch.baddbmm(x @ w, x @ x.transpose(1, 2), x, beta=0.5, alpha=2),
    "addmm": lambda x, w: torch.addmm(w[0], x.flatten(0, 1), w, beta=0.5, alpha=2),
    "vector": lambda x, w: x @ w[0],
    "einsum": lambda x, w: torch.einsum("bti,ij,bsj->bts", x, w, x),
    "four dimensions": lambda x, w: (
        (x @ w).unflatten(2, (2, 3)).transpose(1, 2) @ x.unflatten(2, (2, 3)).permute(0, 2, 3, 1)
    ),
    "attention": lambda x, w: F.scaled_dot_product_attention(x[:, None] @ w, x[:, None], x[:, None]),
    "causal": lambda x, w: F.scaled_dot_product_attention(x[:, None] @ w, x[:, None], x[:, None], is_causal=True),
    "masked": lambda x, w: F.scaled_dot_product_attention(x @ w, x, x, attn_mask=torch.ones(4, 4).tril().bool()),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_and_its_gradient(name):
    check(lambda given: PRODUCTS[name](given["x"], given["w"]), {"w": 0.4 * numbers((6, 6), seed=1)})


class SelfAttention(nn.Module):
    """A small block: attention, a residual connection, a norm."""

    def __init__(self, heads, **options):
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(6, heads, batch_first=True), nn.LayerNorm(6)
        self.options = options

    def forward(self, x):
        return self.norm(x + self.attention(x, x, x, **self.options)[0])


BLOCKS = {
    "attention": lambda: SelfAttention(2, need_weights=False),
    "attention with its weights": lambda: SelfAttention(3),
    "attention to the past": lambda: SelfAttention(1, attn_mask=torch.ones(4, 4).triu(1).bool()),
    "transformer layer": lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_and_its_gradient(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        check_module(BLOCKS[name](), rtol=2e-5)


class Last(nn.Module):
    """A recurrent layer's last output."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0][:, -1]


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "bias": False}])
def test_a_recurrent_layer_as_torch_unrolls_it(kind, options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        check_module(Last(kind(6, 5, batch_first=True, **options)), rtol=2e-5)


def test_64_steps_are_as_exact_as_four():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = Last(nn.GRU(3, 4, batch_first=True))
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    check(of_module(layer), parameters, shape=(64, 3), rtol=5e-5, slopes=False)
