"""What every codec keeps: one suite over all of them."""

import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.compression import CODECS, make_compressor
from fl_protocol.compression.uq import SMALL
from fl_protocol.errors import ProtocolError
from fl_protocol.tensors import ModelLayout, Vector
from tests.support.codecs import LAYOUTS, MIXED, VARIANTS, gaussian, heavy, layout_of, through

GOLDEN = Path(__file__).parents[1] / "wire" / "compression"

codecs = pytest.mark.parametrize("codec", list(VARIANTS))


layouts = pytest.mark.parametrize("layout", list(LAYOUTS.values()), ids=list(LAYOUTS))


def largest_error(settings: dict[str, str], layout: ModelLayout, vector: Vector) -> Vector:
    """What each codec promises, element by element; 1.13 is what a rounded scale may be above itself."""
    v = np.abs(vector.astype(np.float64))
    half = np.maximum(np.maximum(v * 2.0**-11, 2.0**-25), v - 65504)
    tensors = [where for _, where in layout.parameter_slices()]
    peaks = np.concatenate([np.full(v[t].shape, v[t].max()) for t in tensors])
    match settings["name"]:
        case "none":
            return np.zeros_like(v)
        case "float16":
            return half
        case "uq":
            if "bits" in settings:
                return v  # any step: what is sent is nearer than zero is
            step = float(settings["step"])
            rms = np.concatenate([np.full(v[t].shape, np.sqrt(np.mean(v[t] ** 2))) for t in tensors])
            finer = np.concatenate(
                [
                    np.full(e.size, 1 if e.size >= SMALL else float(settings.get("fine", "4")))
                    for e, _ in layout.parameter_slices()
                ]
            )
            return 0.67 * 1.065 * step * rms / finer + 2.0**-18 * step * rms.max() + 1e-35
        case "qsgd":
            cell = np.maximum(1.13 * peaks / max(1, 2 ** (int(settings["bits"]) - 1) - 1), 2.0**-22 * peaks.max())
            return cell * (2.0 if settings["bits"] == "1" else 1.0) + 1e-35
        case "sign":
            return np.maximum(v, 1.13 * peaks) + 2.0**-23 * v.max() + 1e-35
        case "ternary":
            return np.full_like(v, v.max())
        case "topk" | "threshold":
            return v
        case "randomk":
            bits, share = int(settings.get("values", "16")), float(settings["share"])
            if settings.get("gain") == "unbiased":
                return np.maximum(v, v.max() / share)
            return np.maximum(v, v.max() * (2.0**-11 if bits == 16 else 0.5 / (2 ** (bits - 1) - 1)))
    return np.full_like(v, 4 * np.sqrt(np.sum(v**2)) + 1e-35)  # eden and powersgd mix elements


@codecs
@layouts
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), exponent=st.integers(-46, 30))
def test_what_arrives_is_within_the_declared_error(codec: str, layout: ModelLayout, seed: int, exponent: int) -> None:
    """None is exact, float16 keeps eleven bits, `uq` stays within 0.67 steps, ..; from denormals to 1e30."""
    compressor = make_compressor(VARIANTS[codec], layout)
    for vector in (gaussian(layout, seed, 10.0**exponent), heavy(layout, seed)):
        error = np.abs(through(compressor, vector).astype(np.float64) - vector)
        assert (error <= largest_error(VARIANTS[codec], layout, vector) * (1 + 1e-5)).all()


@codecs
@layouts
def test_zeros_stay_zeros(codec: str, layout: ModelLayout) -> None:
    """A device that learnt nothing says so."""
    compressor = make_compressor(VARIANTS[codec], layout)
    assert not through(compressor, np.zeros(layout.num_parameters, np.float32)).any()


KEEPS_SIGNS = [name for name in VARIANTS if not name.startswith(("qsgd-1", "sign", "eden", "powersgd"))]


@codecs
@layouts
@pytest.mark.parametrize("value", [3.4028235e38, -3.4028235e38, 1e-45, 1.17e-38, 65519.0])
def test_the_ends_of_float32_stay_finite(codec: str, layout: ModelLayout, value: float) -> None:
    """Whole vectors of them, and one among zeros; most codecs change no sign."""
    compressor = make_compressor(VARIANTS[codec], layout)
    alone = np.zeros(layout.num_parameters, np.float32)
    alone[-1] = value
    for vector in (alone, np.full(layout.num_parameters, value, np.float32)):
        arrived = through(compressor, vector)
        assert codec not in KEEPS_SIGNS or (arrived * np.sign(vector) >= 0).all()


