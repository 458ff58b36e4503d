"""A module's layers replaced in place: by fake-quantized ones to train with, by int8 ones to run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from fl_protocol.errors import ConfigError
from models.quantization import batch_norm
from models.quantization.affine import FakeQuantAffine, FoldedBatchNorm
from models.quantization.dataflow import places
from models.quantization.grids import largest_code
from models.quantization.layer import FakeQuantLayer
from models.quantization.recurrent import FakeQuantRecurrent
from models.recurrent import Recurrent

_AFFINE: Final = (nn.Linear, nn.Conv1d, nn.Conv2d)
# Other layers that are quantized, and what each becomes: (layer, bits) -> FakeQuantLayer.
QUANTIZED: Final[dict[type[nn.Module], Callable[[nn.Module, int], FakeQuantLayer]]] = {Recurrent: FakeQuantRecurrent}


def fake_quantized(module: nn.Module, bits: int = 8, keep_float: Sequence[str] = ()) -> nn.Module:
    """Replace every layer that has a fake-quantized version by it, in place; parameters and buffers keep their names.

    BatchNorms are replaced by ours on the way. `bits` are those of the weights, 8 or 4. Layers at or below a dotted
    name in `keep_float` stay as they are.
    Raises `ConfigError` for other widths, and for a layer that cannot be quantized as it is used.
    """
    largest_code(bits)
    batch_norm.replaced(module)
    layers = {n: layer for n, layer in module.named_modules() if not below(n, keep_float)}
    _refuse_whole_blocks(layers)
    for name, layer in layers.items():
        if type(layer) in QUANTIZED:
            module.set_submodule(name, QUANTIZED[type(layer)](layer, bits))
    affine = {name: layer for name, layer in layers.items() if type(layer) in _AFFINE}
    for name, place in places(module, tuple(affine)).items():
        fake = FakeQuantAffine(affine[name], bits, place)
        module.set_submodule(name, fake)
        if place.norm:
            folded = FoldedBatchNorm(module.get_submodule(place.norm), fake)
            fake.fold(folded)
            module.set_submodule(place.norm, folded)
    return module


def _refuse_whole_blocks(layers: Mapping[str, nn.Module]) -> None:
    """Torch's transformer layer reads the weights of layers within it, which int8 ones do not have."""
    for name, layer in layers.items():
        if isinstance(layer, nn.TransformerEncoderLayer):
            where = f"{name} ({type(layer).__name__})" if name else type(layer).__name__
            raise ConfigError(
                f"{where} is one block that reads its layers' weights itself, so they cannot become int8",
                "write the block out: nn.MultiheadAttention(..., batch_first=True), nn.LayerNorm and nn.Linear, each "
                "half added to what it got (docs/bring-your-own-model.md); or name it in `keep_float`, with "
                "batch_first=True and dropout=0.0",
            )


def int8(module: nn.Module) -> nn.Module:
    """Replace every fake-quantized layer within `module`, in place, by its int8 version."""
    for name, version in [(name, layer.int8()) for name, layer in _fake_layers(module)]:
        module.set_submodule(name, version)
    return module


def int8_codes(module: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the int8 version of a fake-quantized `module` stores, by full name.

    `given` holds the module's parameters and buffers by full name. Codes of the layers that are quantized, and of
    all others the parameters and buffers as they are.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    stored: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, layer in _fake_layers(module):
            own = {key: given[full] for key, full in layer.names(name).items()}
            stored |= {f"{name}.{key}": tensor for key, tensor in layer.codes(own).items()}
            state = {full: tensor for full, tensor in state.items() if not below(full, (name,))}
    return stored | {full: given[full] for full in state if full in given}


def measuring_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that leaves the following values of its statistics in `observed`, by name."""
    return ((name, layer) for name, layer in module.named_modules() if hasattr(layer, "observed"))


def _fake_layers(module: nn.Module) -> list[tuple[str, FakeQuantLayer]]:
    """Those that are not part of another."""
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, FakeQuantLayer)]
    names = [name for name, _ in layers]
    return [(n, layer) for n, layer in layers if not any(below(n, (other,)) for other in names if other != n)]


def below(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted name is one of the prefixes, or of something within one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
