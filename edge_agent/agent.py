"""The device's sans-I/O heart: an event and the time in, effects out.

    twin/desired names the tasks -> plan and manifest -> bundle and version (intake.py) -> may I? (gate.py) -> train
    -> compress (learning.py) -> disk -> send until the verdict (sending.py) -> settle the residual -> the next version

No clock, no disk, no thread, no socket: the service runs it on a device, the simulator on a virtual clock. Each event
changes what is known; then `_next` looks at all of it and asks for whatever is due.
"""

from dataclasses import replace

from numpy.random import Generator

from edge_agent import events as e
from edge_agent.budget import Budget
from edge_agent.commanding import Commanding
from edge_agent.configuring import AgentSettings, Configuring
from edge_agent.gate import YES, Reading, may_train
from edge_agent.hurrying import hurry, rest
from edge_agent.identity import Identity
from edge_agent.intake import ReadBundle
from edge_agent.inviting import Inviting
from edge_agent.learning import Training
from edge_agent.patience import Patience
from edge_agent.pausing import Pausing
from edge_agent.releases import Releases
from edge_agent.saving import Saving
from edge_agent.sending import Sending, is_of_size
from edge_agent.slots import read_participation
from edge_agent.task import Task, Tasks
from edge_agent.telling import Telling
from edge_agent.training import TrainingResult
from edge_agent.trust import Trust
from edge_agent.unsaved import Unsaved
from fl_protocol import messages as m
from fl_protocol.bundle import Bundle
from fl_protocol.codec import decode_as
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.topics import Kind, Topic, parse
from fl_protocol.transfer import Parts
from fl_protocol.transport import Connected, Delivery, Disconnected, Limits, Undeliverable

JITTER_S = 2.0  # over which a fleet spreads what it sends again after a reconnect or a gateway's start
EXAMPLES_RETRY_S = 60.0
TRAINING_RETRY_S = (60.0, 3600.0)  # after a failure: at first, and at most
NEVER = float("inf")
FLOAT32 = 4  # bytes
_OWN = (
    (Kind.RESULT, 1),
    (Kind.GRANT, 1),
    (Kind.CHUNK_DOWN, 0),
    (Kind.DELTA, 0),
    (Kind.DESIRED, 1),
    (Kind.STATE, 1),
    (Kind.SLOT, 1),
)
_FLEET = ((Kind.SYNC, 1), (Kind.GATEWAY, 1))
_KEYS = ((Kind.KEYS, 1),)  # before all that they sign