@codecs
def test_compress_is_deterministic_and_leaves_its_input_alone(codec: str) -> None:
    """The same vector and generator give the same bytes, from this compressor and from another one."""
    vector = gaussian(MIXED)
    before = vector.copy()
    payloads = {
        compressor.compress(vector, np.random.default_rng(7))
        for compressor in (make_compressor(VARIANTS[codec], MIXED), make_compressor(VARIANTS[codec], MIXED))
        for _ in range(2)
    }
    assert len(payloads) == 1
    assert np.array_equal(vector, before)


@codecs
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_sent(codec: str, bad: float) -> None:
    """It is a fault of training, found before the radio is touched."""
    vector = gaussian(MIXED)
    vector[5] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        make_compressor(VARIANTS[codec], MIXED).compress(vector, np.random.default_rng(0))


@codecs
def test_another_shape_or_type_is_a_mistake(codec: str) -> None:
    """Nothing is cut or filled up in silence."""
    compressor = make_compressor(VARIANTS[codec], MIXED)
    for vector in (np.zeros(0, np.float32), gaussian(MIXED)[1:], gaussian(MIXED).astype(np.float64)):
        with pytest.raises(ValueError, match="wanted float32 of shape"):
            compressor.compress(vector, np.random.default_rng(0))


@codecs
def test_the_golden_payload_reads_as_ever(codec: str) -> None:
    """Bit for bit, on every processor: `tests/wire/compression` never changes."""
    vector = make_compressor(VARIANTS[codec], MIXED).decompress((GOLDEN / f"{codec}.payload").read_bytes())
    assert vector.astype("<f4").tobytes() == (GOLDEN / f"{codec}.float32").read_bytes()


@codecs
def test_every_truncation_of_the_golden_payload_is_refused(codec: str) -> None:
    """At every length; and so is a byte more."""
    compressor = make_compressor(VARIANTS[codec], MIXED)
    payload = (GOLDEN / f"{codec}.payload").read_bytes()
    for length in range(len(payload)):
        with pytest.raises(ProtocolError):
            compressor.decompress(payload[:length])
    for more in (b"\0", b"\x80", b"\xff", payload):
        with pytest.raises(ProtocolError):
            compressor.decompress(payload + more)


def read_or_refuse(codec: str, payload: bytes) -> None:
    """A finite vector of the layout, or a `ProtocolError`; anything else fails the test, warnings included."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            vector = make_compressor(VARIANTS[codec], MIXED).decompress(payload)
        except ProtocolError:
            return
    assert vector.shape == (MIXED.num_parameters,)
    assert np.isfinite(vector).all()


@codecs
@settings(max_examples=120, deadline=None)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    cut=st.floats(0, 1),
    tail=st.binary(max_size=8),
)
def test_a_damaged_payload_is_read_or_refused(
    codec: str, changes: list[tuple[float, int]], cut: float, tail: bytes
) -> None:
    """Bytes changed, cut off, put on."""
    payload = bytearray((GOLDEN / f"{codec}.payload").read_bytes())
    for where, value in changes:
        payload[int(where * len(payload))] = value
    length = len(payload) if cut > 0.5 else int(2 * cut * len(payload))
    read_or_refuse(codec, bytes(payload[:length]) + tail)


@codecs
@settings(max_examples=60, deadline=None)
@given(payload=st.binary(max_size=3000))
def test_noise_is_read_or_refused(codec: str, payload: bytes) -> None:
    """Bytes that no codec ever wrote."""
    read_or_refuse(codec, payload)


@codecs
@pytest.mark.parametrize("fill", [0x00, 0x55, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("length", [100, 100_000, 3_000_000])
def test_a_hostile_payload_costs_no_more_than_the_layout(codec: str, fill: int, length: int) -> None:
    """20 times the float32 vector at most, whatever it says and however long it is."""
    layout = layout_of((50, 1000))
    compressor = make_compressor(VARIANTS[codec], layout)
    symbols = 5  # where they begin in most
    honest = compressor.compress(heavy(layout), np.random.default_rng(0))
    for payload in (bytes([fill]) * length, honest[:symbols] + bytes([fill]) * length, honest + bytes([fill]) * length):
        tracemalloc.start()
        try:
            compressor.decompress(payload)
        except ProtocolError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 20 * 4 * layout.num_parameters


@codecs
def test_the_compressor_is_called_what_the_plan_calls_it(codec: str) -> None:
    """So that an update can say what it was made with."""
    assert make_compressor(VARIANTS[codec], MIXED).name == VARIANTS[codec]["name"]


def test_the_suite_knows_every_codec() -> None:
    """A codec without a variant here would be held to nothing; an example that is not understood helps nobody."""
    assert {settings["name"] for settings in VARIANTS.values()} == set(CODECS)
    for name, codec in CODECS.items():
        assert make_compressor(codec.example, MIXED).name == codec.name == name
