"""What rules and optimizers remember is a release's, and survives a restart bit for bit, in both stores."""

import numpy as np
import pytest

from broker_aggregator.coordinator import Coordinator
from broker_aggregator.events import SaveDevice
from broker_aggregator.operations import OPERATOR, versions_of
from broker_aggregator.reading import replay
from broker_aggregator.service import DURABLE
from tests.broker_aggregator.aggregation.sets import CHAINS, TRUSTED, stands_some
from tests.support.disks import KINDS, StoreDisk
from tests.support.fleet import FLEET, Gateway, key_of, make_update, tiny_bundle

BUFFER = 7
DEVICES = [f"d{i}" for i in range(2 * BUFFER)]  # one half fills the odd buffers, the other the even ones
OPTIMIZERS = [{"name": name} for name in ("adam", "yogi", "adagrad", "fadas")]


@pytest.fixture(params=KINDS)
def disk(request, tmp_path):
    """Where the store is kept: in SQLite's file, or in the simulator's model of it."""
    disk = StoreDisk(request.param, tmp_path)
    yield disk
    disk.close()


def keep(store, g):
    """What must not be forgotten, in one transaction."""
    with store.transaction():
        for effect in g.effects:
            if isinstance(effect, DURABLE):
                store.apply(effect, 1)
    g.effects.clear()


def started(store, **plan):
    g = Gateway().add(*DEVICES).start(buffer=BUFFER, **plan)
    with store.transaction():
        for device in DEVICES:
            store.apply(SaveDevice(device, key_of(device).public), 1)
    keep(store, g)
    return g


def restarted(disk, g):
    """A gateway that knows nothing but what the store holds."""
    loaded = disk.open().load(g.now)
    coordinator = Coordinator(
        FLEET,
        loaded.fleet,
        loaded.tasks,
        operator_counter=loaded.counters.get(OPERATOR, 0),
        last_versions=versions_of(loaded.counters),
    )
    return Gateway(coordinator, g.now, counter=g.counter)


def fill(g, seed):
    """A whole buffer: one of the seven goes the other way, every third is late."""
    rng, version = np.random.default_rng(seed), g.task.release.version
    for i, device in enumerate(DEVICES[seed % 2 :: 2]):
        g.counter += 1
        delta = (1 + 0.3 * rng.normal(size=3)) * (-1 if i == 6 else 1)
        base = max(0, version - (i % 3 == 1))
        g.send(make_update(device, g.counter, base, delta, local_steps=3 + i, num_examples=10 * (i + 1)))


def words_of(release):
    """All that must be the same, as bytes."""
    return (
        release.version,
        release.sha256,
        {name: value.tobytes() for name, value in release.rule.items()},
        {name: value.tobytes() for name, value in release.optimizer.items()},
    )


def rule(name, **settings):
    trusted = {"trusted": TRUSTED} if name.endswith("fltrust") else {}
    hostile = {"attackers": "0.1"} if stands_some(name) else {}
    return {"rule": {"name": name, **trusted, **hostile, **settings}}


PLANS = [
    *(rule(name) for name in CHAINS if not name.startswith("bucketing+krum")),
    rule("bucketing+krum", attackers="0"),
    rule("clip+mean", clip="quantile"),
    rule("screen+centred-clipping"),
    rule("mean", staleness_end="0", anneal="3"),
    {"server_momentum": "0.9"},
    *({"optimizer": optimizer, "server_learning_rate": "0.1"} for optimizer in OPTIMIZERS),
    {**rule("screen+clip+centred-clipping", clip="quantile"), "optimizer": {"name": "adam"}},
    {**rule("robust"), "downlink": {"name": "uq", "step": "1.5"}},
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_restart_between_releases_changes_no_bit(disk, plan, tmp_path_factory):
    """Four releases, a restart before each, against a gateway that was never stopped; and a replay makes them again."""
    store = disk.open()
    g = started(store, **plan)
    other = StoreDisk(disk.kind, tmp_path_factory.mktemp("other"))
    never = started(other.open(), **plan)
    try:
        for seed in range(4):
            g = restarted(disk, g)
            store = disk.opened[-1]
            for gateway in (g, never):
                fill(gateway, seed)
            keep(store, g)
            assert g.task.release.version == seed + 1
            assert words_of(g.task.release) == words_of(never.task.release)
            assert words_of(store.release("fan")) == words_of(g.task.release)
    finally:
        other.close()
    made = list(replay(store, "fan"))
    assert len(made) == 4
    assert all(release.same for release in made)


def test_another_rule_begins_with_no_memory(disk):
    """What the last one remembered is dropped at the next release; a rule that stays keeps its own."""
    store = disk.open()
    g = started(store, **rule("screen+centred-clipping"))
    fill(g, 0)
    assert {"centred-clipping.centre", "screen.direction", "screen.device/d4"} <= set(g.task.release.rule)
    centre = g.task.release.rule["centred-clipping.centre"]
    change = {"buffer": BUFFER, "downlink": {"name": "none"}}
    g.ask("task-change", tiny_bundle(), task="fan", plan={**change, **rule("centred-clipping", radius="0.01")})
    fill(g, 1)
    assert set(g.task.release.rule) == {"centred-clipping.centre"}
    moved = np.linalg.norm(g.task.release.rule["centred-clipping.centre"] - centre)
    assert moved <= 0.0301, "it went on from the former centre, three times a hundredth at most"
    g.ask("task-change", tiny_bundle(), task="fan", plan={**change, **rule("mean")})
    fill(g, 2)
    assert g.task.release.rule == {}
    g.ask("task-change", tiny_bundle(), task="fan", plan={**change, "optimizer": {"name": "adam"}})
    fill(g, 3)
    assert set(g.task.release.optimizer) == {"m", "v"}
    keep(store, g)
    assert all(release.same for release in replay(store, "fan"))
