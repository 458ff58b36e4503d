"""The whole agent with its disk, its trainer and the real bundle, against a scripted gateway."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.datasets.fan_vibration import load_fan
from edge_agent import events as e
from edge_agent.agent import Agent
from edge_agent.configuring import AgentSettings
from edge_agent.gate import Reading
from edge_agent.identity import Identity, describe
from edge_agent.objects import Objects
from edge_agent.outbox import Outbox
from edge_agent.service import Service
from edge_agent.sources.folder import FolderSource
from edge_agent.trainer import OnnxTrainer
from edge_agent.worker import ThreadWorker
from fl_protocol.errors import ConfigError
from fl_protocol.memory import MemoryTransport
from fl_protocol.memory_broker import MemoryBroker
from fl_protocol.messages import DeviceEvent, DeviceInfo, DeviceState, Health, Offer, Prediction, Update
from fl_protocol.topics import Kind, build
from tests.edge_agent.rig import BUNDLE_BYTES, DEVICE, DEVICE_KEY, FLEET, FLEET_KEY
from tests.edge_agent.scripted import ScriptedGateway, accept
from tests.edge_agent.small import small_bundle
from tests.support.waiting import wait_until


class Bench:
    """A broker in memory, a gateway, and one device whose directory outlives its processes."""

    def __init__(self, directory: Path, *, bundle: bytes = BUNDLE_BYTES, **broker: Any) -> None:
        self.state, self.data = directory / "state", directory / "data"
        self.data.mkdir()
        self.broker = MemoryBroker(**broker)
        self.gateway = ScriptedGateway(
            MemoryTransport(self.broker, "gateway"), bundle, FLEET_KEY, FLEET, {DEVICE: DEVICE_KEY.public}
        )
        self.services: list[Service] = []

    def fill(self, *, n: int = 96) -> None:
        """Give the device its examples."""
        splits = load_fan(20)
        rows = np.random.default_rng(0).permutation(len(splits.train[0]))[:n]
        np.savez(self.data / "train.npz", x=splits.train[0][rows], y=splits.train[1][rows])
        np.savez(self.data / "validation.npz", x=splits.validation[0], y=splits.validation[1])

    def start(self, *, duty_cycle: float = 1.0) -> Service:
        """A new process of the agent."""
        outbox = Outbox(self.state / "outbox.sqlite3")
        restored = outbox.start()
        identity = Identity(DEVICE, FLEET, DEVICE_KEY, FLEET_KEY.public, restored.incarnation, restored.boot)
        agent = Agent(
            identity,
            describe(identity),
            AgentSettings(predict_s=0.05, health_s=0.05, state_s=0.0),
            restored,
            np.random.default_rng(3),
        )
        transport = MemoryTransport(self.broker, DEVICE, will=identity.will)
        service = Service(
            agent,
            transport,
            outbox,
            Objects(self.state / "objects"),
            FolderSource(self.data),
            ThreadWorker(lambda bundle: OnnxTrainer(bundle, duty_cycle=duty_cycle)),
            lambda: Reading(temperature_c=40.0),
            measure_s=0.05,
        )
        transport.start()
        self.services.append(service)
        return service

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
        """Let everybody work until `condition`."""

        def turn() -> Any:
            for service in self.services:
                service.step(0.0)
            self.gateway.step()
            return condition()

        return wait_until(turn, seconds, what)

    def kill(self, service: Service) -> None:
        """`kill -9`, as far as one process can: no goodbye, and the will is published."""
        self.services.remove(service)
        service._worker.stop()
        service._outbox.close()
        self.broker.cut(DEVICE)
        service._transport._wanted = False  # type: ignore[attr-defined]

    def states(self) -> list[str]:
        """All states that were published."""
        return [message.state for message in self.gateway.of(DeviceState) if isinstance(message, DeviceState)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench whose agents end with the test."""
    bench = Bench(tmp_path)
    yield bench
    for service in bench.services:
        service.close()


