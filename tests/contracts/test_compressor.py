"""What every codec keeps: one suite over all of them."""

import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.compression import Compressor, make_compressor
from fl_protocol.compression.uq import SMALL
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import ModelLayout, TensorEntry, Vector

CODECS = {
    "none": {"name": "none"},
    "float16": {"name": "float16"},
    "uq-0.5": {"name": "uq", "step": "0.5"},
    "uq-2": {"name": "uq", "step": "2"},
    "uq-8": {"name": "uq", "step": "8.0"},
}
GOLDEN = Path(__file__).parents[1] / "wire" / "compression"

codecs = pytest.mark.parametrize("codec", list(CODECS))


def layout_of(*shapes: tuple[int, ...]) -> ModelLayout:
    statistic = TensorEntry("range", (3,), "statistic")  # never part of a delta
    return ModelLayout((statistic, *(TensorEntry(f"t{i}", shape, "parameter") for i, shape in enumerate(shapes))))


MIXED = layout_of((16, 24), (24,), (), (255,), (256,), (24, 20))  # large and small, one element, both sides of 256
LAYOUTS = {
    "mixed": MIXED,
    "one element": layout_of(()),
    "all small": layout_of((5,), (7,)),
    "one large": layout_of((900,)),
}
layouts = pytest.mark.parametrize("layout", list(LAYOUTS.values()), ids=list(LAYOUTS))


def gaussian(layout: ModelLayout, seed: int = 0, scale: float = 1e-3) -> Vector:
    return (np.random.default_rng(seed).standard_normal(layout.num_parameters) * scale).astype(np.float32)


def heavy(layout: ModelLayout, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_t(1.5, layout.num_parameters).astype(np.float32)


def through(codec: Compressor, vector: Vector) -> Vector:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = codec.decompress(codec.compress(vector, np.random.default_rng(0)))
    assert result.dtype == np.float32
    assert result.shape == vector.shape
    assert np.isfinite(result).all()
    assert result.flags.writeable
    return result


def largest_error(settings: dict[str, str], layout: ModelLayout, vector: Vector) -> Vector:
    """What each codec promises, element by element."""
    v = np.abs(vector.astype(np.float64))
    half = np.maximum(np.maximum(v * 2.0**-11, 2.0**-25), v - 65504)
    match settings["name"]:
        case "none":
            return np.zeros_like(v)
        case "float16":
            return half
    bound = half
    for entry, where in layout.parameter_slices():
        if entry.size >= SMALL:
            bound[where] = 0.67 * float(settings["step"]) * np.sqrt(np.mean(v[where] ** 2)) * (1 + 1e-5) + 1e-37
    return bound


@codecs
@layouts
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), exponent=st.integers(-46, 30))
def test_what_arrives_is_within_the_declared_error(codec: str, layout: ModelLayout, seed: int, exponent: int) -> None:
    """None is exact, float16 keeps eleven bits, `uq` stays within 0.67 steps; from denormals to 1e30."""
    compressor = make_compressor(CODECS[codec], layout)
    for vector in (gaussian(layout, seed, 10.0**exponent), heavy(layout, seed)):
        error = np.abs(through(compressor, vector).astype(np.float64) - vector)
        assert (error <= largest_error(CODECS[codec], layout, vector)).all()


@codecs
@layouts
def test_zeros_stay_zeros(codec: str, layout: ModelLayout) -> None:
    """A device that learnt nothing says so, in few bytes where the codec is a lossy one."""
    compressor = make_compressor(CODECS[codec], layout)
    assert not through(compressor, np.zeros(layout.num_parameters, np.float32)).any()


@codecs
@layouts
@pytest.mark.parametrize("value", [3.4028235e38, -3.4028235e38, 1e-45, 1.17e-38, 65519.0])
def test_the_ends_of_float32_stay_finite(codec: str, layout: ModelLayout, value: float) -> None:
    """Whole vectors of them, and one among zeros; nothing changes its sign."""
    compressor = make_compressor(CODECS[codec], layout)
    alone = np.zeros(layout.num_parameters, np.float32)
    alone[-1] = value
    for vector in (alone, np.full(layout.num_parameters, value, np.float32)):
        assert (through(compressor, vector) * np.sign(vector) >= 0).all()


