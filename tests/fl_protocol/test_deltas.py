"""Deltas between versions: exact on every way, bounded on hostile bytes, and nothing lost at the gateway."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.deltas import (
    apply_delta,
    decode_keyframe,
    downlink_step,
    encode_delta,
    encode_keyframe,
    reconstruct,
)
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import ModelLayout, TensorEntry, Vector

LAYOUT = ModelLayout(
    (
        TensorEntry("dense", (40, 30), "parameter"),
        TensorEntry("bias", (30,), "parameter"),
        TensorEntry("range", (3,), "statistic"),
        TensorEntry("scale", (1,), "parameter"),
    )
)


def bits(vector: Vector) -> bytes:
    """What must agree."""
    return vector.astype("<f4").tobytes()


def history(seed: int, versions: int, step: float, size: float = 1e-3) -> list[Vector]:
    """A first version on no grid, and what a gateway publishes of a walk from there, carrying what it leaves out."""
    rng = np.random.default_rng(seed)
    first = rng.normal(0, 0.1, LAYOUT.size).astype(np.float32)
    first[LAYOUT.num_parameters - 31 : LAYOUT.num_parameters - 1] = 0  # a bias begins at nothing
    published, residual = [first], np.zeros(LAYOUT.size, np.float32)
    for _ in range(versions):
        moved = (rng.standard_t(3, LAYOUT.size) * size * rng.uniform(0.1, 1)).astype(np.float32)
        wanted = published[-1] + residual + moved
        published.append(reconstruct(LAYOUT, published[-1], wanted, step))
        residual = wanted - published[-1]
    return published


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.25, 8), st.floats(1e-6, 1))
def test_every_later_version_is_made_of_every_earlier_one_bit_for_bit(
    seed: int, versions: int, step: float, size: float
) -> None:
    """Step by step, or at one go over any number of versions: the same float32 bits."""
    published = history(seed, versions, step, size)
    for later, target in enumerate(published[1:], 1):
        for earlier in range(later):
            delta = encode_delta(LAYOUT, published[earlier], target)
            if delta is None:
                # From the initial parameters, which lie on no grid, it is rarely impossible: then it comes whole.
                assert earlier in (0, *range(later - 1)), "from one version to the next it can always be said"
                continue
            assert bits(apply_delta(LAYOUT, published[earlier], delta)) == bits(target)


def test_one_delta_over_many_versions_is_shorter_than_one_after_the_other() -> None:
    """Symbols add up: that is what the grid is for."""
    published = history(3, 30, 2.0)
    steps = [encode_delta(LAYOUT, a, b) for a, b in pairwise(published)]
    merged = encode_delta(LAYOUT, published[0], published[-1])
    assert merged is not None
    assert len(merged) < 0.5 * sum(len(s) for s in steps if s is not None)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.25, 8))
def test_what_is_left_out_stays_bounded(seed: int, step: float) -> None:
    """The gateway's residual does not grow with the number of versions: it is at most a few changes long."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 0.1, LAYOUT.size).astype(np.float32)
    residual, left = np.zeros_like(base), []
    place = slice(0, LAYOUT.num_parameters)
    for _ in range(60):
        moved = rng.normal(0, 1e-3, LAYOUT.size).astype(np.float32)
        wanted = base + residual + moved
        published = reconstruct(LAYOUT, base, wanted, step)
        base, residual = published, wanted - published
        left.append(float(np.linalg.norm(residual[place]) / np.linalg.norm(moved[place])))
    assert max(left[30:]) <= 2 * max(left[:30]) + 1


def test_what_is_on_no_grid_has_no_delta() -> None:
    """Float32 parameters as an optimizer leaves them: the keyframe has to do."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0, 1, LAYOUT.size).astype(np.float32) * np.float32(10.0**k) for k in (-6, 3))
    b[LAYOUT.num_parameters :] = np.float32(0.1)  # no float16
    assert encode_delta(LAYOUT, a, b) is None
    assert bits(decode_keyframe(LAYOUT, encode_keyframe(b))) == bits(b)


GOLDEN = Path(__file__).parents[1] / "wire" / "deltas"  # as they were first written; never to be changed


def test_what_devices_in_the_field_hold_is_read_for_ever() -> None:
    """Version 1, the delta from it to version 3, and version 3 as a keyframe: the same bits on every processor."""
    base = np.frombuffer((GOLDEN / "base.f32").read_bytes(), "<f4").astype(np.float32)
    target = (GOLDEN / "target.f32").read_bytes()
    assert bits(apply_delta(LAYOUT, base, (GOLDEN / "base-to-target.delta").read_bytes())) == target
    assert bits(decode_keyframe(LAYOUT, (GOLDEN / "target.keyframe").read_bytes())) == target


@settings(max_examples=300)
@given(st.data())
def test_hostile_bytes_are_refused_or_make_a_finite_version(data: st.DataObject) -> None:
    """Cut, stretched, flipped or invented: `ProtocolError`, or a vector whose hash will tell."""
    base, target = history(1, 1, 1.0)
    delta = encode_delta(LAYOUT, base, target)
    assert delta is not None
    good = data.draw(st.sampled_from([delta, encode_keyframe(target)]))
    at = data.draw(st.integers(0, len(good)))
    bad = data.draw(
        st.one_of(
            st.binary(max_size=200).map(lambda b: good[:1] + b),
            st.just(good[:at]),
            st.binary(min_size=1, max_size=8).map(lambda b: good[:at] + b + good[at + len(b) :]),
            st.binary(min_size=1, max_size=64).map(lambda b: good + b),
        )
    )
    for read in (lambda: apply_delta(LAYOUT, base, bad), lambda: decode_keyframe(LAYOUT, bad)):
        try:
            vector = read()
        except ProtocolError:
            continue
        assert vector.shape == (LAYOUT.size,)
        assert np.isfinite(vector).all()


def test_a_keyframe_that_would_unpack_to_more_than_the_version_is_refused() -> None:
    """A bomb is not unpacked."""
    bomb = encode_keyframe(np.zeros(1 << 22, np.float32))
    with pytest.raises(ProtocolError) as refused:
        decode_keyframe(LAYOUT, bomb)
    assert refused.value.code in (Code.SIZE, Code.SCHEMA)


@pytest.mark.parametrize(
    ("given_settings", "step"),
    [({}, None), ({"name": "none"}, None), ({"name": "uq"}, 1.5), ({"name": "uq", "step": "2.0"}, 2.0)],
)
def test_a_plan_says_how_versions_are_published(given_settings: dict[str, str], step: float | None) -> None:
    """Nothing: whole."""
    assert downlink_step(given_settings) == step


@pytest.mark.parametrize("bad", [{"name": "topk"}, {"name": "uq", "step": "99"}, {"name": "uq", "bits": "1"}])
def test_an_unknown_downlink_is_refused_by_name(bad: dict[str, str]) -> None:
    """When the task is made, not on the devices."""
    with pytest.raises(ProtocolError) as refused:
        downlink_step(bad)
    assert refused.value.code is Code.SCHEMA