def test_a_device_learns_predicts_and_reports(bench: Bench) -> None:
    """From nothing but its configuration to ten versions, a better loss, predictions and a clean ledger."""
    bench.fill()
    service = bench.start()
    gateway = bench.gateway
    bench.until(lambda: gateway.version >= 10, "ten versions")
    bench.until(lambda: len(gateway.of(Prediction)) >= 2, "predictions")
    bench.until(lambda: gateway.of(Health), "health")
    losses = [update.metrics["loss"] for update in gateway.updates]
    assert np.mean(losses[-3:]) < losses[0]
    assert [update.base_version for update in gateway.updates] == sorted({u.base_version for u in gateway.updates})
    (info,) = (m for m in gateway.of(DeviceInfo)[-1:] if isinstance(m, DeviceInfo))
    assert (info.num_examples, info.public_key) == (96, DEVICE_KEY.public)
    prediction = gateway.of(Prediction)[-1]
    assert isinstance(prediction, Prediction)
    assert prediction.label in gateway.bundle.labels
    assert {"init", "ready", "training"} <= set(bench.states())
    assert all(message.ts > 0 for message in gateway.of(DeviceState))
    session = bench.broker._sessions[DEVICE]
    assert session.link
    sent = session.link.last_mid
    bench.until(lambda: all(mid > sent for mid in session.in_flight), "every delivery acknowledged")
    bench.services.remove(service)
    service.close()
    bench.gateway.step()
    assert bench.states()[-1] == "disconnected"
    assert not gateway.of(DeviceEvent)
    outbox = Outbox(bench.state / "outbox.sqlite3")
    ledger = [(DEVICE, row["incarnation"], row["seq"]) for row in outbox.ledger() if row["verdict"] == "accepted"]
    outbox.close()
    assert set(gateway.accepted) - set(ledger) <= {gateway.accepted[-1]}
    assert set(ledger) <= set(gateway.accepted)


def test_a_device_predicts_with_the_personal_values_that_it_has_learnt(tmp_path: Path) -> None:
    """At first those of the bundle, then its own, also after a restart; they never leave the device."""
    bench = Bench(tmp_path, bundle=small_bundle())
    bench.gateway.judge = lambda *_: "silence"  # one training of three steps, and no version after it
    np.savez(bench.data / "train.npz", x=np.zeros((12, 2), np.float32), y=np.zeros(12, np.int64))
    bench.gateway.plan_fields = {"batch_size": 4, "local_epochs": 2}

    def labels() -> list[str]:
        return [m.label for m in bench.gateway.of(Prediction) if isinstance(m, Prediction)]

    first = bench.start(duty_cycle=0.01)
    bench.until(lambda: "a" in labels(), "a prediction of its own")
    assert labels()[0] == "c"
    assert len(bench.gateway.updates[0].statistics) == 2  # one float16: no trace of the head
    bench.kill(first)
    told = len(labels())
    bench.start()
    bench.until(lambda: len(labels()) > told + 1, "predictions of the next process")
    assert set(labels()[told + 1 :]) == {"a"}
    for service in bench.services:
        service.close()


def test_killed_with_an_update_in_flight_it_sends_the_same_bytes_again(bench: Bench) -> None:
    """The gateway stays silent, the device dies and starts again: one update, one verdict, and it trains on."""
    bench.fill()
    gateway = bench.gateway
    gateway.judge = lambda *_: "silence"
    first = bench.start()
    bench.until(lambda: gateway.updates, "an update")
    bench.kill(first)
    gateway.judge = accept
    bench.start()
    bench.until(lambda: gateway.version >= 2, "more versions")
    assert gateway.updates[0] == gateway.updates[1]
    assert gateway.accepted[0][2] == 1
    assert [seq for _, _, seq in gateway.accepted] == list(range(1, len(gateway.accepted) + 1))
    boots = {message.boot for message in gateway.of(DeviceState) if isinstance(message, DeviceState)}
    assert boots == {1, 2}
    assert "lost" in bench.states()


def test_killed_in_mid_training_it_begins_again(bench: Bench) -> None:
    """Nothing was sent, so nothing is lost or doubled: the same version is trained by the next process."""
    bench.fill()
    slow = bench.start(duty_cycle=0.001)
    bench.until(lambda: "training" in bench.states(), "a training")
    bench.kill(slow)
    assert not bench.gateway.updates
    bench.start()
    bench.until(lambda: bench.gateway.version >= 1, "a version")
    assert (bench.gateway.updates[0].base_version, bench.gateway.updates[0].seq) == (0, 1)


def test_verdicts_of_every_kind_are_lived_with(bench: Bench) -> None:
    """deferred, rejected, stale: each ends as the ledger says, and training goes on where a new version is."""
    bench.fill()
    gateway, script = bench.gateway, {1: "deferred", 2: "rejected", 3: "stale"}

    def judge(update: Update, repeats: int) -> str:
        verdict = script.get(update.seq, "accepted")
        if verdict in ("rejected", "stale"):
            gateway.version += 1  # somebody else's update made a version
            gateway.release()
        return "accepted" if verdict == "deferred" and repeats else verdict

    gateway.judge = judge
    bench.start()
    bench.until(lambda: len(gateway.accepted) >= 3, "three accepted updates")
    assert [seq for _, _, seq in gateway.accepted][:3] == [1, 4, 5]
    assert sum(update.seq == 1 for update in gateway.updates) == 2


