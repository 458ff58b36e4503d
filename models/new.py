"""`python -m models new NAME`: a small model that works, for its author to change."""

import keyword
import sys
from pathlib import Path

from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError
from models.spec import catalog

_LONGEST = 64  # a bundle's name

_SPEC = '''\
"""NAME: say here in one line what it tells, and from what."""

import numpy as np
import torch

IMPORTS


def _examples() -> Splits:
    """MADE UP, so that everything runs at once. Read your own instead, see models/examples.py:

    return from_npz("my-data.npz")  # arrays x and y, one row an example; and split, client or test
    """
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 1200)
    x = (rng.normal(size=(3, 8))[y] * 2 + rng.normal(size=(1200, 8))).astype(np.float32)
    return Splits(*((x[part], y[part]) for part in (slice(0, 800), slice(800, 1000), slice(1000, 1200))))


SPEC = ModelSpec(
    name="NAME",
    description="Three made-up classes of eight made-up numbers",
    licence="no data: it is made up",
    module=CLASS,
    x=Input((8,), torch.float32),
    labels=("first", "second", "third"),
    examples=_examples,
    optimizer=Sgd(learning_rate=0.05, momentum=0.9, weight_decay=1e-3),
)
'''

_IMPORTS = (
    "from models.NAME.model import CLASS",
    "from models.optimizers import Sgd",
    "from models.spec import Input, ModelSpec, Splits",
)

_MODEL = '''\
# mypy: allow-subclassing-any
"""The network: raw examples in, one logit a class out. What prepares the examples belongs in here as well."""

from torch import Tensor, nn


class CLASS(nn.Module):
    """Numbers, (B, 8) -> logits, (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch."""
        logits: Tensor = self.layers(x)
        return logits
'''


def write_model(name: str, workshop: Path) -> list[Path]:
    """Write `__init__.py` and `model.py` of a new model into `workshop`/NAME; the paths written.

    Raises `ConfigError` for a name that is taken, or no Python identifier in lower case.
    """
    plain = name.isascii() and name.isidentifier() and name == name.lower() and not keyword.iskeyword(name)
    if not plain or len(name) > _LONGEST:
        raise ConfigError(f"a model cannot be called {name!r}", "lower-case letters, digits and _, such as door_sounds")
    folder = workshop / name
    if folder.exists() or (workshop / f"{name}.py").exists() or name in sys.stdlib_module_names:
        raise ConfigError(f"the name {name!r} is taken", f"choose another; models: {', '.join(catalog())}")
    folder.mkdir(parents=True)
    class_name = "".join(part.capitalize() for part in name.split("_")) or "Model"
    files = {"model.py": _MODEL, "__init__.py": _SPEC}  # a model is one once it has its `__init__.py`
    for file, text in files.items():
        write_durably(folder / file, _filled(text, name, class_name).encode())
    return [folder / file for file in files]


def _filled(text: str, name: str, class_name: str) -> str:
    imports = [line.replace("NAME", name).replace("CLASS", class_name) for line in _IMPORTS]
    text = text.replace("IMPORTS", "\n".join(sorted(imports)))  # a linter wants them in order
    return text.replace("NAME", name).replace("CLASS", class_name)
