"""The catalog's depthwise-separable and recurrent networks: each sees its data as it should, and learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fl_protocol.bundle import Bundle
from models.fashion_dscnn.model import DEVIATION, MEAN, FashionDscnn
from models.fashion_dscnn.model import Config as FashionConfig
from models.gates import Bench, open_session
from models.har_gru.model import Config as GruConfig
from models.har_gru.model import HarGru
from models.quantization import fake_quantized
from models.spec import load

SHIPPED = Path(__file__).parents[2] / "anabranch" / "data"
# Each on validation after 300 steps of pooled examples.
LEARNT = {"fashion_dscnn": 0.7, "har_gru": 0.85}


@pytest.fixture(scope="module", params=LEARNT)
def bench(request):
    return Bench(Bundle.read((SHIPPED / f"{request.param}.bundle").read_bytes()), load(request.param))


def test_a_few_hundred_steps_teach_it(bench):
    session = open_session(bench.bundle.graph("evaluate"))
    x, y = (part[:1000] for part in bench.examples.validation)
    given = {value.name: {**bench.trained, "x": x, "y": y}[value.name] for value in session.get_inputs()}
    assert float(session.run(["correct"], given)[0]) / len(y) >= LEARNT[bench.spec.name]


# --- fashion_dscnn -----------------------------------------------------------------------------------------
def test_pictures_are_scaled_by_the_training_pictures():
    pixels = load("fashion_dscnn").examples().train[0]
    np.testing.assert_allclose(pixels.mean(), MEAN, atol=1e-3)
    np.testing.assert_allclose(pixels.std(), DEVIATION, atol=1e-3)


def test_a_block_is_a_convolution_over_each_plane_alone_and_one_across_channels():
    convolutions = [layer for layer in FashionDscnn(FashionConfig()).blocks.modules() if isinstance(layer, nn.Conv2d)]
    planes, across = convolutions[::2], convolutions[1::2]
    assert all(layer.groups == layer.in_channels == layer.out_channels for layer in planes)
    assert all((layer.kernel_size, layer.groups) == ((1, 1), 1) for layer in across)


def test_every_batch_normalisation_is_folded_into_the_convolution_before_it():
    module = fake_quantized(FashionDscnn(FashionConfig()))
    norms = [name for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    folded = [layer.place.norm for layer in module.modules() if hasattr(layer, "place") and layer.place.norm]
    assert sorted(folded) == sorted(norms)
    assert len(norms) == 7


# --- har_gru -----------------------------------------------------------------------------------------------
def test_signals_are_scaled_by_the_training_people():
    config, signals = GruConfig(), load("har_gru").examples().train[0].reshape(-1, 9).astype(np.float64)
    np.testing.assert_allclose(config.mean, signals.mean(0), atol=0.02)
    np.testing.assert_allclose(config.deviation, signals.std(0), atol=0.02)


def test_it_reads_a_window_in_its_order_sixteen_steps_of_eight_samples():
    model, seen = HarGru(GruConfig()).eval(), []
    model.gru.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 128, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        forwards, backwards = model(x), model(x.flip(1))
    assert seen[0].shape == (2, 16, 72)
    scaled = (x - model.mean) / model.deviation
    torch.testing.assert_close(seen[0][:, 3], scaled[:, 24:32].flatten(1))
    assert not torch.allclose(forwards, backwards)
