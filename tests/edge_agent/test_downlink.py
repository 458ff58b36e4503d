"""Versions as deltas: the shortest way that is open, and always one that ends."""

import hashlib

import numpy as np

from edge_agent import events as e
from edge_agent.task import FRESH_S
from fl_protocol.deltas import encode_delta, encode_keyframe, reconstruct
from fl_protocol.messages import Delta, GatewayState, Get, Result, Want
from fl_protocol.tensors import Vector
from fl_protocol.topics import Kind
from tests.edge_agent.rig import BUNDLE, BUNDLE_BYTES, TASK, Rig, all_of, complaints, sent, the, topic

LAYOUT = BUNDLE.layout
DOWNLINK = {"name": "uq", "step": "1.5"}


def published(count: int) -> list[Vector]:
    """Versions as a gateway publishes them; version 0 is the bundle's own."""
    rng, versions = np.random.default_rng(1), [BUNDLE.initial]
    for _ in range(count):
        wanted = versions[-1] + rng.normal(0, 1e-2, LAYOUT.size).astype(np.float32)
        versions.append(reconstruct(LAYOUT, versions[-1], wanted, 1.5))
    return versions


VERSIONS = published(6)


def sha(vector: Vector) -> str:
    """As manifests name it."""
    return hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()


def delta(base: int, to: int) -> bytes:
    """What makes one version of another."""
    made = encode_delta(LAYOUT, VERSIONS[base], VERSIONS[to])
    assert made is not None
    return made


class Downlink(Rig):
    """A rig whose gateway publishes deltas."""

    def begin(self) -> list[e.Effect]:
        """Connected, with a task and its bundle."""
        self.connect()
        self.desire(TASK)
        self.objects[BUNDLE.sha256] = BUNDLE_BYTES
        return self.plan(downlink=DOWNLINK)

    def release(self, version: int, *, named: bool = True) -> list[e.Effect]:
        """A manifest, with the delta from the version before."""
        of = delta(version - 1, version) if named else b""
        names = {"delta": hashlib.sha256(of).hexdigest(), "delta_size": len(of)} if of else {}
        vector = VERSIONS[version]
        return self.announce(version, sha256=sha(vector), size=vector.nbytes, **names)

    def answer(self, want: Want, base: int | None, to: int, chunk_size: int = 16384) -> list[e.Effect]:
        """The gateway's answer, bytes included where they fit."""
        data = encode_keyframe(VERSIONS[to]) if base is None else delta(base, to)
        return self.hear(
            Kind.DELTA,
            Delta(
                task=TASK,
                sha256=want.sha256,
                base=None if base is None else sha(VERSIONS[base]),
                object=hashlib.sha256(data).hexdigest(),
                size=len(data),
                chunk_size=chunk_size,
                data=data if len(data) <= chunk_size else b"",
            ),
        )


def wants(effects: list[e.Effect]) -> list[Want]:
    """What was asked for."""
    return [send.message for send in sent(Kind.WANT, effects) if isinstance(send.message, Want)]


def gets(effects: list[e.Effect]) -> list[Get]:
    """Which objects were asked for."""
    return [send.message for send in sent(Kind.GET, effects) if isinstance(send.message, Get)]


def test_the_first_version_comes_with_the_bundle() -> None:
    """Nothing is asked for, and the training begins from the bundle's own parameters."""
    rig = Downlink()
    rig.begin()
    effects = rig.release(0, named=False)
    assert np.array_equal(the(e.Train, effects).base, BUNDLE.initial)
    assert not gets(rig.asked + rig.wait(30))
    assert not wants(rig.asked)


def test_a_broadcast_delta_makes_the_next_version_without_a_word() -> None:
    """And the disk keeps the version itself."""
    rig = Downlink()
    rig.begin()
    order = the(e.Train, rig.release(0, named=False))
    rig.train(order)
    rig.release(1)
    effects = rig.serve(delta(0, 1))
    assert not gets(rig.asked)
    assert the(e.SaveObject, effects).data == VERSIONS[1].astype("<f4").tobytes()
    assert rig.agent._tasks.known[TASK].intake.model.version == 1  # type: ignore[union-attr]


