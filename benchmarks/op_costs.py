"""Time of single layers with their gradients: compiled for onnxruntime against eager torch, one thread.

A case is one layer in training: forward, then the gradients of its input and parameters. What `models/ops/` chooses
(say, `MAX_WHOLE` in banded.py) was chosen by such figures. Both take turns; it is the processor's time that counts, so
other programs disturb it less.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from figures import parse_arguments, print_result, setting, spread
from torch import Tensor, nn
from torch.func import functional_call

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the workshop is not installed: it lives in the checkout

from edge_agent.trainer import open_session, run
from models.quantization import batch_norm
from models.to_onnx import export

Turn = Callable[[], object]


def depthwise(channels: int, stride: int = 1) -> nn.Conv2d:
    """A window of 3 by 3 for each channel."""
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


# Layer, and the shape of one example of its input.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "3x3, 1 to 16, stride 2": (lambda: nn.Conv2d(1, 16, 3, 2, 1, bias=False), (1, 28, 28)),
    "3x3, 16 to 32": (lambda: nn.Conv2d(16, 32, 3, padding=1, bias=False), (16, 14, 14)),
    "1x1, 32 to 64, 14 by 14": (lambda: nn.Conv2d(32, 64, 1, bias=False), (32, 14, 14)),
    "1x1, 64 to 128, 7 by 7": (lambda: nn.Conv2d(64, 128, 1, bias=False), (64, 7, 7)),
    "depthwise, 64, 7 by 7": (lambda: depthwise(64), (64, 7, 7)),
    "depthwise, 32, 14 by 14": (lambda: depthwise(32), (32, 14, 14)),
    "depthwise, 32, 14 by 14, stride 2": (lambda: depthwise(32, 2), (32, 14, 14)),
    "depthwise, 16, 28 by 28": (lambda: depthwise(16), (16, 28, 28)),
    "series, 3, 32 to 64": (lambda: nn.Conv1d(32, 64, 3, padding=1), (32, 32)),
    "series, depthwise 5, 32": (lambda: nn.Conv1d(32, 32, 5, padding=2, groups=32), (32, 64)),
    "batch normalisation": (lambda: nn.BatchNorm2d(32), (32, 14, 14)),
    "ReLU": (nn.ReLU, (32, 14, 14)),
    "max pooling 2": (lambda: nn.MaxPool2d(2), (16, 28, 28)),
    "max pooling 3, stride 2": (lambda: nn.MaxPool2d(3, 2, 1), (16, 28, 28)),
    "average pooling 2": (lambda: nn.AvgPool2d(2), (16, 28, 28)),
}


def turns(make: Callable[[], nn.Module], shape: tuple[int, ...], batch: int) -> dict[str, Turn]:
    """The layer's step in both; ours has batch normalisation as training graphs have it."""
    module, ours = make(), batch_norm.replaced(nn.Sequential(make()))
    x = torch.randn(batch, *shape, requires_grad=True)
    slope = torch.randn_like(module(x))

    def gradients(given: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {name: given[name].detach().requires_grad_() for name in ("x", *dict(ours.named_parameters()))}
        state = {**dict(ours.named_buffers()), **{n: t for n, t in leaves.items() if n != "x"}}
        out = functional_call(ours, state, (leaves["x"],))
        found = torch.autograd.grad(out, list(leaves.values()), given["slope"])
        return {"out": out.detach(), **{f"{n}.gradient": g for n, g in zip(leaves, found, strict=True)}}

    given = {"x": x.detach(), "slope": slope, **{name: p.detach() for name, p in ours.named_parameters()}}
    one = {**given, "x": given["x"][:1], "slope": slope[:1]}
    session = open_session(export(gradients, one, {}, ("x", "slope")), threads=1)
    feeds = {name: tensor.numpy() for name, tensor in given.items()}
    learns = [x, *module.parameters()]
    return {
        "onnxruntime": lambda: run(session, None, feeds),
        "torch": lambda: torch.autograd.grad(module(x), learns, slope),
    }


def measure(contenders: dict[str, Turn], steps: int) -> dict[str, list[float]]:
    """Microseconds of processor time of each step, the contenders in turn."""
    for turn in contenders.values():
        for _ in range(5):
            turn()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(steps):
        for name, turn in contenders.items():
            started = time.process_time()
            turn()
            times[name].append((time.process_time() - started) * 1e6)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each contender")
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument("--batch", type=int, default=32, help="examples in a step")
    options = parse_arguments(parser)
    torch.set_num_threads(1)
    table: list[list[object]] = [
        ["us a step", "onnxruntime, fastest", "torch, fastest", "ratio of fastest", "ratio of medians"]
    ]
    figures = {}
    for name, (make, shape) in CASES.items():
        if options.case not in name:
            continue
        times = {
            who: spread(values) for who, values in measure(turns(make, shape, options.batch), options.steps).items()
        }
        figures[name] = times
        ours, theirs = times["onnxruntime"], times["torch"]
        ratios = [f"{ours[key] / theirs[key]:.2f}" for key in ("min", "median")]
        table.append([name, f"{ours['min']:.0f}", f"{theirs['min']:.0f}", *ratios])
    result = {"setting": setting("torch", "onnxruntime", "numpy"), "batch": options.batch, "microseconds": figures}
    print_result(result, [table], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
