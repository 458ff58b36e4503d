"""Fashion-MNIST: 70,000 small grey pictures of ten kinds of clothes. Numpy only.

Xiao, Rasul and Vollgraf, arXiv:1708.07747; MIT licence (Zalando SE). Not in this repository:
`python -m models data fashion_mnist` fetches it. The last 5,000 training pictures validate. Nobody owns these pictures:
there is one client, `pooled`, and whoever wants devices deals them out (`split = "dirichlet"` in an experiment).
"""

import gzip
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anabranch.datasets.federation import Client, Examples, Federation
from anabranch.datasets.source import Source, dataset_file, unchanged
from fl_protocol.errors import ConfigError

LICENCE = "MIT (data: Fashion-MNIST, Zalando SE)"
CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
SIDE = 28  # pixels
NUM_VALIDATION = 5000
_FOLDER = "fashion_mnist"
_MAX_BYTES = 64_000_000  # of one file, unpacked: 60,000 pictures are 47 MB
_DTYPE_UBYTE = 8  # IDX's code for bytes; the fourth byte of the head is the number of dimensions

SOURCE = Source(
    urls=tuple(
        f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{part}-{kind}-ubyte.gz"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ),
    max_bytes=30_000_000,
    files={
        f"{_FOLDER}/train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        f"{_FOLDER}/train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        f"{_FOLDER}/t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        f"{_FOLDER}/t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    convert=unchanged(
        {
            f"{_FOLDER}/{part}-{kind}-ubyte.gz": f"{part}-{kind}-ubyte.gz"
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        }
    ),
)


def load() -> Federation:
    """`x` float32 (n, 28, 28), 0 white to 1 black; 55,000 to train, 5,000 to validate, 10,000 to test.

    Raises `ConfigError` without the data, or where a file is not what it says.
    """
    known, test = _pictures("train"), _pictures("t10k")
    border = max(len(known.x) - NUM_VALIDATION, 0)
    train, validation = (Examples(known.x[part], known.y[part]) for part in (slice(border), slice(border, None)))
    client = Client("pooled", train, train.none, train.none)
    return Federation("fashion_mnist", LICENCE, CLASSES, (client,), validation, test)


def _pictures(part: str) -> Examples:
    x = read_idx(dataset_file("fashion_mnist", f"{_FOLDER}/{part}-images-idx3-ubyte.gz"))
    y = read_idx(dataset_file("fashion_mnist", f"{_FOLDER}/{part}-labels-idx1-ubyte.gz"))
    if not (x.shape[1:] == (SIDE, SIDE) and y.shape == (len(x),)):
        raise ConfigError(f"{part}: pictures of shape {x.shape}, labels of shape {y.shape}", "fetch the data again")
    return Examples(x.astype(np.float32) / 255, y.astype(np.int64))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of bytes in a packed IDX file: 0, 0, type, dimensions; a big-endian length each; values.

    Raises `ConfigError` for anything else, and for more than 64 MB.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(path.read_bytes())) as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError) as error:
        raise ConfigError(f"cannot read {path}: {error}", "fetch the data again") from None
    dimensions = data[3] if len(data) > 3 else 0
    shape = tuple(np.frombuffer(data[4 : 4 + 4 * dimensions], ">u4", min(dimensions, len(data[4:]) // 4)).tolist())
    start = 4 + 4 * dimensions
    size = 1
    for length in shape:
        size *= length
    if data[:3] != bytes([0, 0, _DTYPE_UBYTE]) or len(data) > _MAX_BYTES or len(data) != start + size:
        raise ConfigError(f"{path} is not an IDX file of bytes", "fetch the data again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