@codecs
def test_compress_is_deterministic_and_leaves_its_input_alone(codec: str) -> None:
    """The same vector and generator give the same bytes, from this compressor and from another one."""
    vector = gaussian(MIXED)
    before = vector.copy()
    payloads = {
        compressor.compress(vector, np.random.default_rng(7))
        for compressor in (make_compressor(CODECS[codec], MIXED), make_compressor(CODECS[codec], MIXED))
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
        make_compressor(CODECS[codec], MIXED).compress(vector, np.random.default_rng(0))


@codecs
def test_another_shape_or_type_is_a_mistake(codec: str) -> None:
    """Nothing is cut or filled up in silence."""
    compressor = make_compressor(CODECS[codec], MIXED)
    for vector in (np.zeros(0, np.float32), gaussian(MIXED)[1:], gaussian(MIXED).astype(np.float64)):
        with pytest.raises(ValueError, match="wanted float32 of shape"):
            compressor.compress(vector, np.random.default_rng(0))


@codecs
def test_the_golden_payload_reads_as_ever(codec: str) -> None:
    """Bit for bit, on every processor: `tests/wire/compression` never changes."""
    vector = make_compressor(CODECS[codec], MIXED).decompress((GOLDEN / f"{codec}.payload").read_bytes())
    assert vector.astype("<f4").tobytes() == (GOLDEN / f"{codec}.float32").read_bytes()


@codecs
def test_every_truncation_of_the_golden_payload_is_refused(codec: str) -> None:
    """At every length; and so is a byte more."""
    compressor = make_compressor(CODECS[codec], MIXED)
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
            vector = make_compressor(CODECS[codec], MIXED).decompress(payload)
        except ProtocolError:
            return
    assert vector.shape == (MIXED.num_parameters,)
    assert np.isfinite(vector).all()


@codecs
@settings(max_examples=300, deadline=None)
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
@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=3000))
def test_noise_is_read_or_refused(codec: str, payload: bytes) -> None:
    """Bytes that no codec ever wrote."""
    read_or_refuse(codec, payload)


@codecs
@pytest.mark.parametrize("fill", [0x00, 0x55, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("length", [100, 100_000, 10_000_000])
def test_a_hostile_payload_costs_no_more_than_the_layout(codec: str, fill: int, length: int) -> None:
    """20 times the float32 vector at most, whatever it says and however long it is."""
    layout = layout_of((50, 1000))
    compressor = make_compressor(CODECS[codec], layout)
    symbols = 4  # where they begin in this layout
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
    assert make_compressor(CODECS[codec], MIXED).name == CODECS[codec]["name"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "''"),
        ({"name": "zip"}, "'zip'"),
        ({"name": "none", "step": "1"}, "'step'"),
        ({"name": "uq", "stepp": "1"}, "'stepp'"),
        ({"name": "uq", "step": "0.4"}, "'0.4'"),
        ({"name": "uq", "step": "8.1"}, "'8.1'"),
        ({"name": "uq", "step": "nan"}, "'nan'"),
        ({"name": "uq", "step": "1e0"}, "'1e0'"),
        ({"name": "uq", "step": "-1"}, "'-1'"),
        ({"name": "uq", "step": "1_0"}, "'1_0'"),
        ({"name": "uq", "step": " 1"}, "' 1'"),
        ({"name": "uq", "step": ""}, "''"),
    ],
)
def test_settings_that_are_not_understood_are_refused_by_name(settings: dict[str, str], named: str) -> None:
    """A plan of a later software, or a mistyped one: E_SCHEMA, and what it is about."""
    with pytest.raises(ProtocolError, match=named) as caught:
        make_compressor(settings, MIXED)
    assert caught.value.code is Code.SCHEMA


def test_the_default_step_is_the_plans() -> None:
    """A plan that names only the codec means the same as the default plan."""
    vector, rng = gaussian(MIXED), np.random.default_rng(0)
    plain, named = (make_compressor(s, MIXED) for s in ({"name": "uq"}, {"name": "uq", "step": "1.0"}))
    assert plain.compress(vector, rng) == named.compress(vector, rng)
