"""Attackers that know all honest deltas: held to the papers' definitions, written down once more in plain loops."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.simulator.attacks.attackers import Attacked
from anabranch.simulator.attacks.colluding import (
    MOST,
    JustInside,
    Overheard,
    alie,
    ipm,
    make_craft,
    min_max,
    with_others,
    z_of,
)
from anabranch.simulator.data import read_bundle
from anabranch.simulator.experiment import (
    AttackSection,
    ChecksSection,
    DataSection,
    Experiment,
    FleetSection,
    StopSection,
    TrainingSection,
)
from anabranch.simulator.learning import StandInLearning
from anabranch.simulator.twin import Twin
from edge_agent.events import Train
from edge_agent.sources import Dataset, Examples
from edge_agent.training import WorkOrder

_, STAND_IN = read_bundle(Experiment(name="test"))
P = STAND_IN.layout.num_parameters
TEN = Dataset(Examples(np.zeros((10, 1)), np.zeros(10)), Examples(np.zeros((0, 1)), np.zeros(0)), np.zeros((1, 1)))
deltas = st.integers(0, 10_000).flatmap(
    lambda seed: st.builds(
        lambda n, p, size: np.random.default_rng(seed).normal(0, size, (n, p)) + 0.3 * size,
        st.integers(2, 20),
        st.integers(1, 30),
        st.sampled_from((1e-3, 1.0, 1e3)),
    )
)

# --- the definitions, independently, in float64 ------------------------------------------------------------------


def mean_of(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def sigma_of(rows: list[list[float]]) -> list[float]:
    """With n - 1, as byzfl's ALittleIsEnough computes it (`ddof=1`; its docstring says n)."""
    return [
        (sum((x - m) ** 2 for x in column) / (len(rows) - 1)) ** 0.5
        for column, m in zip(zip(*rows, strict=True), mean_of(rows), strict=True)
    ]


