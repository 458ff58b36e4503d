"""The device follows its fleet's key from one to the next, and never back."""

from edge_agent import events as e
from fl_protocol.messages import Desired
from fl_protocol.signing import SigningKey, seal
from fl_protocol.succession import hand_over
from fl_protocol.topics import Kind
from tests.edge_agent.rig import FLEET, FLEET_KEY, TASK, Rig, all_of, complaints, the, topic

NEW, NEWER, OTHER = (SigningKey(letter * 32) for letter in (b"n", b"m", b"o"))
CHAIN = hand_over(None, FLEET_KEY, NEW, FLEET)


def desired(key: SigningKey) -> bytes:
    return seal(Desired(tasks=(TASK,), counter=9), key, FLEET, topic(Kind.DESIRED))


def test_a_new_key_is_believed_and_the_old_one_no_longer() -> None:
    """After a restart, too; and what is retained is asked for again, since it may have come too early."""
    rig = Rig()
    rig.connect()
    effects = rig.hear(Kind.KEYS, CHAIN)
    assert the(e.SaveFleetKey, effects) == e.SaveFleetKey(FLEET_KEY.public, NEW.public)
    asked = [name for subscribe in all_of(e.Subscribe, effects) for name, _ in subscribe.filters]
    assert topic(Kind.DESIRED) in asked
    assert not all_of(e.SaveFleetKey, rig.hear(Kind.KEYS, CHAIN))
    for _ in range(2):
        assert [c.code for c in complaints(rig.hear(Kind.DESIRED, desired(FLEET_KEY)))] == ["E_SIG"]
        rig.restart()
        rig.connect()
    assert not complaints(rig.hear(Kind.DESIRED, desired(NEW)))


def test_rotations_that_were_slept_through_are_caught_up_with() -> None:
    rig = Rig()
    rig.connect()
    longer = hand_over(CHAIN, NEW, NEWER, FLEET)
    assert the(e.SaveFleetKey, rig.hear(Kind.KEYS, longer)).key == NEWER.public
    assert [c.code for c in complaints(rig.hear(Kind.KEYS, CHAIN))] == ["E_SIG"]  # an old one, played again
    assert rig.agent.fleet_key == NEWER.public


def test_a_key_that_nobody_signed_for_changes_nothing() -> None:
    rig = Rig()
    rig.connect()
    forged = hand_over(None, OTHER, NEW, FLEET)
    assert [c.code for c in complaints(rig.hear(Kind.KEYS, forged))] == ["E_SIG"]
    assert not rig.hear(Kind.KEYS, b"")  # cleared: signed by nobody
    assert rig.agent.fleet_key == FLEET_KEY.public


def test_another_configured_key_counts_more_than_what_was_followed() -> None:
    """A device that enrols again has it from its new ticket."""
    restored = e.Restored(boot=1, incarnation="0" * 16, followed=(FLEET_KEY.public, NEW.public))
    assert restored.believed(FLEET_KEY.public) == NEW.public
    assert restored.believed(OTHER.public) == OTHER.public


def test_a_full_disk_does_not_stop_it() -> None:
    """It is believed at once, and kept when there is room."""
    rig = Rig()
    rig.connect()
    rig.disk_full = True
    rig.hear(Kind.KEYS, CHAIN)
    assert rig.agent.fleet_key == NEW.public
    rig.disk_full = False
    rig.wait(31)
    assert rig.restored.followed == (FLEET_KEY.public, NEW.public)
