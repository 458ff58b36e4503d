"""Time of one training step: the bundle's graph in onnxruntime against the same step in eager torch, one thread each.

The step is forward with fake quantization, loss, backward and SGD with momentum, of the catalog's model on its own
examples. `plain` is what one would write by hand with torch: float32 only, `torch.optim.SGD`. The three take turns, so
that whatever else the machine does falls on all of them.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import parse_arguments, print_result, setting, spread

from edge_agent.trainer import open_session, run
from fl_protocol.bundle import Bundle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the workshop is not installed: it lives in the checkout

from models.build import build
from models.spec import ModelSpec, load
from models.step import Step, build_module

Turn = Callable[[], object]  # one step from the state that the last one left
WARM_UP = 30


def in_onnxruntime(spec: ModelSpec, bundle: Bundle, x: Any, y: Any) -> Turn:
    """As `edge_agent.trainer` takes it, feeding numpy arrays and all."""
    session = open_session(bundle.graph("train"), threads=1)
    step = Step(spec)
    names = [entry.name for entry in step.layout.entries]
    state = {name: tensor.numpy() for name, tensor in step.entries.items()}
    fixed = {"x": x, "y": y, **{name: np.asarray(value, np.float32) for name, value in spec.hyper.items()}}

    def turn() -> None:
        *following, _loss, _correct = run(session, None, {**state, **fixed})
        state.update(zip(names, following, strict=True))

    return turn


def in_torch(spec: ModelSpec, x: Any, y: Any) -> Turn:
    """The function that the graph was traced from, run eagerly."""
    step = Step(spec)
    state = dict(step.entries)
    fixed = {"x": torch.from_numpy(x), "y": torch.from_numpy(y)}
    fixed |= {name: torch.tensor(value) for name, value in spec.hyper.items()}

    def turn() -> None:
        following = step.train({**state, **step.constants, **fixed})
        state.update({name: following[f"{name}.next"] for name in state})

    return turn


def in_plain_torch(spec: ModelSpec, x: Any, y: Any) -> Turn:
    """The network as its author wrote it, without quantization."""
    module = build_module(spec)
    hyper = spec.hyper
    optimizer = torch.optim.SGD(
        module.parameters(), hyper["learning_rate"], hyper["momentum"], weight_decay=hyper["weight_decay"]
    )
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)

    def turn() -> None:
        optimizer.zero_grad()
        spec.loss(module(inputs), targets).mean().backward()
        optimizer.step()

    return turn


def measure(turns: dict[str, Turn], steps: int) -> dict[str, list[float]]:
    """Milliseconds of each step, the contenders in turn."""
    for turn in turns.values():
        for _ in range(WARM_UP):
            turn()
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(steps):
        for name, turn in turns.items():
            started = time.perf_counter()
            turn()
            times[name].append((time.perf_counter() - started) * 1e3)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fan_vibration", help="a model of the workshop")
    parser.add_argument("--steps", type=int, default=500, help="timed steps of each contender")
    parser.add_argument("--batch", type=int, default=0, help="examples in a step; 0: the bundle's own batch size")
    options = parse_arguments(parser)
    torch.set_num_threads(1)
    spec = load(options.model)
    bundle = Bundle.read(build(spec))
    size = options.batch or spec.batch_size
    rows = np.random.default_rng(0).permutation(len(spec.examples()[0][0]))[:size]
    x, y = (part[rows] for part in spec.examples()[0])
    turns = {
        "onnxruntime": in_onnxruntime(spec, bundle, x, y),
        "torch": in_torch(spec, x, y),
        "plain": in_plain_torch(spec, x, y),
    }
    times = measure(turns, options.steps)
    figures = {name: spread(values) for name, values in times.items()}
    ours = np.asarray(times["onnxruntime"])
    ratios = {name: spread((ours / np.asarray(values)).tolist()) for name, values in times.items()}
    heads = {
        "onnxruntime": "the bundle's graph, onnxruntime",
        "torch": "the same step, eager torch",
        "plain": "without quantization, eager torch and its SGD",
    }
    table: list[list[object]] = [["ms a step", "fastest", "median", "quartiles", "onnxruntime / this, median"]]
    for name, text in heads.items():
        f, r = figures[name], ratios[name]
        quartiles = f"{f['q1']:.3f} .. {f['q3']:.3f}"
        table.append([text, f"{f['min']:.3f}", f"{f['median']:.3f}", quartiles, f"{r['median']:.2f}"])
    facts = {"model": spec.name, "batch": size, "parameters": bundle.layout.num_parameters, "steps": options.steps}
    result = {
        "setting": setting("torch", "onnxruntime", "numpy"),
        **facts,
        "milliseconds": figures,
        "ratio_of_onnxruntime": ratios,
    }
    print_result(result, [[list(facts), list(facts.values())], table], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
