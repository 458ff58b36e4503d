"""What is due when: by quantiles of pace, each tier by itself, and nothing between two tiers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_aggregator.buffering import Gathering, Tiers
from broker_aggregator.events import CommitRelease, Tick
from fl_protocol.messages import Plan
from tests.support.fleet import Gateway, make_update, of_kind

D = [0.1, 0.2, 0.3]
FAST, SLOW = [f"a-{i}" for i in range(4)], [f"z-{i}" for i in range(4)]


def tiered(**plan: object) -> Gateway:
    """Two tiers; without a pace yet, the first half by name is in the first."""
    g = Gateway().add(*FAST, *SLOW)
    g.come(*FAST, *SLOW)
    return g.start(**{"mode": "synchronous", "tiers": 2, "buffer": 8, "deadline_s": 100, "max_staleness": 5, **plan})


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.none() | st.floats(0, 1e5)), st.integers(2, 8))
def test_tiers_are_even_and_by_pace(paces, count):
    """Every device is in one tier; none of a faster tier is slower than one of the next."""
    tiers = Tiers.begin(count, 0.0)
    tiers.regroup(paces)
    sizes = [tier.members for tier in tiers.tiers]
    assert sum(sizes) == len(paces)
    assert max(sizes) - min(sizes) <= 1
    for one in paces:
        for other in paces:
            mine, theirs = paces[one], paces[other]
            if mine is not None and theirs is not None and tiers.of(one) < tiers.of(other):
                assert mine <= theirs
    assert 0 <= tiers.of("nobody knows me") < count


def test_a_tier_releases_as_soon_as_its_own_devices_are_there():
    """Its part of the buffer: half. What its devices trained before that is late; across tiers it is only stale."""
    g = tiered()
    for fan in FAST:
        assert g.verdict(make_update(fan, 1, 0, D)).verdict == "accepted"
    assert g.task.release.version == 1
    late = g.verdict(make_update(FAST[0], 2, 0, D))
    assert (late.verdict, late.code) == ("stale", "E_STALE")
    for fan in FAST:
        g.send(make_update(fan, 3, 1, D))
    for fan in SLOW:
        assert g.verdict(make_update(fan, 1, 0, D)).verdict == "accepted"
    assert g.task.release.version == 3
    assert g.task.release.staleness == (2, 2, 2, 2)
    assert {name[0] for name in g.task.release.used} == set(SLOW)


def test_a_tier_has_its_own_deadline():
    """Its part of the quorum is enough then; another tier's releases do not move it."""
    g = tiered(quorum=4)
    for fan in SLOW[:2]:
        g.send(make_update(fan, 1, 0, D))
    g.now = 90
    for fan in FAST:
        g.send(make_update(fan, 1, 0, D))
    assert g.task.release.version == 1
    g.now = 100
    (commit,) = of_kind(g.handle(Tick()), CommitRelease)
    assert {name[0] for name in commit.release.used} == set(SLOW[:2])


def test_tiers_follow_the_pace_that_was_measured():
    """From version to update in open participation: the slow go together, whatever they are called."""
    g = tiered(deadline_s=1000)
    odd = [FAST[0], FAST[1], SLOW[0], SLOW[1]]
    even = [FAST[2], FAST[3], SLOW[2], SLOW[3]]
    g.now = 10
    for fan in odd:
        g.send(make_update(fan, 1, 0, D))
    g.now = 400
    for fan in even:
        g.send(make_update(fan, 1, 0, D))
    assert g.task.release.version == 1  # of the first half by name; it knows the paces
    g.now = 410
    for fan in FAST[:2]:
        g.send(make_update(fan, 2, 1, D))
    assert {name[0] for name in g.task.release.used} == set(odd)


@pytest.mark.parametrize("seed", range(3))
def test_mode_tiers_and_participation_change_while_the_task_runs(seed):
    """Nothing that was accepted is lost, nothing is counted twice, and versions go on."""
    import numpy as np

    from tests.support.fleet import tiny_bundle

    rng = np.random.default_rng(seed)
    g = Gateway().add(*FAST, *SLOW)
    g.come(*FAST, *SLOW)
    g.start(buffer=4, deadline_s=20)
    changes: list[dict[str, object]] = [
        {"mode": "synchronous"},
        {"mode": "synchronous", "tiers": 3},
        {"mode": "synchronous", "tiers": 2, "participation": {"name": "invited"}},
        {"participation": {"name": "invited", "cohort": "3"}},
        {"mode": "synchronous", "participation": {"name": "invited", "by": "fair"}},
        {"participation": {"name": "open", "share": "0.5"}},
    ]
    accepted: list[tuple[str, str, int]] = []
    for seq in range(240):
        g.now += 1
        g.handle(Tick())
        if seq % 40 == 20:
            plan = {"buffer": 4, "deadline_s": 20, "downlink": {"name": "none"}, **changes[seq // 40]}
            assert g.ask("task-change", tiny_bundle(), task="fan", plan=plan).status == "successful"
        fan = str(rng.choice([*FAST, *SLOW]))
        base = max(0, g.task.release.version - int(rng.integers(0, 3)))
        result = g.verdict(make_update(fan, seq, base, D))
        if result.verdict == "accepted":
            accepted.append((fan, "0" * 16, seq))
    counted = [name for e in of_kind(g.effects, CommitRelease) for name in e.release.used]
    assert sorted([*counted, *(b.name for b in g.task.buffer)]) == sorted(accepted)
    assert g.task.release.version > 12


def test_without_tiers_everybody_is_one():
    """And a plan that has none is followed at once."""
    gathering = Gathering()
    fields = {"task": "t", "revision": 1, "state": "running", "bundle_sha256": "0" * 64, "bundle_size": 1}
    plan = Plan(**fields, fingerprint="0" * 32, mode="synchronous", tiers=2)
    gathering.follow(plan, 0.0)
    assert len(gathering.needs(plan)) == 2
    gathering.follow(Plan(**fields, fingerprint="0" * 32), 0.0)
    assert (gathering.tier_of("a"), gathering.since("a"), gathering.tiers) == (0, 0, None)