def test_a_device_that_missed_versions_asks_for_one_delta() -> None:
    """From the version that it holds to the newest, whose bytes come with the answer."""
    rig = Downlink()
    rig.begin()
    rig.train(the(e.Train, rig.release(0, named=False)))
    effects = rig.release(4)
    (want,) = wants(effects)
    assert (want.base, want.sha256) == (sha(VERSIONS[0]), sha(VERSIONS[4]))
    effects = rig.answer(want, 0, 4)
    assert the(e.SaveObject, effects).data == VERSIONS[4].astype("<f4").tobytes()


def test_a_large_delta_comes_in_chunks() -> None:
    """The answer names it, and the device paces."""
    rig = Downlink()
    rig.begin()
    rig.train(the(e.Train, rig.release(0, named=False)))
    (want,) = wants(rig.release(4))
    data = delta(0, 4)
    effects = rig.answer(want, 0, 4, chunk_size=len(data) - 100) + rig.wait(2)
    (get,) = gets(effects)
    assert (get.sha256, get.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert all_of(e.SaveObject, rig.serve(data, len(data) - 100))


def test_after_a_restart_a_delta_begins_from_what_the_disk_kept() -> None:
    """Also when the version on the disk is no longer the newest, and nobody remembers its number."""
    rig = Downlink()
    rig.begin()
    rig.train(the(e.Train, rig.release(0, named=False)))
    rig.release(1)
    rig.serve(delta(0, 1))
    rig.restart()
    rig.begin()
    (want,) = wants(rig.release(5))
    assert want.base == sha(VERSIONS[1])
    assert all_of(e.SaveObject, rig.answer(want, 1, 5))


def test_a_new_device_begins_from_the_bundles_own_parameters() -> None:
    """In a task that is under way; or takes a keyframe, where the gateway no longer keeps the first version."""
    rig = Downlink()
    rig.begin()
    (want,) = wants(rig.release(3))
    assert want.base == sha(VERSIONS[0])
    effects = rig.answer(want, None, 3) + rig.serve(encode_keyframe(VERSIONS[3]))
    assert np.array_equal(the(e.Train, effects).base, VERSIONS[3])


def test_a_gateway_that_does_not_answer_is_asked_for_the_whole_version() -> None:
    """After a few words in vain; what was lost or wiped there costs bytes, not the training."""
    rig = Downlink()
    rig.begin()
    effects = rig.release(3) + rig.wait(120)
    assert 2 <= len(wants(effects)) <= 4
    assert gets(effects)[0].sha256 == sha(VERSIONS[3])
    blob = VERSIONS[3].astype("<f4").tobytes()
    assert all_of(e.Train, rig.serve(blob))


def test_a_wrong_delta_costs_one_more_question() -> None:
    """Whatever it makes is not the version that was signed for: it is not used, and the next way is taken."""
    rig = Downlink()
    rig.begin()
    rig.train(the(e.Train, rig.release(0, named=False)))
    (want,) = wants(rig.release(4))
    lie = delta(0, 3)
    effects = rig.hear(
        Kind.DELTA,
        Delta(
            task=TASK,
            sha256=want.sha256,
            base=want.base,
            object=hashlib.sha256(lie).hexdigest(),
            size=len(lie),
            chunk_size=16384,
            data=lie,
        ),
    )
    assert [c.code for c in complaints(effects)] == ["E_SHA"]
    assert not all_of(e.SaveObject, effects)
    assert gets(effects + rig.wait(5))[0].sha256 == sha(VERSIONS[4])
    assert all_of(e.SaveObject, rig.serve(VERSIONS[4].astype("<f4").tobytes()))


def test_a_renewed_version_is_known_by_its_hash() -> None:
    """The same parameters under a higher number: nothing is fetched, and the device trains."""
    rig = Downlink()
    rig.begin()
    rig.train(the(e.Train, rig.release(0, named=False)))
    pending = rig.restored.pending[0]
    rig.hear(
        Kind.RESULT,
        Result(
            task=TASK,
            incarnation=pending.incarnation,
            seq=pending.seq,
            verdict="stale",
            counter=rig.count(Kind.RESULT),
        ),
    )
    effects = rig.announce(1, sha256=sha(VERSIONS[0]), size=VERSIONS[0].nbytes)
    assert np.array_equal(the(e.Train, effects).base, VERSIONS[0])
    assert not gets(effects)


def test_a_device_that_trains_and_predicts_fetches_a_newer_version_now_and_then() -> None:
    """Not each that is released meanwhile: in a minute many are, and one delta spans them."""
    rig = Downlink(predict_s=5.0)
    rig.begin()
    the(e.Train, rig.release(0, named=False))
    versions = topic(Kind.MANIFEST), topic(Kind.BROADCAST, version="+")
    assert the(e.Unsubscribe, rig.asked).filters == versions
    assert the(e.Subscribe, rig.wait(FRESH_S)).filters == tuple((name, 0) for name in versions)
    (want,) = wants(rig.release(4))
    assert the(e.Unsubscribe, rig.answer(want, 0, 4)).filters == versions


def test_while_the_gateway_is_away_silence_means_nothing() -> None:
    """A minute of it costs no whole version: when the gateway is back, it is asked for a delta once more."""
    rig = Downlink()
    rig.begin()
    rig.train(the(e.Train, rig.release(0, named=False)))
    rig.hear(Kind.GATEWAY, GatewayState(state="ready", boot=1, bseq=1))
    effects = rig.release(4)
    rig.hear(Kind.GATEWAY, GatewayState(state="lost", boot=1, bseq=1))
    effects += rig.wait(100)
    assert wants(effects)
    assert not gets(effects)
    back = rig.hear(Kind.GATEWAY, GatewayState(state="ready", boot=2, bseq=1)) + rig.wait(10)
    assert wants(back)
    assert all_of(e.SaveObject, rig.answer(wants(back)[-1], 0, 4))


def test_a_gateway_that_died_without_a_word_is_asked_for_a_delta_when_it_is_back() -> None:
    """Also if the device had begun to ask for the whole version, and nothing of it came."""
    rig = Downlink()
    rig.begin()
    rig.train(the(e.Train, rig.release(0, named=False)))
    assert gets(rig.release(4) + rig.wait(120))
    back = rig.hear(Kind.GATEWAY, GatewayState(state="ready", boot=2, bseq=1)) + rig.wait(10)
    assert wants(back)
    assert not gets(back)


def test_an_object_that_a_restarted_gateway_has_forgotten_is_asked_for_anew() -> None:
    """It was named, and its chunks do not come: another `Want`, which has it made again."""
    rig = Downlink()
    rig.begin()
    rig.train(the(e.Train, rig.release(0, named=False)))
    (want,) = wants(rig.release(4))
    data = delta(0, 4)
    rig.answer(want, 0, 4, chunk_size=len(data) - 100)
    effects = rig.wait(2) + rig.hear(Kind.GATEWAY, GatewayState(state="ready", boot=2, bseq=1)) + rig.wait(10)
    assert wants(effects)
    effects = rig.answer(wants(effects)[-1], 0, 4, chunk_size=len(data) - 100)
    effects += rig.wait(120)  # now without a restart that was heard of
    assert wants(effects)


def test_no_name_with_a_newline_behind_it_is_a_name() -> None:
    """`$` matches before one; what is no SHA-256 must not come as far as a file's name."""
    rig = Downlink()
    rig.begin()
    rig.train(the(e.Train, rig.release(0, named=False)))
    (want,) = wants(rig.release(4))
    bad = Delta(task=TASK, sha256=want.sha256, base=want.base, object="a" * 64 + "\\n", size=70_000, chunk_size=16384)
    effects = rig.hear(Kind.DELTA, bad)
    assert [c.code for c in complaints(effects)] == ["E_SCHEMA"]
