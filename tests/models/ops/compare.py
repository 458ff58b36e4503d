"""A function and its gradients: in ONNX against torch float64, and torch's gradients against finite differences.

The traced batch is 6 (models/tracing.py); what is compiled then runs at others, so none can be baked in.
"""

import numpy as np
import onnx
import onnxruntime
import torch
from torch.func import functional_call

from models.to_onnx import export

BATCHES = (6, 5, 1, 32)
RTOL = 1e-5  # of the largest value of each tensor; or of a tenth of all results' largest, as some gradients cancel to 0


def with_gradients(function, learns):
    """`function` of named tensors; added to its result: the gradients of its weighted sum by those in `learns`."""

    def step(given):
        leaves = {name: given[name].detach().requires_grad_() for name in learns}
        out = function({**given, **leaves})
        # Every element counts differently, so that a gradient that went to the wrong place shows.
        factors = torch.arange(out[0].numel(), dtype=out.dtype).reshape(out.shape[1:]) if out.dim() else None
        total = (out * torch.cos(factors + 1)).sum() if factors is not None else out
        gradients = torch.autograd.grad(total, list(leaves.values()))
        return {"out": out.detach(), **{f"{n}.gradient": g for n, g in zip(learns, gradients, strict=True)}}

    return step


def of_module(module):
    """A module as a function of named tensors: `x` and its parameters."""

    def function(given):
        state = {name: given[name] for name, _ in (*module.named_parameters(), *module.named_buffers())}
        return functional_call(module, state, (given["x"],))

    return function


def session(graph):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def in_float64(given):
    return {n: t.double() if t.is_floating_point() else t for n, t in given.items()}


def numbers(shape, dtype=torch.float32, seed=0, high=3):
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.int64:
        return torch.randint(0, high, shape, generator=generator)
    return torch.randn(shape, generator=generator).to(dtype)


def check_same(function, batched, others=None, learns=(), rtol=RTOL, batches=BATCHES):
    """Compile `function`, with its gradients if it `learns`, and hold it against torch float64 at every batch size.

    `batched`: name -> function of the batch size that draws the tensor; `others`: name -> tensor. Returns the graph.
    """
    others = others or {}
    step = with_gradients(function, learns) if learns else lambda given: {"out": function(given)}
    one = {name: draw(1) for name, draw in batched.items()}
    graph = export(step, {**one, **others}, {}, tuple(batched))
    runtime = session(graph)
    taken = {value.name for value in runtime.get_inputs()}
    for batch in batches:
        given = {**{name: draw(batch) for name, draw in batched.items()}, **others}
        with torch.random.fork_rng(devices=[]):
            expected = step(in_float64(given))
        results = runtime.run(None, {n: t.numpy() for n, t in given.items() if n in taken})
        assert len(results) == len(expected)
        of_all = max(float(t.double().abs().max()) if t.numel() else 0.0 for t in expected.values())
        for result, (name, tensor) in zip(results, expected.items(), strict=True):
            reference = tensor.numpy()
            assert result.shape == reference.shape, f"{name} at batch {batch}"
            largest = max(float(np.abs(reference).max(initial=0)), 0.1 * of_all)
            worst = float(np.abs(result.astype(np.float64) - reference).max(initial=0)) / largest
            assert worst <= rtol, f"{name} at batch {batch}: {worst:.1e} of the largest"
    return graph


def check_gradient(function, given, learns, samples=6, width=1e-6, rtol=1e-5):
    """torch float64's gradient, which ONNX was held against, is the slope of the function."""
    step = with_gradients(function, learns)
    given = in_float64(given)

    def total(changed):
        out = function(changed).detach()
        if not out.dim():
            return float(out)
        factors = torch.arange(out[0].numel(), dtype=out.dtype).reshape(out.shape[1:])
        return float((out * torch.cos(factors + 1)).sum())

    rng = np.random.default_rng(0)
    results = step(given)
    for name in learns:
        gradient = results[f"{name}.gradient"]
        largest = max(float(gradient.abs().max()), 1e-3)
        for flat in rng.choice(gradient.numel(), min(samples, gradient.numel()), replace=False):
            slopes = []
            for sign in (1, -1):
                moved = given[name].clone()
                moved.view(-1)[int(flat)] += sign * width
                slopes.append(total({**given, name: moved}))
            slope = (slopes[0] - slopes[1]) / (2 * width)
            assert abs(slope - float(gradient.reshape(-1)[int(flat)])) <= rtol * largest * 10, f"{name}[{flat}]"


def check(function, others=None, learns=None, shape=(4, 6), rtol=RTOL, slopes=True):
    """`check_same` and `check_gradient` for a function of `x`, (B, *shape), and `others`; returns the graph.

    All that is real learns, unless `learns` says what does.
    """
    others = others or {}
    real = tuple(name for name, t in others.items() if t.is_floating_point())
    learns = ("x", *real) if learns is None else learns
    graph = check_same(function, {"x": lambda batch: numbers((batch, *shape), seed=batch)}, others, learns, rtol)
    if slopes:
        check_gradient(function, {"x": numbers((3, *shape)), **others}, learns)
    return graph


def check_module(module, shape=(4, 6), rtol=RTOL):
    """`check` of a module's output by its input and all its parameters."""
    buffers = dict(module.named_buffers())
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    return check(of_module(module), {**parameters, **buffers}, ("x", *parameters), shape, rtol)


def num_nodes(graph):
    return len(onnx.load_from_string(graph).graph.node)
