"""Nothing that a device learnt gets lost uncounted, whatever the gateway says, or does not say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.compression import CODECS, Compressor, make_compressor, prepare
from fl_protocol.compression.feedback import clip
from fl_protocol.tensors import ModelLayout, TensorEntry, Vector

LAYOUT = ModelLayout((TensorEntry("matrix", (30, 20), "parameter"), TensorEntry("bias", (20,), "parameter")))
P = LAYOUT.num_parameters
EXAMPLES = [*(codec.example for codec in CODECS.values()), {"name": "uq", "step": "3"}, {"name": "uq", "bits": "0.3"}]
STEADY = [s for s in EXAMPLES if s["name"] in ("none", "float16", "uq", "eden") and "bits" not in s]

verdicts = st.sampled_from(["accepted", "refused", "silence"])


def compressor_of(codec: dict[str, str]) -> Compressor:
    return make_compressor(codec, LAYOUT)


def norm(vector: Vector) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))


@settings(max_examples=100, deadline=None)
@given(
    codec=st.sampled_from(EXAMPLES),
    said=st.lists(verdicts, min_size=1, max_size=25),
    clip_norm=st.sampled_from([None, 0.0, 0.5, 20.0]),
    age=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_what_was_accepted_kept_and_discarded_is_what_was_learnt(
    codec: dict[str, str], said: list[str], clip_norm: float | None, age: float, seed: int
) -> None:
    """sum(accepted q) + residual + sum(discarded) = sum(deltas), to 2^-22 of the largest |a| a step and element."""
    compressor, rng = compressor_of(codec), np.random.default_rng(seed)
    residual = np.zeros(P, np.float32)
    learnt, accepted, discarded = (np.zeros(P) for _ in range(3))
    largest, steps, prepared = 0.0, 0, None
    for verdict in said:
        if prepared is None:  # else: silence before, and the same bytes go out again
            delta = (rng.standard_normal(P) * 10 ** rng.uniform(-4, 0)).astype(np.float32)
            prepared = prepare(compressor, delta, residual, clip_norm=clip_norm, rng=rng, age=age)
            learnt += delta
            largest, steps = max(largest, float(np.abs(delta).max() + np.abs(residual).max())), steps + 1
            waiting = delta.astype(np.float64)
        if verdict == "accepted":
            accepted += compressor.decompress(prepared.payload)
            residual = prepared.if_accepted
            discarded += prepared.discarded_if_accepted
        elif verdict == "refused":
            residual = prepared.if_refused
            discarded += prepared.discarded_if_refused
        if verdict != "silence":
            prepared = None
    in_hand = waiting if prepared is not None else 0  # its verdict is still to come
    assert np.abs(accepted + residual + discarded + in_hand - learnt).max() <= 2.0**-22 * largest * steps


@pytest.mark.parametrize("codec", EXAMPLES)
def test_sent_is_what_the_gateway_reads(codec: dict[str, str]) -> None:
    """Bit for bit: the residual rests on it."""
    compressor, rng = compressor_of(codec), np.random.default_rng(0)
    delta, residual = (rng.standard_normal(P).astype(np.float32) for _ in range(2))
    prepared = prepare(compressor, delta, residual, clip_norm=None, rng=rng)
    assert np.array_equal(prepared.sent, compressor.decompress(prepared.payload))


def test_lossless_and_accepted_leaves_nothing_behind() -> None:
    """By hand: no codec, no clip, no residual."""
    delta = np.ones(P, np.float32)
    prepared = prepare(compressor_of({"name": "none"}), delta, 2 * delta, clip_norm=None, rng=np.random.default_rng(0))
    assert np.array_equal(prepared.sent, 3 * delta)
    assert not prepared.if_accepted.any()
    assert not prepared.discarded_if_accepted.any()
    # Refused: a = 3 has three times the delta's norm; two are kept, and half of them by age.
    assert np.allclose(prepared.if_refused, 1.0, rtol=1e-6)
    assert np.allclose(prepared.discarded_if_refused, 2.0, rtol=1e-6)


def test_the_clip_stands_after_the_residual_is_added() -> None:
    """What is compressed never has a larger norm, and what was cut is booked, not kept."""
    rng = np.random.default_rng(0)
    delta, residual = (rng.standard_normal(P).astype(np.float32) for _ in range(2))
    prepared = prepare(compressor_of({"name": "none"}), delta, residual, clip_norm=1.0, rng=rng)
    assert norm(prepared.sent) == pytest.approx(1.0, rel=1e-6)
    assert not prepared.if_accepted.any()
    assert norm(prepared.discarded_if_accepted) == pytest.approx(norm(delta + residual) - 1.0, rel=1e-6)


@pytest.mark.parametrize("codec", STEADY)
def test_a_steady_drift_arrives_on_average(codec: dict[str, str]) -> None:
    """The point of error feedback: 40 accepted updates bring 40 deltas, but for a residual of at most 3.5."""
    compressor, rng = compressor_of(codec), np.random.default_rng(0)
    delta = rng.standard_normal(P).astype(np.float32)
    residual, brought = np.zeros(P, np.float32), np.zeros(P)
    for _ in range(40):
        prepared = prepare(compressor, delta, residual, clip_norm=None, rng=rng)
        brought += prepared.sent
        residual = prepared.if_accepted
        assert norm(residual) < 3.5 * norm(delta)
    assert norm(brought - 40 * delta) < 3.5 * norm(delta)


def test_refusals_do_not_breed_refusals() -> None:
    """However often it is refused, a device sends at most the norm of two deltas, and owes one: half age, section 2."""
    compressor, rng = compressor_of({"name": "none"}), np.random.default_rng(0)
    delta = rng.standard_normal(P).astype(np.float32)
    residual = np.zeros(P, np.float32)
    for _ in range(30):
        prepared = prepare(compressor, delta, residual, clip_norm=None, rng=rng)
        residual = prepared.if_refused
        assert norm(prepared.sent) <= 2.0001 * norm(delta)
        assert norm(residual) <= 1.0001 * norm(delta)


def test_a_delta_that_is_not_finite_or_of_another_length_is_never_prepared() -> None:
    """The residual would be poisoned for ever."""
    compressor, rng = compressor_of({"name": "none"}), np.random.default_rng(0)
    good, bad = np.ones(P, np.float32), np.ones(P, np.float32)
    bad[3] = np.nan
    for delta, residual in ((bad, good), (good, bad), (good[1:], good), (good, good[1:])):
        with pytest.raises(ValueError, match=r"NaN or infinity|finite, and as long"):
            prepare(compressor, delta, residual, clip_norm=None, rng=rng)


def test_clip_shortens_and_never_lengthens() -> None:
    """By hand."""
    assert np.allclose(clip(np.array([3, 4], np.float32), 1.0), [0.6, 0.8])
    assert clip(np.array([3, 4], np.float32), 5.0).tolist() == [3, 4]
    assert clip(np.array([3, 4], np.float32), 0.0).tolist() == [0, 0]
    assert clip(np.zeros(2, np.float32), 0.0).tolist() == [0, 0]
