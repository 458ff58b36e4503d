"""From what a store keeps to what a coordinator starts from. Pure, and the same for every store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from broker_aggregator.events import Release
from broker_aggregator.fleet import Certificate, Claim, CommandRecord, Configuration, Device, Fleet
from broker_aggregator.releasing import Buffered
from broker_aggregator.rollout import Attempt, Rollout
from broker_aggregator.task import Task
from broker_aggregator.trials import restore_trial
from fl_protocol.bundle import Better
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Plan, Result
from fl_protocol.tensors import ModelLayout


@dataclass
class Loaded:
    """What a coordinator starts from."""

    fleet: Fleet = field(default_factory=Fleet)
    tasks: dict[str, Task] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    certificates: dict[str, Certificate] = field(default_factory=dict)
    commands: dict[str, CommandRecord] = field(default_factory=dict)
    configurations: dict[str, Configuration] = field(default_factory=dict)
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    attempts: dict[str, dict[str, Attempt]] = field(default_factory=dict)  # by roll-out and device


@dataclass(frozen=True)
class KeptCanary:
    """A version that a few devices try, and what it used."""

    release: Release
    value: float | None
    loss: float | None
    used: Sequence[Buffered]


@dataclass(frozen=True)
class KeptTask:
    """What a store keeps of a task, in the words of its tables."""

    plan: Plan
    layout: ModelLayout
    metric: str
    evaluation: str
    elapsed_s: float  # running time when the task was last saved
    why: str
    release: Release  # the newest that was released
    made: int  # releases made of updates
    buffered: Sequence[Buffered]  # in record order
    in_vain: int  # updates that trained the newest version, refused or quarantined: no version has used them
    measured: Sequence[tuple[float, float | None]]  # (value, loss) since `plan.origin`, by version
    verdicts: Sequence[tuple[str, int, int]]  # (verdict, how many, their bytes)
    norms: Sequence[float]  # scaled, of the newest updates since `plan.origin`, in record order
    better: Better = "higher"  # value of the metric
    withheld: Sequence[int] = ()  # versions since `plan.origin`, by version
    last_made: int = -1  # the newest version made of updates and released
    canary: KeptCanary | None = None
    taken: Sequence[tuple[str, int]] = ()  # (device, the newest base version that it was accepted from)


def restored_task(kept: KeptTask, now: float) -> Task:
    """The task as it goes on at `now`, monotonic seconds; all its deadlines start anew."""
    task = Task(kept.plan, kept.layout, kept.metric, kept.release, kept.evaluation)
    task.elapsed_s = max(kept.elapsed_s, kept.release.elapsed_s)
    task.why = kept.why
    task.since = task.opened_at = task.quiet_since = now
    task.in_vain = kept.in_vain
    task.buffer = list(kept.buffered)
    task.measured.better = kept.better
    for value, loss in kept.measured:
        task.measured.take(value, loss)
    task.made = kept.made
    for verdict, count, num_bytes in sorted(kept.verdicts):
        task.verdicts[verdict] = count
        task.bytes_up += num_bytes
    task.norms.extend(kept.norms)
    restore_trial(task, kept, now)
    for device, version in kept.taken:
        habits = task.invitations.habits_of(device)
        habits.taken = habits.tried = version
    return task


def restored_fleet(devices: Iterable[Device], verdicts: Iterable[tuple[str, Result]]) -> Fleet:
    """The devices with their ledgers; `verdicts` are (device, verdict), of each incarnation in the order of seq."""
    fleet = Fleet({device.id: device for device in devices})
    for device, verdict in verdicts:
        if device in fleet.devices:
            fleet.devices[device].ledger(verdict.incarnation).record(verdict)
    return fleet


def not_kept(task: str, version: int | None, tasks: Iterable[str]) -> ConfigError:
    """The error for a version that a store does not keep; `tasks` are those that it has."""
    known = ", ".join(sorted(tasks)) or "none"
    what = "no version" if version is None else f"no version {version}"
    return ConfigError(f"{what} of task {task} is kept", f"tasks: {known}; `status --json` lists versions")
