"""The gateway publishes what few bits say, keeps the rest, and brings every device from where it is."""

import hashlib

import numpy as np
import pytest

from broker_aggregator import deltas as shelf
from broker_aggregator.deltas import Deltas
from broker_aggregator.events import CommitRelease, Received, Send, SendDelta, SendObject
from fl_protocol.deltas import apply_delta, decode_keyframe
from fl_protocol.messages import Manifest, Want
from fl_protocol.tensors import Vector
from tests.fl_protocol.test_deltas import LAYOUT, history
from tests.support.fleet import Gateway, make_update

FANS = ("fan-20", "fan-25")


def sha(vector: Vector) -> str:
    """As manifests name it."""
    return hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()


class Kept:
    """A store that keeps these versions, and counts how often it is asked."""

    def __init__(self, versions: list[Vector]) -> None:
        self.data = {sha(v): v.astype("<f4").tobytes() for v in versions}
        self.asked = 0

    def vector_bytes(self, sha256: str) -> bytes | None:
        """As `ReadableStore.vector_bytes`."""
        self.asked += 1
        return self.data.get(sha256)


def shelf_of(versions: list[Vector], **settings: int) -> tuple[Deltas, Kept]:
    """A shelf over a store of these versions."""
    kept = Kept(versions)
    return Deltas(kept, **settings), kept  # type: ignore[arg-type]


def test_a_device_is_brought_from_any_kept_version_to_any_other() -> None:
    """By one delta, whose result has the bits that the manifest names."""
    versions = history(5, 6, 2.0)
    deltas, _ = shelf_of(versions)
    for base in versions[1:-1]:
        found = deltas.between(LAYOUT, sha(base), sha(versions[-1]))
        assert found is not None
        assert found[0] == sha(base)
        assert sha(apply_delta(LAYOUT, base, found[1])) == sha(versions[-1])


def test_who_holds_nothing_that_is_kept_is_given_a_keyframe() -> None:
    """No base, or one that was pruned; of a version that is not kept there is nothing."""
    versions = history(5, 3, 2.0)
    deltas, _ = shelf_of(versions[1:])
    for base in (None, sha(versions[0])):
        found = deltas.between(LAYOUT, base, sha(versions[-1]))
        assert found is not None
        assert found[0] is None
        assert sha(decode_keyframe(LAYOUT, found[1])) == sha(versions[-1])
    assert deltas.between(LAYOUT, None, "0" * 64) is None


def test_what_a_whole_fleet_asks_for_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delta, a keyframe, and that there is no delta."""
    versions = history(5, 3, 2.0)
    rough = np.random.default_rng(1).normal(0, 1e6, LAYOUT.size).astype(np.float32)
    deltas, _ = shelf_of([*versions, rough])
    made: list[bytes | None] = []
    real = shelf.encode_delta
    monkeypatch.setattr(shelf, "encode_delta", lambda *given: made.append(real(*given)) or made[-1])
    for _ in range(50):
        deltas.between(LAYOUT, sha(versions[1]), sha(versions[3]))
        deltas.between(LAYOUT, sha(rough), sha(rough))
        deltas.between(LAYOUT, sha(versions[1]), sha(rough))
    assert [delta is None for delta in made] == [False, True]


def test_memory_is_bounded() -> None:
    """The oldest objects go, and are made again when somebody asks."""
    versions = history(5, 12, 0.25)
    deltas, _ = shelf_of(versions, most_bytes=4096)
    for _ in range(2):
        for base in versions[1:-1]:
            found = deltas.between(LAYOUT, sha(base), sha(versions[-1]))
            assert found is not None
            assert deltas.get(hashlib.sha256(found[1]).hexdigest()) == found[1]
        assert sum(map(len, deltas._objects.values())) <= 4096 + 4 * LAYOUT.size


def test_what_is_not_published_goes_into_the_next_version() -> None:
    """Of equal steps nothing is lost: after many versions the sum is there, but for one version's residual."""
    g = Gateway().add(*FANS)
    g.start(buffer=1, downlink={"name": "uq", "step": "2.0"}, staleness_exponent="0")
    first = g.task.release.vector.copy()
    step = np.asarray([0.01, 0.02, 0.03], np.float32)
    for seq in range(1, 31):
        g.send(make_update("fan-20", seq, g.task.release.version, step))
    meant = first[:3].astype(np.float64) + 30 * step
    release = g.task.release
    np.testing.assert_allclose(release.vector[:3] + release.residual[:3], meant, rtol=1e-5)
    assert np.abs(release.residual[:3]).max() <= 0.03


def test_a_release_is_announced_with_its_delta() -> None:
    """Which is broadcast in place of the version; at the gateway it is the model that is evaluated and kept."""
    g = Gateway().add(*FANS)
    g.start(buffer=1, downlink={"name": "uq", "step": "1.0"})
    base = g.task.release.vector
    effects = g.send(make_update("fan-20", 1, g.task.release.version, np.full(3, 0.5, np.float32)))
    release = next(e.release for e in effects if isinstance(e, CommitRelease))
    manifest = next(e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Manifest))
    sent = next(e for e in effects if isinstance(e, SendObject))
    assert sent.data is not None
    assert (manifest.delta, manifest.delta_size) == (sent.sha256, len(sent.data))
    assert sha(apply_delta(g.task.layout, base, sent.data)) == manifest.sha256 == release.sha256


def test_a_want_is_answered_for_the_tasks_that_there_are() -> None:
    """A device of the fleet asks; a task that is gone has no answer."""
    g = Gateway().add(*FANS)
    g.start(downlink={"name": "uq"})
    want = Want(task="fan", sha256=g.task.release.sha256)
    asked = [e for e in g.handle(Received("fan-20", want)) if isinstance(e, SendDelta)]
    assert [e.want for e in asked] == [want]
    assert not [e for e in g.handle(Received("fan-20", Want(task="gone", sha256="0" * 64))) if isinstance(e, SendDelta)]
