"""Rate control: an update takes the bytes that it may have, whatever error feedback has left."""

import numpy as np
import pytest

from fl_protocol.compression import make_compressor
from fl_protocol.tensors import ModelLayout, TensorEntry

LAYOUT = ModelLayout((TensorEntry("dense", (200, 150), "parameter"), TensorEntry("bias", (150,), "parameter")))


@pytest.mark.parametrize("bits", [0.1, 0.15, 0.3])
@pytest.mark.parametrize("steady", [False, True])
def test_every_update_fills_its_bytes(bits: float, steady: bool) -> None:
    """Residuals grow a flat top just below the dead zone's edge, where a step too far drops nearly everything."""
    rng = np.random.default_rng(3)
    size = LAYOUT.num_parameters
    compressor = make_compressor({"name": "uq", "step": "0.5", "bits": str(bits)}, LAYOUT)
    always = rng.standard_t(3, size) * 1e-3
    residual = np.zeros(size, np.float32)
    most = bits * size / 8
    for _ in range(30):
        delta = 0.8 * always + 0.2e-3 * rng.normal(size=size) if steady else 1e-3 * rng.standard_t(3, size)
        wanted = (delta + residual).astype(np.float32)
        payload = compressor.compress(wanted, rng)
        assert 0.8 * most <= len(payload) <= most
        residual = wanted - compressor.decompress(payload)
