"""What an operator may ask of a running gateway; each command is one function from arguments to effects.

Commands arrive signed with the fleet's key (`op/cmd/{name}/{cid}`), are answered on the same topic, and change either
everything they say or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from broker_aggregator.aggregation.recipes import make_server_optimizer, settled
from broker_aggregator.commanding import ALL
from broker_aggregator.enrollment import Enrollment, check_device_name
from broker_aggregator.events import (
    Asked,
    Clear,
    CommitRelease,
    Effect,
    Note,
    Release,
    RemoveTask,
    RotateKey,
    SaveCounter,
    SaveDevice,
    Send,
)
from broker_aggregator.fleet import Device
from broker_aggregator.guarding import read_guard
from broker_aggregator.participation import Invited, check_participation, participation_of
from broker_aggregator.rollout_operations import (
    ROLLOUT_START,
    rollout_pause,
    rollout_resume,
    rollout_start,
    rollout_stop,
)
from broker_aggregator.task import Task
from broker_aggregator.trials import withhold
from fl_protocol.bundle import Bundle
from fl_protocol.codec import from_plain
from fl_protocol.compression.pipeline import make_compressor
from fl_protocol.deltas import downlink_step
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.messages import Answer, Plan
from fl_protocol.topics import Kind, build

if TYPE_CHECKING:
    from broker_aggregator.coordinator import Coordinator

OPERATOR = "operator"  # the counter of commands
OPERATOR_DONE = "operator/done"  # that of the last one that was successful
ROLLBACK = "task-rollback"
MAX_TASKS = 64  # what `Desired` holds
NEW_TASK: Mapping[str, Any] = {"downlink": {"name": "uq", "step": "1.5"}}  # where its file says nothing
MAX_TICKET_HOURS = 24 * 90
MAX_WORD = 64
MAX_DEADLINE_S = 7 * 86400  # of a device's command
LAST_VERSION = "version/"  # + task: where a deleted task's versions ended; alone: of any that no store remembers
SIGNED = "topic/"  # + topic: the last counter signed there; alone: all are above this one


def versions_of(counters: Mapping[str, int]) -> dict[str, int]:
    """Where the versions of deleted tasks ended, by task."""
    return {k.removeprefix(LAST_VERSION): v for k, v in counters.items() if k.startswith(LAST_VERSION)}


GATEWAY_FIELDS = {
    "task",
    "revision",
    "origin",
    "state",
    "bundle_sha256",
    "bundle_size",
    "fingerprint",
    "counter",
    "v",
    "ts",
}


def answer(at: Coordinator, asked: Asked, now: float) -> Iterator[Effect]:
    """Do what was asked and say how it went. A counter seen before is an old command played again: no answer."""
    ask = asked.ask
    if at.last_answer and at.last_answer.topic.cid == asked.cid:
        yield at.last_answer  # the operator asks again because nothing was heard
        return
    again = ask.counter == at.operator_counter and at.last_answer is None  # this gateway fell before it could answer
    if ask.counter <= at.operator_counter and not again:
        yield Note("warning", f"E_DOWNGRADE: the command {ask.name} {asked.cid} is older than one already obeyed")
        return
    at.operator_counter = ask.counter
    yield SaveCounter(OPERATOR, ask.counter)
    reply = Answer(status="successful", message=ask.name)
    command = COMMANDS.get(ask.name)
    try:
        if again and ask.counter == at.operator_done:
            pass  # all that it asks for was done then, in one transaction
        elif ask.name == ROLLBACK:
            reply = replace(reply, message=(yield from task_rollback(at, ask.arguments, asked.release, now)))
        elif ask.name == ROLLOUT_START:
            told = yield from rollout_start(at, ask.arguments, asked.agent_release, asked.now_ms)
            reply = replace(reply, message=told)
        elif command is not None:
            yield from command(at, ask.arguments, asked.bundle, now)
        elif ask.name in DATED:
            yield from DATED[ask.name](at, ask.arguments, asked.now_ms)
        else:
            raise ConfigError(
                f"unknown command {ask.name}",
                f"known: {', '.join(sorted({*COMMANDS, *DATED, ROLLBACK, ROLLOUT_START}))}",
            )
        at.operator_done = ask.counter
        yield SaveCounter(OPERATOR_DONE, ask.counter)
    except ConfigError as error:
        reply = Answer(status="failed", message=error.message[:400], hint=error.hint[:400])
    yield Note("info", f"operator: {ask.name}: {reply.status} {reply.message if reply.status == 'failed' else ''}")
    at.last_answer = Send(at.say.topic(Kind.COMMAND, name=ask.name, cid=asked.cid), reply)
    yield at.last_answer


def _text(arguments: Mapping[str, object], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"`{name}` is missing", f"give {name} as text")
    return value


def _task(at: Coordinator, arguments: Mapping[str, object]) -> Task:
    name = _text(arguments, "task")
    if name not in at.tasks:
        known = ", ".join(sorted(at.tasks)) or "none yet; `task create` makes one"
        raise ConfigError(f"there is no task {name}", f"tasks: {known}")
    return at.tasks[name]


def make_plan(
    fields: Mapping[str, Any], bundle: Bundle, bundle_size: int, name: str, num_devices: int, **kept: object
) -> Plan:
    """The plan that an operator's fields ask for; what they do not name is as the bundle and the defaults have it.

    `kept` are the fields that only the gateway sets. Raises `ConfigError` naming the field.
    """
    base: dict[str, Any] = {
        "task": name,
        "revision": 1,
        "state": "created",
        "bundle_sha256": bundle.sha256,
        "bundle_size": bundle_size,
        "fingerprint": bundle.layout.fingerprint,
        "batch_size": bundle.batch_size,
        **NEW_TASK,
        **kept,
    }
    known = {field.name for field in fields_of(Plan)} - GATEWAY_FIELDS - {"extra"}
    for key in fields:
        if key not in known:
            raise ConfigError(f"the plan has no field `{key}`", f"fields: {', '.join(sorted(known))}")
    try:
        plan = from_plain(Plan, {**base, **fields})
        make_compressor(plan.codec, bundle.layout)
        downlink_step(plan.downlink or {})
    except ProtocolError as error:
        raise ConfigError(error.message, "see docs/quickstart.md for the fields of a task file") from None
    unknown = set(plan.hyper) - set(bundle.hyper)
    if unknown:
        raise ConfigError(
            f"the bundle {bundle.name} has no hyper-parameter {', '.join(sorted(unknown))}",
            f"it has: {', '.join(sorted(bundle.hyper))}",
        )
    if plan.quorum > plan.buffer:
        raise ConfigError(f"quorum = {plan.quorum} is above buffer = {plan.buffer}", "a quorum is a part of the buffer")
    make_server_optimizer(plan)
    check_participation(plan)
    read_guard(plan)
    return settled(plan, num_devices)


def _fields(arguments: Mapping[str, object]) -> Mapping[str, Any]:
    fields = arguments.get("plan", {})
    if not isinstance(fields, Mapping):
        raise ConfigError("`plan` is not a table", "write the plan's fields under [plan]")
    return fields


def _check_canary(plan: Plan, evaluation: str) -> None:
    """Raises `ConfigError` where a plan asks its devices one by one, and its guard asks some of them on its own."""
    guard = read_guard(plan)
    if guard and guard.share(evaluation) and isinstance(participation_of(plan), Invited):
        raise ConfigError(
            "guard with a canary, and participation by invitation: a canary's devices train uninvited",
            "name an evaluation set and leave guard.canary out, or let participation be open",
        )


def _size(arguments: Mapping[str, object]) -> int:
    size = arguments.get("bundle_size")
    return size if isinstance(size, int) else 0


def task_create(
    at: Coordinator, arguments: Mapping[str, object], bundle: Bundle | None, now: float
) -> Iterator[Effect]:
    """A new task, not yet running."""
    name = _text(arguments, "task")
    if name in at.tasks:
        raise ConfigError(
            f"there is a task {name} already", "choose another name, or `task change` or `task delete` it"
        )
    if bundle is None:
        raise ConfigError("the task names no bundle", "build one with `python -m models build NAME`")
    try:
        build(Kind.PLAN, at.fleet_name, task=name)
    except ProtocolError as error:
        raise ConfigError(error.message, "a task's name is 1..64 of a-z, 0-9 and -") from None
    if len(at.tasks) >= MAX_TASKS:
        raise ConfigError(f"there are {MAX_TASKS} tasks already", "`task delete` one that has ended")
    origin = at.last_versions.get(name, at.last_versions.get("", -1)) + 1
    plan = make_plan(_fields(arguments), bundle, _size(arguments), name, at.fleet.num_allowed, origin=origin)
    told = arguments.get("evaluation")
    evaluation = told if isinstance(told, str) else ""
    _check_canary(plan, evaluation)
    task = Task.create(plan, bundle, evaluation, now)
    at.tasks[name] = task
    yield from at.publishing(task, iter([task.saved(now), CommitRelease(task.release)]))
    yield from at.desired_of_all()


def task_change(
    at: Coordinator, arguments: Mapping[str, object], bundle: Bundle | None, now: float
) -> Iterator[Effect]:
    """The plan as the file has it, in a new revision; with another model, what waits is released first."""
    task = _task(at, arguments)
    if bundle is None:
        raise ConfigError("the gateway no longer has the task's bundle", "name it again with `bundle`")
    size = _size(arguments) or task.plan.bundle_size
    before = task.plan
    kept = {"revision": before.revision + 1, "state": before.state, "origin": before.origin}
    plan = make_plan(_fields(arguments), bundle, size, before.task, at.fleet.num_allowed, **kept)
    other_model = plan.fingerprint != before.fingerprint
    told = arguments.get("evaluation")
    evaluation = told if isinstance(told, str) else task.evaluation
    _check_canary(plan, evaluation)
    if other_model and (
        before.guard is not None or task.on_trial
    ):  # nobody would be asked about a version that nobody is to have
        yield from at.publishing(task, withhold(task, "the task got another model", now))
        yield from task.quarantine("the task got another model, and no version is made unguarded")
    while other_model and (used := task.next_buffer()):
        yield from at.publishing(task, task.flush(used, now))
    task.plan = replace(plan, origin=task.release.version + 1) if other_model else plan
    task.layout, task.metric, task.opened_at = bundle.layout, bundle.metric, now
    task.measured.better = bundle.better
    task.evaluation = evaluation
    yield from at.publishing(task, iter([task.saved(now)]))
    if other_model:
        yield from at.publishing(task, task.restart_from(bundle, now))


def task_start(at: Coordinator, arguments: Mapping[str, object], _: Bundle | None, now: float) -> Iterator[Effect]:
    """Run a task that is new, paused, stopped or finished."""
    task = _task(at, arguments)
    if task.plan.state == "running":
        raise ConfigError(f"task {task.plan.task} is running already", "watch it with `status`")
    stop = task.plan.stop
    if stop.versions and task.made >= stop.versions:
        raise ConfigError(
            f"task {task.plan.task} has released its {stop.versions} versions", "raise stop.versions with `task change`"
        )
    ended = task.plan.state in ("finished", "stopped")
    yield from at.publishing(task, task.enter("running", "", now))
    if ended:  # every device has trained the last version already
        yield from at.publishing(task, task.renew(now))


def task_pause(at: Coordinator, arguments: Mapping[str, object], _: Bundle | None, now: float) -> Iterator[Effect]:
    """Hold a task; accepted updates stay in its buffer."""
    task = _task(at, arguments)
    if task.plan.state != "running":
        raise ConfigError(f"task {task.plan.task} is {task.plan.state}, not running", "only a running task is paused")
    yield from at.publishing(task, task.enter("paused", "paused by the operator", now))


def task_stop(at: Coordinator, arguments: Mapping[str, object], _: Bundle | None, now: float) -> Iterator[Effect]:
    """End a task; its last version stays published."""
    task = _task(at, arguments)
    yield from at.publishing(task, task.end("stopped", "stopped by the operator", now))


def task_rollback(
    at: Coordinator, arguments: Mapping[str, object], to: Release | None, now: float
) -> Generator[Effect, None, str]:
    """An earlier version's parameters as a new version, in another life of the model: all that came of others is stale.

    `to` is the version that the command names; the best measured one where it names none. Says what it did.
    """
    task = _task(at, arguments)
    name = task.plan.task
    hint = f"`status --json` lists the versions of {name}; name one by --to"
    if to is None:
        asked = arguments.get("to")
        what = "no version was measured" if asked is None else f"version {asked} is not kept, or was never released"
        raise ConfigError(f"{what}: nothing to go back to", hint)
    if to.fingerprint != task.release.fingerprint:
        raise ConfigError(f"version {to.version} is of another model", hint)
    if to.version == task.release.version:
        raise ConfigError(f"version {to.version} is the one that is out", hint)
    why = f"rolled back to version {to.version}"
    yield from at.publishing(task, withhold(task, why, now, renew=False))
    yield from task.quarantine(why)
    task.plan = replace(task.plan, revision=task.plan.revision + 1, origin=task.next_version)
    yield from at.publishing(task, iter([task.saved(now)]))
    yield from at.publishing(task, task.roll_back(to, now))
    return f"version {task.release.version} has the parameters of version {to.version}"


def task_delete(at: Coordinator, arguments: Mapping[str, object], _: Bundle | None, now: float) -> Iterator[Effect]:
    """Forget a task: no retained topic of it stays behind."""
    task = _task(at, arguments)
    name = task.plan.task
    last = task.next_version - 1
    yield from withhold(task, "the task was deleted", now, renew=False)
    yield from task.quarantine("the task was deleted")
    del at.tasks[name]
    at.say.forget(name)
    at.last_versions[name] = last
    yield SaveCounter(f"{LAST_VERSION}{name}", last)
    yield RemoveTask(name)
    if task.plan.guard is not None:
        yield at.say.no_canary(task)
    yield Clear(at.say.topic(Kind.PLAN, task=name))
    yield Clear(at.say.topic(Kind.MANIFEST, task=name, channel="stable"))
    yield Clear(at.say.topic(Kind.STATUS, task=name))
    yield from at.desired_of_all()


def device_allow(at: Coordinator, arguments: Mapping[str, object], _: Bundle | None, now: float) -> Iterator[Effect]:
    """Let a device take part, by its public key; a known one gets the new key and is no longer revoked."""
    name, key = _text(arguments, "device"), _text(arguments, "public_key")
    check_device_name(name)
    try:
        if len(bytes.fromhex(key)) != 32:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"public_key of {name} is not 64 hexadecimal digits", "`edge-agent identity` on the device prints it"
        ) from None
    device = at.fleet.devices.setdefault(name, Device(name, key))
    device.public_key, device.revoked = key, False
    yield SaveDevice(name, key)
    yield at.say.desired(name, at.tasks)


def device_revoke(at: Coordinator, arguments: Mapping[str, object], now_ms: int) -> Iterator[Effect]:
    """Listen to a device no longer; its certificates are void, and its connection ends."""
    name = _text(arguments, "device")
    if name not in at.fleet.devices:
        raise ConfigError(f"there is no device {name}", "`broker-aggregator devices` lists them")
    device = at.fleet.devices[name]
    device.revoked = True
    yield SaveDevice(name, device.public_key, revoked=True)
    if at.enrollment is not None:
        yield from at.enrollment.revoke(name, now_ms)
    yield from at.commanding.revoked(at, name, now_ms)
    yield Clear(at.say.topic(Kind.DESIRED, device=name))


def rotate_key(at: Coordinator, arguments: Mapping[str, object], now_ms: int) -> Iterator[Effect]:
    """The fleet's next key: all that is retained is signed anew. Tickets stay good, unless `void` says else."""
    if at.enrollment is not None and arguments.get("void") is True:
        for name in list(at.enrollment.claims):
            yield from at.enrollment.withdraw(name)
    elif at.enrollment is not None:
        yield from at.enrollment.keep_secrets()
    yield RotateKey()
    yield from at.announce(now_ms)