class Agent:
    """One device. `wake_at` is when it wants a `Tick`, if nothing happens before."""

    def __init__(
        self,
        identity: Identity,
        info: m.DeviceInfo,
        settings: AgentSettings,
        restored: e.Restored,
        rng: Generator,
        read_bundle: ReadBundle = Bundle.read,
        parts: Parts | None = None,
        release_parts: Parts | None = None,
    ) -> None:
        self._identity, self._rng = identity, rng
        self._effects: list[e.Effect] = []
        self._configuring = Configuring(identity, settings, restored.configured, self._effects.append, self._adjust)
        own, settings = settings, self._settings
        self._telling = Telling(identity, info, self._effects.append, settings.state_s)
        believed = restored.believed(identity.fleet_key)
        self._trust = Trust(identity, restored.counters, self._effects.append, believed)
        self._tasks = Tasks(restored, identity, read_bundle, parts)
        self._seq = restored.seq
        self._link: Limits | None = None
        self._gateway: tuple[int, int] | None = None
        self._stopping = self._paused = False
        self._training: Training | None = None
        self._measured, self._gate = e.Measured(Reading()), YES
        self._unsaved = Unsaved()
        self._budget = Budget(settings.budget, restored.spent)
        self._saving = Saving(self._budget, self._tasks, self._telling, identity, self._effects.append)
        self._inviting = Inviting(identity, self._effects.append)
        self._announce_at, self._health_at, self._predict_at = NEVER, 0.0, 0.0
        self._patience = Patience()
        self.wake_at = 0.0
        self._pausing = Pausing(restored.paused, self._effects.append)
        self._commanding = Commanding(
            identity, restored.commands, self._pausing, self._effects.append, lambda: self._trust.fleet_key
        )
        self._releases = Releases(
            identity,
            self._commanding,
            self._effects.append,
            lambda: self._trust.fleet_key,
            self._budget.why,
            release_parts,
        )
        self._judge()
        if settings != own:
            self._adjust(settings)

    @property
    def _settings(self) -> AgentSettings:
        """Those in force: the device's own, and what the gateway wants above them."""
        return self._configuring.settings

    @property
    def fleet_key(self) -> str:
        """The key that it believes now."""
        return self._trust.fleet_key

    @property
    def counts(self) -> bool:
        """Whether it wants to be told by `Counted` what passes the socket."""
        return self._budget.counts

    def handle(self, event: e.Event, now: float) -> list[e.Effect]:
        """Take one event; `now` in seconds, of a clock that only grows."""
        self._commanding.expire(now)
        try:
            self._take(event, now)
        except ProtocolError as error:
            where = f"{event.topic}: " if isinstance(event, Delivery) else ""
            self._telling.complain("refused", error.code, where + error.message, now)
        self._next(now)
        effects = self._effects.copy()
        self._effects.clear()
        return effects

    def _take(self, event: e.Event, now: float) -> None:
        match event:
            case Delivery():
                self._deliver(parse(event.topic), event, now)
            case Connected():
                self._connected(event, now)
            case Disconnected():
                self._link = None
                self._telling.disconnected()
                self._commanding.disconnected()
            case Undeliverable(topic, size, reason):
                self._undeliverable(topic, size, reason, now)
            case e.Loaded(sha256, data, other):
                for each in self._tasks:
                    self._effects += each.intake.loaded(sha256, data, other)
            case e.Saved(effect):
                self._saved(effect, now)
            case e.DiskFull(effect):
                self._unsaved.add(effect, self._tasks.wanted, now)
                self._telling.complain("disk full", Code.DISK, "nothing is lost; it waits in memory for room", now)
            case e.ExamplesRead(name, num_examples):
                if task := self._tasks.get(name):
                    task.num_examples = num_examples
                    self._telling.num_examples(num_examples)
            case e.ExamplesMissing(name, why):
                if task := self._tasks.get(name):
                    self._no_examples(task, why, now)
            case e.Trained(_, result):
                self._trained(result, now)
            case e.TrainingFailed(_, code, why):
                self._training_failed(code, why, now)
            case e.Measured():
                self._take_reading(event, now)
                self._budget.count(event.bytes_up, event.bytes_down, now)
                self._budget.measure(event.reading.metered, event.reading.local_s, now)
            case e.Counted(bytes_up, bytes_down):
                self._budget.count(bytes_up, bytes_down, now)
            case e.LogRead() | e.ExamplesErased():
                self._commanding.answered(event)
                if isinstance(event, e.ExamplesErased):
                    for each in self._tasks:
                        each.look_at = now if each.intake.work else each.look_at
            case e.ReleaseKept():
                self._releases.kept(event, now)
            case e.ReleaseSpooled():
                self._releases.spooled(event)
            case e.UpdateSeen():
                self._releases.seen(event)
            case e.Predicted(name, version, guess):
                if self._budget.may_begin():
                    self._telling.prediction(name, version, guess)
            case e.Stop():
                self._stopping = True
                self._saving.close()
            case e.Tick():
                pass

    def _take_reading(self, event: e.Measured, now: float) -> None:
        self._measured, self._commanding.local_s = event, event.reading.local_s
        self._pausing.measured(event.reading.local_s, now)
        self._judge()
        if self._commanding.reports:
            self._commanding.measured(self._telling.vitals(event, self._gate, self._budget.tightest))

    def _judge(self) -> None:
        """May the device train: what the sensors say, and the operator."""
        gate = may_train(self._settings.gate, self._measured.reading, self._gate.hot)
        self._gate = self._pausing.judge(gate)

    def _adjust(self, settings: AgentSettings) -> None:
        """Other settings are in force."""
        self._budget.configure(settings.budget)
        self._telling.slow_down(settings.state_s)
        self._health_at = self._predict_at = 0.0
        self._judge()
        self._effects.append(e.Adjust(settings.measure_s, settings.log_level))

    # --- what the broker brings ----------------------------------------------------------------------------------

    def _connected(self, event: Connected, now: float) -> None:
        self._link = event.limits
        self._follow(_KEYS + _OWN + _FLEET)
        self._patience.renew(now, self._rng)
        self._send_again(now)
        self._telling.connected(event)
        self._commanding.connected()
        self._releases.resume()
        self._configuring.connected()

    def _follow(self, kinds: tuple[tuple[Kind, int], ...]) -> None:
        """Subscribe; what is retained comes with it, once more."""
        self._effects.append(e.Subscribe(tuple((self._identity.topic(kind), qos) for kind, qos in kinds)))
        for task in self._tasks:
            self._effects += task.intake.follow()

    def _deliver(self, topic: Topic, delivery: Delivery, now: float) -> None:
        name, payload = delivery.topic, delivery.payload
        task = self._tasks.get(topic.task)
        match topic.kind:
            case Kind.DESIRED:
                first = not self._tasks.assigned
                desired = self._trust.unseal(m.Desired, name, payload) if payload else None
                self._effects += self._tasks.take_desired(desired)
                self._commanding.take_desired(desired)
                self._configuring.take_desired(desired)
                if first:
                    self._send_again(now)
            case Kind.DEVICE_COMMAND:
                self._commanding.hear(topic, delivery, now)
            # A cleared plan or manifest is signed by nobody, and changes nothing: a signed Desired ends a task.
            case Kind.PLAN if task and payload:
                self._take_plan(task, self._trust.unseal(m.Plan, name, payload), now)
            case Kind.MANIFEST if task and payload:
                manifest = self._trust.unseal(m.Manifest, name, payload)
                task.intake.take_manifest(manifest, fresh=not delivery.retained, channel=topic.channel)
            case Kind.SLOT:
                slot = self._trust.unseal(m.Slot, name, payload)
                self._inviting.invited(self._tasks.get(slot.task), slot, self._unable(), now)
            case Kind.RESULT:
                self._verdict(self._trust.unseal(m.Result, name, payload), name, now)
            case Kind.GRANT:
                grant = decode_as(m.Grant, payload)
                for sending in self._tasks.sendings:
                    self._effects += sending.granted(grant, now, self._budget.sendable)
            case Kind.CHUNK_DOWN | Kind.BROADCAST if self._link:
                chunk = decode_as(m.Chunk, payload)
                for known in self._tasks:
                    self._effects += known.intake.heard(chunk, now, self._link)
                self._releases.heard(chunk, now, self._link)
            case Kind.DELTA:
                delta = decode_as(m.Delta, payload)
                if wanting := self._tasks.get(delta.task):
                    self._effects += wanting.intake.answered(delta, now)
            case Kind.STATE if payload:
                self._telling.heard_own_state(decode_as(m.DeviceState, payload))
            case Kind.KEYS if payload:
                self._keys(decode_as(m.FleetKeys, payload), now)
            case Kind.GATEWAY if payload:
                self._gateway_is(decode_as(m.GatewayState, payload), now)
            case Kind.SYNC:
                within_s = decode_as(m.Sync, payload).within_s
                self._announce_at = min(self._announce_at, now + within_s * self._rng.random())

    def _keys(self, chain: m.FleetKeys, now: float) -> None:
        """Another key of the fleet: what it signed may have come before it, and was refused."""
        if not self._trust.follow(chain):
            return
        self._effects.append(e.Note("warning", f"the fleet's key is {self.fleet_key} from now on"))
        self._follow(_OWN + _FLEET)
        self._send_again(now)

    def _take_plan(self, task: Task, plan: m.Plan, now: float) -> None:
        before, rule = task.intake.plan, read_participation(plan.participation)
        task.intake.take_plan(plan)
        task.place.follow(rule)
        if task.sending and before and before.state != "running" and plan.state == "running":
            task.sending.again(now + JITTER_S * self._rng.random())  # it was deferred while the task did not run
        if before and before.revision != plan.revision:
            task.train_at = now  # it may mend what failed

    def _verdict(self, result: m.Result, topic: str, now: float) -> None:
        task = self._tasks.get(result.task)
        if task is None or task.sending is None or task.pending is None:
            return
        if (result.incarnation, result.seq) != (task.pending.incarnation, task.pending.seq):
            return
        if result.final:
            task.sending = None
            self._effects.append(e.Settle(task.pending, result, topic))
        else:
            task.sending.again(now + max(1.0, result.retry_in_s))

    def _gateway_is(self, state: m.GatewayState, now: float) -> None:
        self._releases.gateway_here = state.state == "ready"
        for task in self._tasks:
            task.intake.gateway_here = state.state == "ready"
        if state.state == "ready" and (state.boot, state.bseq) != self._gateway:
            self._gateway = state.boot, state.bseq
            self._send_again(now)
            for task in self._tasks:
                task.intake.ask_again(now + JITTER_S * self._rng.random())
            self._releases.resume(now + JITTER_S * self._rng.random())

    def _send_again(self, now: float) -> None:
        for sending in self._tasks.sendings:
            sending.renewed(now + JITTER_S * self._rng.random())

    def _undeliverable(self, topic: str, size: int, reason: str, now: float) -> None:
        of_size = is_of_size(size, reason)
        code = Code.SIZE if of_size else None
        self._telling.complain("undeliverable", code, f"{topic}, {size} bytes: {reason}", now)
        if of_size and topic == self._identity.topic(Kind.UPDATE):  # else it comes again with its growing patience
            for sending in self._tasks.sendings:
                sending.too_large(size, now)

    # --- what disk, data and trainer bring -----------------------------------------------------------------------

    def _saved(self, effect: e.Durable, now: float) -> None:
        match effect:
            case e.SaveUpdate(update, personal):
                if (task := self._tasks.known.get(update.task)) and task.pending is update:
                    task.trained, task.personal = update.base_version, personal
                    task.sending = Sending(update, self._identity, now)
            case e.Settle(update, result):
                if (task := self._tasks.known.get(update.task)) and task.pending is update:
                    task.settle(result)
                    self._effects.append(e.Note("info", f"{task.name}: update {update.seq} {result.verdict}"))
            case e.SaveCommand(command):
                self._commanding.saved(command)
                self._releases.saved(command, now)
            case e.SavePaused():
                self._judge()
            case e.SaveConfigured(configured):
                self._configuring.saved(configured)
            case e.SaveObject() if all(task.intake.plan for task in self._tasks.known.values()):
                self._effects.append(e.KeepObjects(self._tasks.wanted))

    def _no_examples(self, task: Task, why: str, now: float) -> None:
        task.num_examples, task.examples_why, task.look_at = 0, why, now + EXAMPLES_RETRY_S
        self._telling.complain("no examples", None, why, now, level="warning")

    def _trained(self, result: TrainingResult, now: float) -> None:
        training, self._training = self._training, None
        if training is None or self._tasks.get(training.task.name) is not training.task:
            return  # the task has ended meanwhile
        try:
            most, never = self._budget.next_update(), self._budget.never
            effect = training.make_update(result, self._identity, self._seq + 1, self._rng, most, never)
        except ProtocolError as error:
            self._failed(training, error.code, error.message, now)
            return
        except ValueError as error:
            self._failed(training, Code.NAN, str(error), now)
            return
        self._seq += 1
        training.task.failures, training.task.pending = 0, effect.update
        self._effects.append(effect)
        work = f"{result.local_steps} steps on {result.num_examples} examples in {result.train_seconds:.1f} s"
        size, plain = len(effect.update.sealed), training.work.bundle.layout.size * FLOAT32
        self._budget.made(size, now)
        self._commanding.end_hurried(
            "successful", f"{training.task.name}: trained from version {training.base.version}"
        )
        fewer = f"{size} bytes to send, as float32 {plain}: {plain / size:.1f} times fewer"
        text = f"{training.task.name}: trained from version {training.base.version}, {work}; {fewer}"
        self._effects.append(e.Note("info", text))

    def _training_failed(self, code: Code | None, why: str, now: float) -> None:
        training, self._training = self._training, None
        if training is not None:
            self._failed(training, code, why, now)

    def _failed(self, training: Training, code: Code | None, why: str, now: float) -> None:
        task, (first, most) = training.task, TRAINING_RETRY_S
        self._inviting.decline(task.name, training.slot, f"training failed: {why}")
        task.train_at = now + min(most, first * 2**task.failures)
        task.failures += 1
        task.failed_for = why
        self._telling.complain("training failed", code, f"{task.name}: {why}", now)
        self._commanding.end_hurried("failed", f"{task.name}: {why}", code)

    # --- what is due ---------------------------------------------------------------------------------------------

    def _next(self, now: float) -> None:
        self._pausing.over(now)
        self._saving.book()
        self._saving.give_up(now)
        for task in self._tasks:
            busy = self._training is not None and self._training.task is task
            alone = 0 if self._training or self._tasks.owe_update(now) else task.next_size
            task.intake.room = self._budget.room(self._tasks.promised(task) + self._releases.promised, alone)
            wants_newer = not busy or (self._settings.predict_s > 0 and not task.is_fresh(now))
            task.intake.hungry = not task.intake.unheard and wants_newer
            self._effects += task.intake.next(now, self._link, self._rng)
            for error in task.intake.take_complaints():
                self._telling.complain("refused", error.code, f"{task.name}: {error.message}", now)
            if task.intake.work:
                self._look_for_examples(task, task.intake.work.bundle, now)
            if task.sending and self._link and not self._stopping and self._budget.may_send(task.sending.cost):
                self._effects += task.sending.next(now, self._link, self._rng, outdated=task.outdated)
        self._effects += self._unsaved.take(now)
        self._saving.look(now)
        self._look_again(now)
        self._inviting.hold(self._tasks, self._unable(), now)
        self._hurry(now)
        self._update(now)
        self._train(now)
        self._predict(now)
        self._tell(now)
        self.wake_at = self._next_wake(now)

    def _look_for_examples(self, task: Task, bundle: Bundle, now: float) -> None:
        if task.examples_for != bundle.sha256 or now >= task.look_at:
            task.examples_for, task.num_examples, task.look_at = bundle.sha256, 0, NEVER
            self._effects.append(e.ReadExamples(task.name, bundle))

    def _look_again(self, now: float) -> None:
        """A broker's queue may have dropped what this device waits for, or what it said of itself: nobody was told."""
        if self._link and not self._saving.lacking and self._patience.is_over(now, self._rng):
            self._follow(((Kind.DESIRED, 1),))
            self._telling.say_state_again()

    def _train(self, now: float) -> None:
        """Let the training in hand go on or pause; else begin the next, one task at a time, in turn."""
        if self._training:
            if self._paused == self._gate.may:
                self._paused = not self._gate.may
                self._effects.append(e.Pause(self._paused))
            return
        for task in self._tasks:
            if could := task.trainable(now):
                task.place.draw(could[1].version, could[0].plan.deadline_s, now, self._rng)
        ready = [Training(task, *work) for task in self._tasks if (work := task.work_to_do(now))]
        if ready and not self._unable():
            training = min(ready, key=lambda t: t.task.last_turn)
            self._training, self._paused = replace(training, slot=training.task.place.begin()), False
            training.task.last_turn = now
            rest(self._tasks)
            self._patience.renew(now, self._rng)
            self._effects.append(self._training.begin(self._rng))

    def _hurry(self, now: float) -> None:
        """See to the operator's `train-now`: never past the gate."""
        if not self._commanding.hurried:
            rest(self._tasks)
        elif self._training is None:
            can, why = hurry(self._tasks, self._unable(), now)
            self._commanding.waits_for = why
            if not can:
                self._commanding.end_hurried("rejected", why, Code.COMMAND)

    def _update(self, now: float) -> None:
        """See to the operator's `update-agent`."""
        if self._stopping:
            return
        alone = 0 if self._training or self._tasks.owe_update(now) else self._releases.size
        room = self._budget.room(sum(task.intake.promised for task in self._tasks), alone)
        self._releases.next(now, self._link, room, self._measured.reading.disk_free_mb)

    def _unable(self) -> str:
        """What keeps the device from training for any task, for people."""
        if self._stopping:
            return "the agent was asked to end"
        if self._unsaved:
            return "the disk is full"
        if not self._gate.may:
            return self._gate.because
        return "" if self._budget.may_begin() else self._budget.why() or "no bytes are left of the budget"

    def _predict(self, now: float) -> None:
        if not self._settings.predict_s or now < self._predict_at or self._stopping:
            return
        self._predict_at = now + self._settings.predict_s
        for task in self._tasks:
            bundle, model = task.intake.bundle, task.intake.model
            if bundle and model and task.num_examples:
                personal = task.personal_for(bundle)
                self._effects.append(e.Predict(task.name, model.version, bundle, model.vector, personal))

    def _tell(self, now: float) -> None:
        if now >= self._announce_at:
            self._announce_at = NEVER
            self._telling.announce()
        if now >= self._health_at:
            self._health_at = now + self._settings.health_s
            if self._budget.may_begin():
                self._telling.health(self._measured, self._gate, self._budget.tightest)
        self._telling.state(now, *self._state())

    def _state(self) -> tuple[m.StateName, str | None, int | None, str]:
        """What the device is doing, or waits for."""
        if self._stopping:
            return "disconnected", None, None, "the agent was asked to end"
        if training := self._training:
            return "training", training.task.name, training.base.version, self._gate.because
        if self._unsaved:
            return "sleeping", None, None, "the disk is full"
        for task in self._tasks:
            if task.pending:
                may = task.sending is None or self._budget.may_send(task.sending.cost)
                why = self._saving.lacking or ("" if may or not task.sending else self._budget.why(task.sending.cost))
                return "uploading" if may else "sleeping", task.name, task.pending.base_version, why
        if not self._gate.may:
            return "sleeping", None, None, self._gate.because
        if self._saving.lacking:
            return "sleeping", None, None, self._saving.lacking
        for task in self._tasks:
            name, why = task.situation()
            return name, task.name, task.intake.model.version if task.intake.model else None, why
        if not self._tasks.assigned:
            return "init", None, None, "waiting to be given a task"
        return "ready", None, None, "no task"

    def _next_wake(self, now: float) -> float:
        times = [self._unsaved.wake_at, self._announce_at, self._health_at, self._telling.wake_at]
        times += [self._pausing.wake_at, self._commanding.wake_at, self._releases.wake_at(self._link is not None)]
        if self._settings.predict_s:
            times.append(self._predict_at)
        if self._link and not self._saving.lacking:
            times.append(self._patience.wake_at)
        for task in self._tasks:
            times += [task.look_at, task.place.wake_at(now)]
            if task.train_at > now:
                times.append(task.train_at)
            if self._link:
                times.append(task.intake.wake_at)
            if self._settings.predict_s and task.stale_at > now:
                times.append(task.stale_at)
            if self._link and task.sending and self._budget.may_send(task.sending.cost):
                times.append(task.sending.wake_at)
        return min(times)
