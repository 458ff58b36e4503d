"""From a spec to the network that trains: the author's module with our layers in it, checked against the spec."""

import difflib
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from fl_protocol.errors import ConfigError
from models import dropout, recurrent
from models.metrics import Metric
from models.quantization import batch_norm, below, fake_quantized
from models.spec import ModelSpec

_PROBE = 3  # examples; more than one, since batch normalisation cannot train on one
_DTYPES = (torch.float32, torch.int64)


def build_module(spec: ModelSpec) -> nn.Module:
    """The author's network with its initial parameters, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = spec.module()
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{spec.name}: module gives {type(module).__name__}", "let it build and return an nn.Module")
    return deepcopy(module)  # our layers replace the author's, who may give the same module at every call


def network(spec: ModelSpec, *, quantized: bool) -> nn.Module:
    """The author's network with its layers replaced by ours, fake-quantized or float; parameters keep their names.

    Raises `ConfigError` for prefixes that match nothing, for tensors that are not float32, for values that are not
    finite.
    """
    module = build_module(spec)
    if type(module).__module__.startswith("torch.nn") and not list(module.children()):
        module = nn.Sequential(module)  # a bare layer: something must hold it for it to be replaced
    _check_state(spec, module)
    for field in ("frozen", "personal", "keep_float"):
        _check_prefixes(spec, module, field)
    module = dropout.replaced(batch_norm.replaced(recurrent.replaced(module)))
    return fake_quantized(module, spec.bits, spec.keep_float) if quantized else module


def training_mode(module: nn.Module, frozen: Sequence[str]) -> None:
    """Every layer in training mode, but normalisation and dropout within a frozen part: they stay as they are used."""
    module.train()
    for name, layer in module.named_modules():
        if below(name, frozen) and isinstance(layer, batch_norm.BatchNorm | dropout.Dropout):
            layer.eval()


def probe(module: nn.Module, spec: ModelSpec, trained: Sequence[str]) -> None:
    """Run the network on a few examples of zeros, in training; layers are left with what they observed.

    Raises `ConfigError` for an output, a loss or a metric of the wrong kind, and for parameters in `trained` that the
    loss does not depend on.
    """
    x, y = (torch.zeros((_PROBE, *part.shape), dtype=part.dtype) for part in (spec.x, spec.y))
    training_mode(module, spec.frozen)
    try:
        output = module(x)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:  # what torch raises for shapes and dtypes
        raise ConfigError(
            f"{spec.name}: the module fails on x of {_text(x)}: {error}"[:600],
            "x in the spec is one example, without the batch; the module takes a batch of them",
        ) from error
    _check_output(spec, output)
    if not isinstance(spec.metric, Metric):
        raise ConfigError(
            f"{spec.name}: metric is {type(spec.metric).__name__}, not a Metric",
            'give it a name: Metric("name", function, "higher" or "lower"), from models.metrics',
        )
    for name, function in (("loss", spec.loss), ("metric", spec.metric.score)):
        try:
            value = function(output, y)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            raise ConfigError(
                f"{spec.name}: the {name} fails on an output of {_text(output)} and y of {_text(y)}: {error}"[:600],
                f"y in the spec is what one example has to predict; the {name} takes batches, (output, y) -> (B,)",
            ) from error
        if not isinstance(value, Tensor) or value.shape != (_PROBE,):
            got = _text(value) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"{spec.name}: the {name} gives {got} for a batch", "one value an example, shape (B,)")
    if not trained:
        raise ConfigError(f"{spec.name}: all parameters are frozen", "leave some to learn")
    parameters, loss = dict(module.named_parameters()), spec.loss(output, y).mean()
    leaves = [parameters[name] for name in trained]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else [None] * len(trained)
    if unused := [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]:
        raise ConfigError(
            f"{spec.name}: the loss does not depend on {', '.join(unused)}",
            "remove these parameters from the module, or name them in `frozen`",
        )


def _check_output(spec: ModelSpec, output: object) -> None:
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"{spec.name}: the module returns {type(output).__name__}, not a tensor",
            "return the prediction alone: an nn.GRU, say, gives (output, h), of which you want one",
        )
    if output.dtype != torch.float32 or output.dim() == 0 or output.shape[0] != _PROBE:
        raise ConfigError(f"{spec.name}: the module returns {_text(output)}", "one float32 row an example, (B, ...)")
    single = output.shape[1:] in ((), (1,)) and len(spec.labels) == 2  # one logit for two labels
    if spec.labels and output.shape[1:] != (len(spec.labels),) and not single:
        raise ConfigError(
            f"{spec.name}: {len(spec.labels)} labels and an output of {_text(output)}",
            "one logit a label, (B, labels); for two labels also one logit, (B,); labels=() for a regression",
        )


def _check_state(spec: ModelSpec, module: nn.Module) -> None:
    for part, name in ((spec.x, "x"), (spec.y, "y")):
        if part.dtype not in _DTYPES:
            raise ConfigError(f"{spec.name}: {name} is {part.dtype}", "float32 or int64; convert when reading examples")
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    if not parameters:
        raise ConfigError(f"{spec.name}: the module has no parameters", "a model without any has nothing to learn")
    for name, tensor in (parameters | buffers).items():
        if tensor.dtype == torch.float64 or (name in parameters and tensor.dtype != torch.float32):
            raise ConfigError(f"{spec.name}: {name} is {tensor.dtype}", "build the module in float32")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ConfigError(f"{spec.name}: {name} has initial values that are not finite", "initialise it")
    reserved = {"x", "y", "seed", "loss", "correct", *spec.optimizer.hyper}
    if clash := sorted(reserved & {*parameters, *buffers}):
        raise ConfigError(f"{spec.name}: the module calls a tensor {clash[0]!r}", "the graphs do too; rename it")


def _check_prefixes(spec: ModelSpec, module: nn.Module, field: str) -> None:
    names = [n for n, _ in (*module.named_modules(), *module.named_parameters(), *module.named_buffers()) if n]
    for prefix in getattr(spec, field):
        if prefix not in names:
            near = difflib.get_close_matches(prefix, names, 1)
            known = f"did you mean {near[0]!r}?" if near else f"its parts: {', '.join(names[:12])}"
            raise ConfigError(f"{spec.name}: {field} names {prefix!r}, which is no part of the module", known)


def _text(tensor: Tensor) -> str:
    sizes = ", ".join(["B", *(str(int(size)) for size in tensor.shape[1:])]) if tensor.dim() else ""
    return f"{str(tensor.dtype).removeprefix('torch.')} ({sizes})"
