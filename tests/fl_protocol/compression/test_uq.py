"""The dead-zone quantiser: what it keeps, what it drops, and that something always arrives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.compression import make_compressor
from fl_protocol.compression.uq import MAX_STEP, MIN_STEP, DeadZone
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import ModelLayout, TensorEntry, Vector

N = 400
ONE = ModelLayout((TensorEntry("w", (N,), "parameter"),))


def through(vector: Vector, step: float, layout: ModelLayout = ONE) -> Vector:
    codec = DeadZone(layout, step)
    return codec.decompress(codec.compress(vector, np.random.default_rng(0)))


def test_the_formula_by_hand() -> None:
    """rms 2, step 1: s = 2; below 1.34 is zero, up to 3.34 is 2, up to 5.34 is 4."""
    vector = np.zeros(N, np.float32)
    vector[:6] = [1.33, -1.35, 3.33, -3.35, 5.33, 5.35]
    vector[6] = np.sqrt(4 * N - np.sum(vector.astype(np.float64) ** 2))
    assert through(vector, 1.0)[:6].tolist() == pytest.approx([0, -2, 2, -4, 4, 6], rel=1e-6)


def test_tensors_have_their_own_steps_and_small_ones_finer_ones() -> None:
    """A tensor ten thousand times smaller is as well served; one under 256 elements has a step `fine` times finer."""
    shapes = {"large": (20, 20), "small": (255,), "tiny steps": (300,)}
    layout = ModelLayout(tuple(TensorEntry(n, s, "parameter") for n, s in shapes.items()))
    drawn = np.random.default_rng(0).standard_normal(layout.num_parameters).astype(np.float32)
    drawn[655:] *= np.float32(1e-4)
    back = through(drawn, 1.0, layout)
    assert np.abs(back - drawn)[400:655].max() < 0.67 * 1.05 / 4
    for where in (slice(0, 400), slice(655, 955)):
        assert np.linalg.norm(back[where] - drawn[where]) < 0.5 * np.linalg.norm(drawn[where])


laws = st.sampled_from(["gaussian", "student", "equal", "one", "uniform"])


@settings(max_examples=200, deadline=None)
@given(law=laws, step=st.floats(MIN_STEP, MAX_STEP), seed=st.integers(0, 2**32))
def test_something_always_arrives(law: str, step: float, seed: int) -> None:
    """|a - q s|^2 <= (1 - 0.75/n) |a|^2 whatever the tensor: error feedback never waits for ever."""
    rng = np.random.default_rng(seed)
    drawn = {
        "gaussian": rng.standard_normal(N),
        "student": rng.standard_t(1.2, N),
        "equal": rng.choice([-0.01, 0.01], N),
        "one": np.eye(1, N, int(seed % N))[0],
        "uniform": rng.random(N),
    }[law].astype(np.float32)
    lost = np.sum((through(drawn, step).astype(np.float64) - drawn) ** 2)
    assert lost <= (1 - 0.75 / N) * np.sum(drawn.astype(np.float64) ** 2) * (1 + 1e-5)


def test_a_coarser_step_takes_fewer_bytes() -> None:
    """What the plan's `step` is for, on 38k Gaussian parameters: bits each at 1, 2 and 3."""
    layout = ModelLayout((TensorEntry("w", (190, 200), "parameter"),))
    rng = np.random.default_rng(0)
    vector = rng.standard_normal(38_000).astype(np.float32)
    bits = [
        8 * len(make_compressor({"name": "uq", "step": step}, layout).compress(vector, rng)) / 38_000
        for step in ("1", "2", "3")
    ]
    assert bits == pytest.approx([1.91, 0.87, 0.31], abs=0.03)


@pytest.mark.parametrize("scale", [np.nan, np.inf, 3e38])
def test_a_scale_that_leaves_float32_is_refused(scale: float) -> None:
    """NaN, infinity, and one that gets there by a symbol."""
    vector = np.zeros(N, np.float32)
    vector[0], vector[1:4] = 50, 1
    payload = DeadZone(ONE).compress(vector, np.random.default_rng(0))
    with pytest.raises(ProtocolError) as caught:
        DeadZone(ONE).decompress(np.array([scale], "<f4").tobytes() + payload[4:])
    assert caught.value.code is Code.NAN


MODEL = ModelLayout(
    tuple(
        TensorEntry(f"t{i}", s, "parameter") for i, s in enumerate([(120, 80), (80,), (80, 30), (30,), (30, 6), (6,)])
    )
)


@settings(max_examples=60, deadline=None)
@given(
    law=st.sampled_from(["gaussian", "student", "flat"]),
    bits=st.floats(0.08, 1.5),
    seed=st.integers(0, 2**32),
)
def test_an_update_keeps_to_its_bytes_and_uses_them(law: str, bits: float, seed: int) -> None:
    """`bits` a parameter at most, and 90 % of them unless the finest step needs fewer."""
    rng, size = np.random.default_rng(seed), MODEL.num_parameters
    vector = {
        "gaussian": rng.standard_normal(size),
        "student": rng.standard_t(2.2, size),
        "flat": rng.uniform(-1, 1, size),  # as error feedback leaves it
    }[law].astype(np.float32)
    payload = make_compressor({"name": "uq", "step": "0.5", "bits": f"{bits:.6f}"}, MODEL).compress(vector, rng)
    most = int(float(f"{bits:.6f}") * size / 8)
    assert len(payload) <= most
    if law != "flat":  # a third of whose elements leave the dead zone at one step
        finest = len(make_compressor({"name": "uq", "step": "0.5"}, MODEL).compress(vector, rng))
        assert len(payload) >= min(0.9 * most, finest)


def test_rate_control_has_no_memory_and_the_reader_needs_none() -> None:
    """The same vector gives the same bytes after any other; a codec without the setting reads them."""
    rng = np.random.default_rng(0)
    first, second = (rng.standard_t(3, MODEL.num_parameters).astype(np.float32) for _ in range(2))
    codec = make_compressor({"name": "uq", "bits": "0.3"}, MODEL)
    before = codec.compress(second, rng)
    codec.compress(100 * first, rng)
    assert codec.compress(second, rng) == before
    assert np.array_equal(make_compressor({"name": "uq"}, MODEL).decompress(before), codec.decompress(before))


def test_a_device_may_ask_for_fewer_bytes_than_the_plan_and_never_for_more() -> None:
    """`max_bytes` and `bits`: the smaller one counts; ample bytes change nothing, bit for bit."""
    rng = np.random.default_rng(0)
    vector = rng.standard_t(3, MODEL.num_parameters).astype(np.float32)

    def payload(settings: dict[str, str], max_bytes: int | None = None) -> bytes:
        return make_compressor({"name": "uq", **settings}, MODEL, max_bytes).compress(vector, rng)

    plain = payload({"step": "2"})
    assert payload({"step": "2"}, 10**6) == plain
    assert 380 < len(payload({"step": "2"}, 400)) <= 400
    assert payload({"step": "2", "bits": "0.2"}, 10**6) == payload({"step": "2", "bits": "0.2"})
    assert len(payload({"step": "2", "bits": "0.2"}, 200)) <= 200
    assert len(payload({"step": "2"}, 1)) < 0.1 * len(plain)  # cannot be: as few as the range allows
