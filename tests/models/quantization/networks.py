"""Small networks to quantize, trained a little, and what onnxruntime makes of their int8 versions."""

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from models.quantization import fake_quantized, int8, int8_codes, measuring_layers
from models.to_onnx import export


class Residual(nn.Module):
    """A picture of `channels`; a residual block, a depthwise-separable one, their mean over positions."""

    def __init__(self, channels=1):
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.stem_norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False)
        self.deep_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(8, 16, 1)
        self.classify = nn.Linear(16, 3)

    def forward(self, x):
        h = F.relu(self.stem_norm(self.stem(x)))
        deep = self.deep_norm(self.deep(h))
        deep += h  # in place, as many write it
        h = F.relu(deep, inplace=True)
        h = torch.relu(self.depthwise_norm(self.depthwise(h)))
        h = self.pointwise(h).relu()
        return self.classify(h.mean((2, 3)))


def perceptron():
    return nn.Sequential(
        nn.Linear(12, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def over_time():
    return nn.Sequential(
        *(nn.Conv1d(6, 8, 5, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(48, 3)),
    )


def pooled():
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(72, 3)),
    )


class Skipping(nn.Module):
    """What a maximum pooling takes goes around it as well, as in a U-Net."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.classify = nn.Linear(16, 3)

    def forward(self, x):
        h = F.relu(self.first(x))
        inner = F.relu(self.inner(F.max_pool2d(h, 2)))
        return self.classify(torch.cat([h.mean((2, 3)), inner.mean((2, 3))], 1))


def pictures():
    return Residual(3)


# name: (the network, the shape of an example)
NETWORKS = {
    "perceptron": (perceptron, (12,)),
    "over time": (over_time, (6, 19)),
    "residual": (Residual, (1, 12, 12)),
    "pictures": (pictures, (3, 12, 12)),
    "pooled": (pooled, (1, 12, 12)),
    "skipping": (Skipping, (4, 12, 12)),
}


def examples(shape, size, seed=0):
    """Three classes, each around its own pattern."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(7).normal(size=(3, *shape))
    y = rng.integers(0, 3, size)
    return torch.tensor(patterns[y] + 1.2 * rng.normal(size=(size, *shape)), dtype=torch.float32), torch.tensor(y)


def trained(make, shape, bits=8, steps=40, **settings):
    """A fake-quantized network after a few steps, in evaluation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = fake_quantized(make(), bits, **settings).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for step in range(steps):
        x, y = examples(shape, 32, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        follow(network)
    return network.eval()


def follow(network):
    """Take on what the layers observed."""
    for _, layer in measuring_layers(network):
        for name, value in layer.observed.items():
            getattr(layer, name).copy_(value.detach())


def state(network):
    return {name: t.detach() for name, t in (*network.named_parameters(), *network.named_buffers())}


def int8_graph(network, shape, fresh):
    """The int8 model as a bundle comes to it: the graph of an untrained one, filled with the trained one's codes."""
    version = int8(fresh).eval()
    stored = state(version) | int8_codes(network, state(network))

    def output(given):
        return {"output": functional_call(version, {n: t for n, t in given.items() if n != "x"}, (given["x"],))}

    return export(output, {"x": torch.zeros(1, *shape)}, stored)


def run(graph, x, optimized=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})[
        0
    ]
