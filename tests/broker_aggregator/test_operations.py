"""What an operator asks is done whole or refused with what to do; a deleted task leaves nothing behind."""

import pytest

from broker_aggregator.events import Asked, Clear, CommitRelease, Evaluated, Quarantine, RemoveTask, SaveCounter, Send
from fl_protocol.messages import Answer, Ask, Desired, Manifest, Plan
from fl_protocol.tensors import ModelLayout, TensorEntry
from fl_protocol.topics import Kind
from tests.support.fleet import LAYOUT, Gateway, key_of, make_update, of_kind, tiny_bundle

D = [0.1, 0.2, 0.3]
OTHER = ModelLayout((TensorEntry("v", (5,), "parameter"),))


def gateway() -> Gateway:
    return Gateway().add("fan-0", "fan-1")


def sent(effects, kind: type) -> list:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def test_a_created_task_is_published_and_every_device_is_told():
    """Plan and manifest retained, its first version committed, every device's `desired` names it."""
    g = gateway()
    assert g.ask("task-create", tiny_bundle(), task="fan", plan={"buffer": 2}).status == "successful"
    (plan,) = sent(g.effects, Plan)
    assert (plan.buffer, plan.revision, plan.state, plan.batch_size) == (2, 1, "created", 4)
    assert sent(g.effects, Manifest)[0].version == 0
    assert [d.tasks for d in sent(g.effects, Desired)] == [("fan",)] * 2


@pytest.mark.parametrize(
    ("plan", "said", "hint"),
    [
        ({"bufer": 3}, "no field `bufer`", "buffer"),
        ({"buffer": 0}, "buffer", ""),
        ({"buffer": "many"}, "buffer", ""),
        ({"buffer": 2, "quorum": 3}, "quorum = 3 is above buffer = 2", "part of the buffer"),
        ({"hyper": {"speed": "1"}}, "no hyper-parameter speed", "learning_rate"),
        ({"codec": {"name": "zip"}}, "zip", ""),
        ({"staleness_exponent": "77"}, "staleness_exponent", "from 0 to 4"),
        ({"server_learning_rate": "fast"}, "server_learning_rate", ""),
        ({"fingerprint": "0" * 32}, "no field `fingerprint`", ""),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan, said, hint):
    """The answer names the field; nothing was created."""
    g = gateway()
    answer = g.ask("task-create", tiny_bundle(), task="fan", plan=plan)
    assert answer.status == "failed"
    assert said in answer.message
    assert hint in answer.hint
    assert not g.coordinator.tasks
    assert not of_kind(g.effects, CommitRelease)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("task-create", {"task": "fan"}, "no bundle"),
        ("task-create", {"task": "Fan/../x"}, "no bundle"),
        ("task-start", {"task": "fan"}, "no task fan"),
        ("task-start", {}, "`task` is missing"),
        ("device-allow", {"device": "x", "public_key": "12"}, "64 hexadecimal"),
        ("device-allow", {"device": "x/y", "public_key": "0" * 64}, "a-z"),
        ("device-revoke", {"device": "nobody"}, "no device nobody"),
        ("make-coffee", {}, "unknown command"),
    ],
)
def test_commands_that_cannot_be_are_refused(name, arguments, said):
    """With a sentence and a hint."""
    answer = gateway().ask(name, **arguments)
    assert (answer.status, bool(answer.hint)) == ("failed", True)
    assert said in answer.message


def test_a_task_name_that_is_no_id_is_refused():
    """It would become a topic."""
    answer = gateway().ask("task-create", tiny_bundle(), task="Fan/../x", plan={})
    assert answer.status == "failed"
    assert "a-z" in answer.message


def test_an_old_command_played_again_is_not_obeyed():
    """A counter seen before: no answer, no effect but a note."""
    g = gateway().start()
    effects = g.handle(Asked(Ask(name="task-delete", arguments={"task": "fan"}, counter=g.counter), "other", None))
    assert "fan" in g.coordinator.tasks
    assert not of_kind(effects, SaveCounter)
    assert not sent(effects, Answer)


def test_a_changed_plan_is_a_new_revision():
    """What waits in the buffer stays; the version goes on."""
    g = gateway().start(buffer=2)
    g.send(make_update("fan-0", 1, 0, D))
    assert g.ask("task-change", tiny_bundle(), task="fan", plan={"buffer": 3}).status == "successful"
    assert (g.task.plan.revision, g.task.plan.buffer, g.task.plan.state) == (2, 3, "running")
    assert len(g.task.buffer) == 1
    assert sent(g.effects, Plan)[-1].revision == 2


def test_another_model_releases_what_waits_and_starts_anew():
    """Version numbers go on; an update of the old model is E_FINGERPRINT; what was accepted is counted first."""
    g = gateway().start(buffer=2)
    g.send(make_update("fan-0", 1, 0, D))
    g.ask("task-change", tiny_bundle(OTHER, "other"), task="fan", plan={})
    assert not g.task.buffer
    assert [e.release.version for e in of_kind(g.effects, CommitRelease)] == [0, 1, 2]
    assert g.task.release.fingerprint == OTHER.fingerprint
    assert g.verdict(make_update("fan-1", 1, 0, D)).code == "E_FINGERPRINT"
    assert g.verdict(make_update("fan-1", 2, 2, D, fingerprint=OTHER.fingerprint)).code == "E_SIZE"