def _enrollment(at: Coordinator) -> Enrollment:
    if at.enrollment is None:
        raise ConfigError(
            "this gateway has no certificate authority",
            "`python -m deploy gateway up` makes one, or name `pki` in [enrollment]",
        )
    return at.enrollment


def device_ticket(at: Coordinator, arguments: Mapping[str, object], now_ms: int) -> Iterator[Effect]:
    """A claim by which one new device may come in."""
    hours, hardware = arguments.get("hours"), arguments.get("hardware", "")
    if not isinstance(hours, int) or not 1 <= hours <= MAX_TICKET_HOURS:
        raise ConfigError(f"hours = {hours!r}", f"a ticket is good for 1 to {MAX_TICKET_HOURS} hours")
    if not isinstance(hardware, str) or len(hardware) > MAX_WORD:
        raise ConfigError(f"hardware = {hardware!r:.80}", f"a serial number has at most {MAX_WORD} characters")
    yield from _enrollment(at).claim(
        at,
        _text(arguments, "claim"),
        _text(arguments, "device"),
        now_ms,
        hours,
        hardware,
        again=arguments.get("again") is True,
    )


def device_approve(at: Coordinator, arguments: Mapping[str, object], _: int) -> Iterator[Effect]:
    """Let the device in that waits by a claim."""
    yield from _enrollment(at).approve(_text(arguments, "claim"))


