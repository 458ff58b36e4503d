"""The int8 graph, run by onnxruntime, predicts what the fake-quantized network does, and runs on int8 kernels."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from models.quantization import fake_quantized, int8_codes
from tests.models.quantization.networks import NETWORKS, examples, int8_graph, run, state, trained

KERNELS = {
    "perceptron": {"QGemm": 3},
    "over time": {"QLinearConv": 2, "QGemm": 1},
    "residual": {"QLinearConv": 3, "QGemm": 1},
    "pictures": {"QLinearConv": 3, "QGemm": 1},
    "pooled": {"QLinearConv": 1, "QGemm": 1},
    "skipping": {"QLinearConv": 2, "QGemm": 1},
}
FLOAT_STEMS = ("residual", "pictures", "pooled")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_int8_and_fake_quantized_predictions_agree(name, bits):
    make, shape = NETWORKS[name]
    network = trained(make, shape, bits)
    x, y = examples(shape, 1000, seed=99)
    with torch.no_grad():
        fake = network(x).numpy()
    ours = run(int8_graph(network, shape, fake_quantized(make(), bits)), x)
    assert (fake.argmax(1) == y.numpy()).mean() > 0.6, "an untrained network would agree with anything"
    assert (ours.argmax(1) == fake.argmax(1)).mean() >= 0.995
    # Apart from single codes where float32 sums and integers round a tie apart, outputs are the same.
    assert np.quantile(np.abs(ours - fake), 0.9) <= 1e-4 * np.abs(fake).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weighted_layer_runs_on_an_int8_kernel_and_no_norm_is_left(name, tmp_path):
    """All but a first convolution of fewer than four channels, whose float kernel is faster (docs/quantization.md)."""
    make, shape = NETWORKS[name]
    network = trained(make, shape, steps=3)
    run(int8_graph(network, shape, fake_quantized(make())), examples(shape, 2)[0], tmp_path / "optimized.onnx")
    used = Counter(node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node)
    assert {kernel: used[kernel] for kernel in KERNELS[name]} == KERNELS[name]
    assert not {"Gemm", "MatMul", "FusedGemm", "Sqrt", "BatchNormalization"} & set(used)
    assert used["Conv"] + used["FusedConv"] == (name in FLOAT_STEMS)


def test_a_pooling_after_the_float_convolution_pools_floats(tmp_path):
    """onnxruntime would quantize before it, and pool bytes in the one layout in which it does so slowly."""
    make, shape = NETWORKS["pooled"]
    network = trained(make, shape, steps=3)
    run(int8_graph(network, shape, fake_quantized(make())), examples(shape, 2)[0], tmp_path / "optimized.onnx")
    nodes = onnx.load(str(tmp_path / "optimized.onnx")).graph.node
    made_by = {output: node.op_type for node in nodes for output in node.output}
    pools = [node for node in nodes if node.op_type == "MaxPool"]  # not NhwcMaxPool, the one for bytes
    assert len(pools) == 1
    assert made_by[pools[0].input[0]] in ("Conv", "FusedConv", "ReorderOutput")  # the last in a blocked layout


def test_a_rectified_output_leaves_the_relu_to_its_grid():
    make, shape = NETWORKS["residual"]
    graph = onnx.load_from_string(int8_graph(trained(make, shape, steps=3), shape, fake_quantized(make())))
    # After the sum and the depthwise norm; the stem and the pointwise convolution have grids that begin at 0.
    assert [node.op_type for node in graph.graph.node].count("Relu") == 2


def test_four_bits_use_fifteen_codes_of_the_same_bytes():
    make, shape = NETWORKS["perceptron"]
    network = trained(make, shape, bits=4)
    codes = int8_codes(network, state(network))
    weights = [tensor for name, tensor in codes.items() if name.endswith("weight_int8")]
    assert len(weights) == 3
    for weight in weights:
        assert weight.dtype == torch.int8
        assert weight.abs().amax() == 7


def test_what_is_kept_float_is_stored_as_it_is():
    make, shape = NETWORKS["perceptron"]
    network = trained(make, shape, keep_float=("5",))
    codes = int8_codes(network, state(network))
    torch.testing.assert_close(codes["5.weight"], network.get_submodule("5").weight.detach())
    assert not [name for name in codes if name.startswith("5.") and name not in ("5.weight", "5.bias")]
    fresh = fake_quantized(make(), keep_float=("5",))
    x, _ = examples(shape, 200, seed=5)
    with torch.no_grad():
        np.testing.assert_allclose(run(int8_graph(network, shape, fresh), x), network(x).numpy(), atol=1e-2)
