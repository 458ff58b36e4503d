"""What to use in place of what the exporter cannot write: the hints of its errors."""

from typing import Any, Final

from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from fl_protocol.errors import ConfigError

VALUES = "a graph has no branches and no sizes that depend on values: torch.where picks, a mask of 0 and 1 leaves out"
_DEFAULT = "write the layer with other ops (models/ops/ has those that there are), or add this one to that table"

# Beginnings of an op's name, without `aten.` and underscores: what to use instead.
_INSTEAD: Final = {
    "fft": "multiply by a matrix of cosines and sines, as models/fan_vibration/model.py does",
    "view_as": "multiply by a matrix of cosines and sines, as models/fan_vibration/model.py does",
    "complex": "keep the real and the imaginary part in two real tensors",
    "sort": "the largest value is amax, its place argmax; for a median take the mean",
    "topk": "the largest value is amax, its place argmax",
    "median": "take the mean, or compute the median of the data before training",
    "kthvalue": "the largest value is amax, its place argmax",
    "mode": "take argmax of counts",
    "nonzero": VALUES,
    "unique": VALUES,
    "masked_select": VALUES,
    "local_scalar_dense": VALUES,
    "bincount": "sum F.one_hot, or compare with torch.arange",
    "histc": "compare with the edges and sum",
    "native_batch_norm": "keep nn.BatchNorm1d or nn.BatchNorm2d, which the workshop replaces; F.batch_norm only "
    "with training=False",
    "cudnn_batch_norm": "keep nn.BatchNorm1d or nn.BatchNorm2d, which the workshop replaces",
    "native_dropout": "use nn.Dropout, which the workshop replaces by one that draws from the step's seed; "
    "nn.MultiheadAttention without dropout",
    "bernoulli": "use nn.Dropout, which the workshop replaces by one that draws from the step's seed",
    "rand": "use nn.Dropout, the one source of chance that a step has; pass anything else in as part of x",
    "normal": "use nn.Dropout, the one source of chance that a step has; pass anything else in as part of x",
    "multinomial": "use nn.Dropout, the one source of chance that a step has",
    "upsample": "repeat by expand and reshape, as nearest-neighbour upsampling does: "
    "x[..., None].expand(..., 2).flatten(-2)",
    "grid_sampler": "crop and resize before training",
    "trilinear": "multiply two nn.Linear element by element in place of nn.Bilinear",
    "cumprod": "sum logarithms: x.log().cumsum(dim).exp()",
    "linalg": "a small layer needs no matrix factorisation; a fixed one can be computed once, into a buffer",
    "cdist": "write it out: (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)",
    "pdist": "write it out: (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)",
    "bitwise": "use them on booleans; on integers there is % and //",
    "thnn_fused": "build the network on the CPU",
    "embedding_bag": "use nn.Embedding and .mean(1) or .sum(1)",
    "ctc_loss": "take a loss that needs no alignment, such as F.cross_entropy at each step",
}


def instead_of(op: Any) -> str:
    """A hint for an op that is not in the table."""
    name = str(op).removeprefix("aten.").lstrip("_")
    return next((hint for start, hint in _INSTEAD.items() if name.startswith(start)), _DEFAULT)


def is_foreseen(op: Any) -> bool:
    """Whether there is a hint for this very op."""
    return instead_of(op) != _DEFAULT


def refusal(error: Exception, layer: str) -> ConfigError:
    """What torch raised while it traced, in the author's terms; `layer` says where."""
    place = layer or "outside of all layers, in the loss, the metric or the optimizer"
    match error:
        case GuardOnDataDependentSymNode():
            return ConfigError(f"the model decides by a tensor's value, {place}", VALUES)
        case DynamicOutputShapeException():
            return ConfigError(f"the model uses {error.func}, whose result has no fixed size, {place}", VALUES)
        case DataDependentOutputException():
            return ConfigError(f"the model reads a tensor's value ({error.func}), {place}", VALUES)
    first = str(error).strip().split("\n")[0]
    return ConfigError(
        f"torch could not trace the model, {place}: {type(error).__name__}: {first}",
        "does the network run on x of the shape that the ModelSpec says, in batches of 2 and of 6?",
    )