def device_withdraw(at: Coordinator, arguments: Mapping[str, object], _: int) -> Iterator[Effect]:
    """A ticket is worth nothing any more."""
    yield from _enrollment(at).withdraw(_text(arguments, "claim"))


def _device(at: Coordinator, arguments: Mapping[str, object]) -> str:
    name = _text(arguments, "device")
    if name not in at.fleet.devices:
        raise ConfigError(f"there is no device {name}", "`broker-aggregator devices` lists them")
    if at.fleet.devices[name].revoked:
        raise ConfigError(f"the device {name} is revoked", "`device allow`, or a new ticket, lets it in again")
    return name


def _texts(arguments: Mapping[str, object], name: str) -> Mapping[str, Any]:
    table = arguments.get(name, {})
    if not isinstance(table, Mapping) or not all(isinstance(v, str) or v is None for v in table.values()):
        raise ConfigError(f"`{name}` is not a table of texts", "numbers travel as text: what is signed holds no floats")
    return table


def device_command(at: Coordinator, arguments: Mapping[str, object], now_ms: int) -> Iterator[Effect]:
    """Tell a device to do something."""
    deadline_s = arguments.get("deadline_s")
    if not isinstance(deadline_s, int) or not 1 <= deadline_s <= MAX_DEADLINE_S:
        raise ConfigError(f"deadline_s = {deadline_s!r}", f"a device is given 1 to {MAX_DEADLINE_S} seconds to answer")
    name, given = _text(arguments, "command"), _texts(arguments, "arguments")
    if None in given.values():
        raise ConfigError("an argument is null", "leave out what is not said")
    device, cid = _device(at, arguments), _text(arguments, "cid")
    yield from at.commanding.ask(at, device, name, given, deadline_s, cid, now_ms)