def test_an_update_larger_than_a_packet_goes_in_chunks(tmp_path: Path) -> None:
    """On a broker of small packets bundle, versions and updates all travel in chunks."""
    bench = Bench(tmp_path, max_packet=20_000)
    bench.fill()
    bench.gateway.codec = {"name": "none"}
    bench.start()
    bench.until(lambda: bench.gateway.version >= 2, "two versions")
    assert len(bench.gateway.of(Offer)) >= 2
    for service in bench.services:
        service.close()


def test_a_wiped_broker_is_survived(bench: Bench) -> None:
    """Sessions and retained messages are gone: the device subscribes, announces and goes on."""
    bench.fill()
    bench.start()
    bench.until(lambda: bench.gateway.version >= 1, "a version")
    bench.broker.wipe()
    version = bench.gateway.version
    bench.until(lambda: bench.gateway.version >= version + 2, "more versions")


def test_an_empty_data_folder_is_said_and_waited_for(bench: Bench) -> None:
    """The process starts; state and event name the folder."""
    bench.start()
    bench.until(lambda: "sleeping" in bench.states(), "sleeping")
    (state,) = bench.gateway.of(DeviceState)[-1:]
    assert isinstance(state, DeviceState)
    assert str(bench.data) in state.why
    assert any(m.event == "no examples" for m in bench.gateway.of(DeviceEvent) if isinstance(m, DeviceEvent))


def test_bad_examples_that_come_later_stop_training_with_a_reason(bench: Bench) -> None:
    """A file that does not fit is named, and what was learnt before stays."""
    bench.fill()
    bench.start()
    bench.until(lambda: bench.gateway.version >= 1, "a version")
    np.savez(bench.data / "zz.npz", x=np.zeros((3, 2)), y=np.zeros(3, np.int64))
    bench.until(lambda: bench.gateway.of(DeviceEvent), "an event")
    event = bench.gateway.of(DeviceEvent)[0]
    assert isinstance(event, DeviceEvent)
    assert "zz.npz" in event.message


def test_a_disk_that_fails_ends_the_process_with_a_reason(bench: Bench) -> None:
    """Not full but broken: crash-only, with a message for the operator."""
    bench.fill()
    service = bench.start()
    bench.until(lambda: bench.gateway.version >= 1, "a version")
    service._outbox._db.execute("DROP TABLE updates")
    bench.services.remove(service)
    with pytest.raises(ConfigError, match="cannot use the device's database"):
        wait_until(lambda: service.step(0.0) or bench.gateway.step(), 20)
    service.close()


def test_run_ends_when_asked_to(bench: Bench) -> None:
    """`run` returns, and the last word is `disconnected`."""
    bench.fill()
    service = bench.start()
    stop = threading.Event()
    bench.until(lambda: bench.states(), "a state")
    bench.services.remove(service)
    stop.set()
    service.run(stop)
    bench.gateway.step()
    assert bench.states()[-1] == "disconnected"
    retained, _ = bench.broker.retained[build(Kind.STATE, FLEET, device=DEVICE)]
    assert b"disconnected" in retained


def test_a_training_in_hand_is_abandoned_at_the_end(bench: Bench) -> None:
    """Nobody waits for it: its thread has ended when `close` returns."""
    bench.fill()
    service = bench.start(duty_cycle=0.001)
    bench.until(lambda: "training" in bench.states(), "a training")
    bench.services.remove(service)
    service.close()
    assert not service._worker._thread.is_alive()
    assert not bench.gateway.updates


def test_a_full_disk_loses_nothing(bench: Bench) -> None:
    """SQLite finds no room: the device sleeps and says why, then goes on with the same update."""
    bench.fill()
    service = bench.start()
    bench.until(lambda: bench.gateway.version >= 1, "a version")
    database, clock = service._outbox._db, {"ahead": 0.0}
    real = service._clock
    service._clock = lambda: real() + clock["ahead"]
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    filler = e.SaveCounter("x" * 100_000, 1)
    wait_until(lambda: not service._outbox.apply(filler), 5, "a full disk")
    bench.until(lambda: bench.states()[-1] == "sleeping", "sleeping")
    accepted = list(bench.gateway.accepted)
    database.execute(f"PRAGMA max_page_count = {100 * pages}")
    clock["ahead"] += 31
    bench.until(lambda: len(bench.gateway.accepted) >= len(accepted) + 3, "accepted updates")
    assert [seq for _, _, seq in bench.gateway.accepted] == list(range(1, len(bench.gateway.accepted) + 1))