def distance(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def min_max_by_halving(rows: list[list[float]]) -> list[float]:
    """As the paper does it, NDSS 2021, algorithm 1: gamma between what is inside and what is outside."""
    mean, sigma = mean_of(rows), sigma_of(rows)
    most = max(distance(a, b) for a in rows for b in rows)

    def sent(gamma: float) -> list[float]:
        return [m - gamma * s for m, s in zip(mean, sigma, strict=True)]

    inside, outside = 0.0, 1.0
    while max(distance(sent(outside), row) for row in rows) <= most:
        outside *= 2
    for _ in range(80):
        middle = (inside + outside) / 2
        if max(distance(sent(middle), row) for row in rows) <= most:
            inside = middle
        else:
            outside = middle
    return sent(inside)


@given(deltas, st.floats(0.1, 3))
def test_alie_is_mu_minus_z_sigma(honest: np.ndarray, z: float) -> None:
    """arXiv:1902.06156. byzfl's ALittleIsEnough(tau) is mu + tau sigma: this is its tau = -z."""
    rows = honest.tolist()
    expected = [m - z * s for m, s in zip(mean_of(rows), sigma_of(rows), strict=True)]
    assert np.allclose(alie(honest, z), expected, rtol=1e-9, atol=1e-12)


@given(deltas, st.floats(0.1, 10))
def test_ipm_is_the_mean_backwards(honest: np.ndarray, scale: float) -> None:
    """arXiv:1903.03936. byzfl's InnerProductManipulation(tau) is the same; FallOfEmpires(tau) has scale = tau - 1."""
    expected = [-scale * m for m in mean_of(honest.tolist())]
    assert np.allclose(ipm(honest, scale), expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(deltas)
def test_min_max_goes_as_far_as_it_can_hide(honest: np.ndarray) -> None:
    """NDSS 2021 by halving an interval, where ours solves for gamma; byzfl has no such attack to be held to."""
    sent = min_max(honest)
    size = float(np.abs(honest).max())
    assert np.allclose(sent, min_max_by_halving(honest.tolist()), rtol=1e-6, atol=1e-6 * size)
    most = max(np.linalg.norm(a - b) for a in honest for b in honest)
    assert max(np.linalg.norm(sent - row) for row in honest) <= most * (1 + 1e-9)


@given(st.lists(deltas, min_size=1, max_size=3))
def test_just_inside_goes_as_far_as_it_has_seen_others_go(buffers: list[np.ndarray]) -> None:
    """Against the mean, by the largest median distance so far; no longer than four and a half median norms."""
    craft, largest = JustInside(1.8), 0.0
    for honest in buffers:
        mean = np.mean(honest, axis=0)
        largest = max(largest, float(np.median(np.linalg.norm(honest - mean, axis=1))))
        sent, size = craft(honest), float(np.abs(honest).max())
        went = float(np.linalg.norm(sent - mean))
        assert went <= 1.8 * largest * (1 + 1e-9) + 1e-9 * size
        assert (sent - mean) @ mean <= 1e-9 * size**2
        assert np.linalg.norm(sent) <= 4.5 * np.median(np.linalg.norm(honest, axis=1)) + 1e-9 * size or went == 0.0


@given(deltas, st.randoms())
def test_who_came_first_changes_nothing(honest: np.ndarray, random) -> None:
    """What is sent is a function of the set of honest deltas."""
    rows = list(range(len(honest)))
    random.shuffle(rows)
    for craft in (lambda h: alie(h, 1.0), lambda h: ipm(h, 0.6), min_max):
        assert np.allclose(craft(honest), craft(honest[rows]), rtol=1e-7, atol=1e-9 * np.abs(honest).max())


def test_z_is_the_papers() -> None:
    """f of n: with so many honest devices further out than z they are the majority. 50 with 10: 16 of 40 are."""
    assert z_of(50, 10) == pytest.approx(NormalDist().inv_cdf(24 / 40))
    assert z_of(21, 4) == pytest.approx(NormalDist().inv_cdf(10 / 17))
    assert z_of(30, 6) == pytest.approx(NormalDist().inv_cdf(14 / 24))
    assert z_of(10, 1) == 0.0  # too few: they send the mean
    assert z_of(4, 3) == 0.0  # one honest device has no spread
    assert z_of(10, 7) == pytest.approx(NormalDist().inv_cdf(2 / 3))  # the majority already


def test_one_delta_has_no_spread() -> None:
    """Then all but IPM send that one."""
    one = np.array([[1.0, -2.0]])
    assert np.array_equal(alie(one, 1.5), one[0])
    assert np.array_equal(min_max(one), one[0])
    assert np.array_equal(min_max(np.repeat(one, 3, axis=0)), one[0])


# --- what is overheard -------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), max_size=100), st.integers(1, 100))
def test_the_newest_of_the_last_devices_is_known(devices: list[int], buffer: int) -> None:
    """One a device, as many as the buffer holds and 20 at most, in the order in which they came to an end."""
    overheard, newest = Overheard(buffer), dict[int, int]()
    for at, device in enumerate(devices):
        overheard.hear(str(device), np.array([device, at], np.float32))
        newest.pop(device, None)
        newest[device] = at
    expected = list(newest.items())[-min(buffer, MOST) :]
    assert len(overheard) == len(expected)
    if expected:
        assert overheard.honest.tolist() == [list(pair) for pair in expected]
        assert overheard.honest.dtype == np.float64


def order(base: np.ndarray = STAND_IN.initial) -> Train:
    """Train from `base`."""
    work = WorkOrder(4, 1, 1000, dict(STAND_IN.hyper))
    return Train("task", STAND_IN, base, work, np.zeros(0, np.float32), np.random.default_rng(0))


def test_attackers_know_who_came_to_an_end_before_them() -> None:
    """Not who has begun: outcomes are heard when they are asked for. Nobody before them: then they are honest."""
    inner = StandInLearning(STAND_IN, {"a": 0, "b": 1, "c": 2, "d": 3}, spread=0.5, noise=0.0, seed=0)
    overheard = Overheard(8)
    lie = with_others(make_craft("ipm", 0.5, 4, 1), overheard)
    learning = Attacked(inner, {"d": lie}, {"c", "d"}, overheard)
    base = STAND_IN.initial[:P]
    outcomes = {name: learning.begin(name, order(), TEN) for name in "abcd"}
    assert np.array_equal(learning.begin("d", order(), TEN)().parameters, inner.begin("d", order(), TEN)().parameters)
    honest = outcomes["a"]().parameters - base
    outcomes["c"]()  # another attacker, of another kind: what it sends is no news
    other = (base * np.float32(1.5)).astype(np.float32)
    later = learning.begin("d", order(np.concatenate([other, STAND_IN.initial[P:]])), TEN)
    assert np.allclose(outcomes["d"]().parameters, base - 0.5 * honest, atol=1e-6)
    second = outcomes["b"]().parameters - base
    assert np.allclose(later().parameters, other - 0.25 * (honest + second), atol=1e-6)  # on its own base


# --- in a run ----------------------------------------------------------------------------------------------------

RUN = Experiment(
    name="run",
    plan={"buffer": 6, "deadline_s": 30, "local_epochs": 5},
    data=DataSection(noise=0.0),
    fleet=FleetSection(devices=10, slowness_spread=0.3),
    training=TrainingSection(step_ms=200.0),
    stop=StopSection(versions=30),
    checks=ChecksSection(thorough=False),
)


def run(*attacks: AttackSection) -> Twin:
    """Ten devices of the stand-in, thirty versions, seed 1."""
    twin = Twin(Experiment(**{**vars(RUN), "attacks": attacks}), 1)
    twin.run()
    twin.recorder.close()
    assert not twin.checker.violations
    return twin


@pytest.fixture(scope="module")
def clean() -> float:
    """The loss that nobody's attack leaves."""
    loss = run().recorder.loss
    assert loss is not None
    return loss


SECTIONS = {
    "sign-flip": {},
    "scaled": {},
    "noise": {"scale": 3.0},
    "free-ride": {},
    "alie": {},
    "ipm": {},
    "min-max": {},
    "just-inside": {},
}


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_mean_stands_no_attack(clean: float, kind: str) -> None:
    """Three of ten attack: the fleet ends further from its optimum, though every update is one that counts.

    The optimum is everybody's, attackers' included: what they send in the place of their own is missing, too.
    """
    twin = run(AttackSection(kind=kind, share=0.3, **SECTIONS[kind]))
    assert twin.recorder.loss > 1.1 * clean
    counted = {row.device for row in twin.store.rows() if row.verdict.verdict == "accepted"}
    assert set(twin.attackers.terms) <= counted
    assert len(twin.attackers.terms) == 3


def test_the_same_seed_is_the_same_attack() -> None:
    """What attackers know is in virtual time's order, not in that of the threads that compute."""
    one, other = (run(AttackSection(kind="min-max", share=0.3)) for _ in range(2))
    assert one.trace.sha256 == other.trace.sha256