def device_configure(at: Coordinator, arguments: Mapping[str, object], _: int) -> Iterator[Effect]:
    """Want another configuration of a device, or of all."""
    device = ALL if arguments.get("device") == ALL else _device(at, arguments)
    settings = _texts(arguments, "settings")
    if not settings:
        raise ConfigError("`settings` is empty", "name a key and its value, such as gate.min_battery_pct=50")
    yield from at.commanding.configure(at, device, settings, at.commanding.next_revision)


Command = Callable[["Coordinator", Mapping[str, object], "Bundle | None", float], Iterator[Effect]]
NEED_BUNDLE = frozenset({"task-create", "task-change"})
COMMANDS: Mapping[str, Command] = {
    "task-create": task_create,
    "task-change": task_change,
    "task-start": task_start,
    "task-pause": task_pause,
    "task-stop": task_stop,
    "task-delete": task_delete,
    "device-allow": device_allow,
}
Dated = Callable[["Coordinator", Mapping[str, object], int], Iterator[Effect]]  # with ms since 1970
DATED: Mapping[str, Dated] = {
    "device-revoke": device_revoke,
    "device-ticket": device_ticket,
    "device-approve": device_approve,
    "device-withdraw": device_withdraw,
    "device-command": device_command,
    "device-configure": device_configure,
    "rollout-pause": rollout_pause,
    "rollout-resume": rollout_resume,
    "rollout-stop": rollout_stop,
    "rotate-key": rotate_key,
}