def test_a_deleted_task_leaves_no_retained_topic():
    """Every retained topic of it is cleared, accepted updates are quarantined, devices are told."""
    g = gateway().start(buffer=2)
    g.send(make_update("fan-0", 1, 0, D))
    retained = {str(e.topic) for e in g.effects if isinstance(e, Send) and e.retain and e.topic.task == "fan"}
    before = len(g.effects)
    g.ask("task-delete", task="fan")
    after = g.effects[before:]
    assert {str(e.topic) for e in of_kind(after, Clear)} == retained
    assert len(of_kind(after, Quarantine)) == len(of_kind(after, RemoveTask)) == 1
    assert [d.tasks for d in sent(after, Desired)] == [()] * 2
    assert g.verdict(make_update("fan-0", 2, 0, D)).code == "E_TASK"


def test_versions_of_a_name_used_again_go_on():
    """A device that slept through the deletion must not take the new task's versions for old ones."""
    g = gateway().start(buffer=1)
    g.send(make_update("fan-0", 1, 0, D))
    assert g.task.release.version == 1
    g.ask("task-delete", task="fan")
    g.start(buffer=1, stop={"versions": 1})
    assert g.task.release.version == 2
    g.send(make_update("fan-0", 2, 2, D))
    assert (g.task.release.version, g.task.plan.state) == (3, "finished")


def test_a_task_that_ended_goes_on_from_a_new_version():
    """Every device has trained the last one already; the same parameters are published under the next number."""
    g = gateway().start(buffer=1, stop={"versions": 1})
    g.send(make_update("fan-0", 1, 0, D))
    last = g.task.release
    assert g.ask("task-start", task="fan").status == "failed"
    g.ask("task-change", tiny_bundle(), task="fan", plan={"buffer": 1, "stop": {"versions": 3}})
    assert g.ask("task-start", task="fan").status == "successful"
    assert (g.task.release.version, g.task.release.sha256) == (2, last.sha256)
    g.send(make_update("fan-0", 2, 2, D))
    assert (g.task.release.version, g.task.plan.state) == (3, "running")  # a renewal is no version made of updates
    g.send(make_update("fan-0", 3, 3, D))
    assert (g.task.release.version, g.task.plan.state) == (4, "finished")


def test_what_came_of_an_earlier_life_of_a_task_is_stale():
    """Deleted and made again, or given another model and the first one back: an old base means other parameters."""
    g = gateway().start(buffer=1)
    g.send(make_update("fan-0", 1, 0, D))
    g.ask("task-delete", task="fan")
    g.start(buffer=1)
    assert g.task.plan.origin == g.task.release.version == 2
    assert g.verdict(make_update("fan-1", 1, 1, D)).verdict == "stale"
    g.ask("task-change", tiny_bundle(OTHER, "other"), task="fan", plan={"buffer": 1})
    g.ask("task-change", tiny_bundle(), task="fan", plan={"buffer": 1})
    assert g.task.plan.origin == g.task.release.version == 4
    assert g.verdict(make_update("fan-1", 2, 2, D)).verdict == "stale"
    assert g.verdict(make_update("fan-1", 3, 4, D)).verdict == "accepted"


def test_a_late_measurement_of_the_model_before_ends_nothing():
    """Evaluation runs beside: the old model's value always comes after the change."""
    g = gateway()
    g.ask("task-create", tiny_bundle(), task="fan", plan={"stop": {"metric": "0.9"}}, evaluation="/out.npz")
    g.ask("task-start", task="fan")
    g.ask("task-change", tiny_bundle(OTHER, "other"), task="fan", plan={"stop": {"metric": "0.9"}})
    g.handle(Evaluated("fan", 0, 0.1, 0.95))
    assert (g.task.plan.state, g.task.measured.best) == ("running", None)


def test_a_changed_plan_is_what_its_file_says():
    """A field that is no longer named is the default again; the bundle's batch size is the new bundle's."""
    g = gateway().start(buffer=2, stop={"versions": 3}, hyper={"learning_rate": "0.5"}, batch_size=7)
    g.ask("task-change", tiny_bundle(), task="fan", plan={"buffer": 3})
    plan = g.task.plan
    assert (plan.buffer, plan.stop.versions, plan.hyper, plan.batch_size) == (3, 0, {}, 4)


def test_more_tasks_than_a_device_can_be_told_of_are_refused():
    """`Desired` holds 64."""
    g = gateway()
    for i in range(64):
        assert g.ask("task-create", tiny_bundle(), task=f"t{i}").status == "successful"
    assert "64 tasks" in g.ask("task-create", tiny_bundle(), task="t64").message


def test_a_device_let_in_is_told_its_tasks_and_a_revoked_one_none():
    """`desired` is published for the one, cleared for the other."""
    g = gateway().start()
    before = len(g.effects)
    g.ask("device-allow", device="new", public_key=key_of("new").public)
    told = [e for e in g.effects[before:] if isinstance(e, Send) and e.topic.kind is Kind.DESIRED]
    assert [(e.topic.device, e.message.tasks) for e in told] == [("new", ("fan",))]
    g.ask("device-revoke", device="new")
    assert of_kind(g.effects, Clear)[-1].topic.device == "new"
    assert LAYOUT.fingerprint == g.task.plan.fingerprint


def test_a_revoked_device_is_none_of_the_fleet_that_a_rule_is_reckoned_for():
    """Of twenty devices twelve are gone: a buffer of eight holds two attackers of the eight that are left, not four."""
    g = Gateway().add(*(f"fan-{i}" for i in range(20)))
    plan = {"buffer": 8, "rule": {"name": "robust", "attackers": "0.2"}}
    assert g.ask("task-create", tiny_bundle(), task="fan", plan=plan).status == "failed"
    for i in range(8, 20):
        assert g.ask("device-revoke", device=f"fan-{i}").status == "successful"
    assert g.ask("task-create", tiny_bundle(), task="fan", plan=plan).status == "successful"
    assert g.coordinator.tasks["fan"].plan.rule["f"] == "2"
