"""What happens to the agent, and what it wants done about it.

A `Durable` effect is answered by exactly one `Saved` or `DiskFull`; what depends on it is asked for after `Saved`, so
that nothing leaves the device before the disk has it. All other effects are fire and forget.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edge_agent.budget import Spent
from edge_agent.commands import Configured, KeptCommand, Paused
from edge_agent.gate import Reading, Vitals
from edge_agent.training import TrainingResult, WorkOrder
from edge_agent.updating import Report
from fl_protocol.bundle import Bundle
from fl_protocol.errors import Code
from fl_protocol.messages import Message, Result
from fl_protocol.tensors import Vector
from fl_protocol.transport import Connected, Delivery, Disconnected, Undeliverable

# --- what the disk keeps -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PendingUpdate:
    """An update without a final verdict: its exact bytes, and what each verdict makes of the residual."""

    task: str
    incarnation: str
    seq: int
    base_version: int
    fingerprint: str
    num_examples: int
    sealed: bytes
    if_accepted: Vector  # shape (P,)
    if_refused: Vector  # shape (P,)
    origin: int = 0  # the plan's


@dataclass(frozen=True)
class LocalVector:
    """A vector that stays on the device; layout and origin, the life of the model, give it meaning."""

    fingerprint: str
    vector: Vector
    origin: int = 0


@dataclass(frozen=True)
class Restored:
    """What the disk remembers at a start. `boot` counts this start; (incarnation, seq) numbers the updates."""

    boot: int
    incarnation: str
    seq: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)  # by topic
    trained: Mapping[str, int] = field(default_factory=dict)  # task -> version last trained from
    pending: tuple[PendingUpdate, ...] = ()
    residuals: Mapping[str, LocalVector] = field(default_factory=dict)  # by task
    personal: Mapping[str, LocalVector] = field(default_factory=dict)  # by task
    spent: Spent = field(default_factory=Spent)  # of the day's byte budget
    commands: tuple[KeptCommand, ...] = ()
    paused: Paused | None = None
    configured: Configured = field(default_factory=Configured)
    followed: tuple[str, str] | None = None  # from the configured fleet key to its newest successor

    def believed(self, configured: str) -> str:
        """The fleet's key: the configured one, or the one that it has led to."""
        return self.followed[1] if self.followed and self.followed[0] == configured else configured


# --- effects: durable --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SaveUpdate:
    """The update, its pending residuals, its seq, its base version as trained, the personal state: one transaction."""

    update: PendingUpdate
    personal: LocalVector


@dataclass(frozen=True)
class Settle:
    """A final verdict: residual, ledger row, counter, and the update is gone, in one transaction."""

    update: PendingUpdate
    result: Result
    topic: str


@dataclass(frozen=True)
class Forget:
    """The device has left the task: its update, residual, personal state and last version go; the ledger stays."""

    task: str


@dataclass(frozen=True)
class SaveCounter:
    """The highest counter seen on a topic."""

    topic: str
    counter: int


@dataclass(frozen=True)
class SaveSpent:
    """What is booked on the day's byte budget, a little ahead of what was spent."""

    spent: Spent


@dataclass(frozen=True)
class SaveCommand:
    """A command and how far it is."""

    command: KeptCommand


@dataclass(frozen=True)
class ForgetCommand:
    """The gateway has its answer, or waits for none any more."""

    cid: str


@dataclass(frozen=True)
class SavePaused:
    """The operator's pause, or that there is none."""

    paused: Paused | None


@dataclass(frozen=True)
class SaveConfigured:
    """The wanted configuration that is good, and from now on in force."""

    configured: Configured


@dataclass(frozen=True)
class SaveObject:
    """A verified object, under its SHA-256."""

    sha256: str
    data: bytes


@dataclass(frozen=True)
class KeepObjects:
    """Of all objects only these are still wanted."""

    sha256s: frozenset[str]


@dataclass(frozen=True)
class SaveFleetKey:
    """From the configured key on, `key` is the fleet's; the ones between are believed no more."""

    configured: str
    key: str


Durable = (
    SaveUpdate
    | Settle
    | Forget
    | SaveCounter
    | SaveFleetKey
    | SaveSpent
    | SaveCommand
    | ForgetCommand
    | SavePaused
    | SaveConfigured
    | SaveObject
    | KeepObjects
)

# --- effects: the rest -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Publish a message; bytes where it is sealed already."""

    topic: str
    message: Message | bytes
    qos: int = 1
    retain: bool = False


@dataclass(frozen=True)
class Subscribe:
    """Subscribe to (filter, QoS) pairs."""

    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Unsubscribe:
    """Stop receiving what matches these filters."""

    filters: tuple[str, ...]


@dataclass(frozen=True)
class Load:
    """Read an object from the disk; `Loaded` follows. Where it is not, one of `or_size` bytes would do, 0: none."""

    sha256: str
    or_size: int = 0


@dataclass(frozen=True)
class ReadExamples:
    """Look for the examples that a bundle asks for; `ExamplesRead` or `ExamplesMissing` follows."""

    task: str
    bundle: Bundle


@dataclass(frozen=True)
class Train:
    """Train in the background; `Trained` or `TrainingFailed` follows, whatever happens in between."""

    task: str
    bundle: Bundle
    base: Vector  # shape (layout.size,)
    order: WorkOrder
    personal: Vector
    rng: np.random.Generator


@dataclass(frozen=True)
class Pause:
    """Hold the training in hand, or let it go on."""

    paused: bool


@dataclass(frozen=True)
class Predict:
    """Ask the int8 model of a version about the newest example; `Predicted` follows, or nothing."""

    task: str
    version: int
    bundle: Bundle
    vector: Vector
    personal: Vector


@dataclass(frozen=True)
class ReadLog:
    """Look at the newest lines of the agent's log; `LogRead` follows."""

    cid: str
    lines: int


@dataclass(frozen=True)
class EraseExamples:
    """Erase the ring; `ExamplesErased` follows."""

    cid: str


@dataclass(frozen=True)
class KeepRelease:
    """A release of the agent was fetched, or may lie here: check it, and keep it under its SHA-256.

    `data` is a small one; a large one lies in its part. `ReleaseKept` follows.
    """

    sha256: str
    fleet_key: str
    data: bytes = b""


@dataclass(frozen=True)
class SpoolRelease:
    """Put a release that is kept where root's side looks; `ReleaseSpooled` follows."""

    sha256: str


@dataclass(frozen=True)
class LookForReport:
    """Has root's side done with it? `UpdateSeen` follows."""

    sha256: str


@dataclass(frozen=True)
class Measure:
    """Read the sensors now; `Measured` follows."""


@dataclass(frozen=True)
class Adjust:
    """How often to read the sensors, and what to log, from now on."""

    measure_s: float
    log_level: str


@dataclass(frozen=True)
class Note:
    """A line for the log."""

    level: str  # "info" | "warning" | "error"
    text: str


Effect = (
    Durable
    | Send
    | Subscribe
    | Unsubscribe
    | Load
    | ReadExamples
    | Train
    | Pause
    | Predict
    | ReadLog
    | EraseExamples
    | KeepRelease
    | SpoolRelease
    | LookForReport
    | Measure
    | Adjust
    | Note
)

# --- events (besides the transport's own) ------------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """A durable effect is on the disk."""

    effect: Durable


@dataclass(frozen=True)
class DiskFull:
    """A durable effect found no room; nothing of it is on the disk."""

    effect: Durable


@dataclass(frozen=True)
class Loaded:
    """An object from the disk; None if it is not there. `other` is one of the size asked for in its stead."""

    sha256: str
    data: bytes | None
    other: bytes | None = None


@dataclass(frozen=True)
class ExamplesRead:
    """How many examples there are to train on."""

    task: str
    num_examples: int


@dataclass(frozen=True)
class ExamplesMissing:
    """There is nothing to train on, and why."""

    task: str
    why: str


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    task: str
    result: TrainingResult


@dataclass(frozen=True)
class TrainingFailed:
    """A training that came to nothing."""

    task: str
    code: Code | None
    why: str


@dataclass(frozen=True)
class Measured:
    """What the sensors say, and what this process uses."""

    reading: Reading
    vitals: Vitals = field(default_factory=Vitals)
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class Counted:
    """What passed the socket since the start; told at each change, where a byte budget holds."""

    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Guess:
    """What the model says of one example; a model without labels gives its first output as `label`."""

    label: str
    probability: float
    milliseconds: float


@dataclass(frozen=True)
class Predicted:
    """What a version's int8 model said."""

    task: str
    version: int
    guess: Guess


@dataclass(frozen=True)
class LogRead:
    """The newest lines of the log, scrubbed, oldest first."""

    cid: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class ExamplesErased:
    """How many examples there were; `why` is why they could not be erased, `ours` whether they were ours to erase."""

    cid: str
    num_examples: int = 0
    why: str = ""
    ours: bool = True


@dataclass(frozen=True)
class ReleaseKept:
    """A release of the agent, checked; or why it is of no use here, with a code; without any of it, it is not here."""

    sha256: str
    number: int | None = None
    digest: str = ""
    version: str = ""
    code: Code | None = None
    why: str = ""


@dataclass(frozen=True)
class ReleaseSpooled:
    """It lies where root's side looks; or why not."""

    sha256: str
    why: str = ""


@dataclass(frozen=True)
class UpdateSeen:
    """What root's side has said last; whether the release is still `spooled`, or not even that but `kept`."""

    sha256: str
    report: Report | None
    spooled: bool
    kept: bool


@dataclass(frozen=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True)
class Stop:
    """The process is asked to end."""


Event = (
    Connected
    | Disconnected
    | Delivery
    | Undeliverable
    | Saved
    | DiskFull
    | Loaded
    | ExamplesRead
    | ExamplesMissing
    | Trained
    | TrainingFailed
    | Measured
    | Counted
    | Predicted
    | LogRead
    | ExamplesErased
    | ReleaseKept
    | ReleaseSpooled
    | UpdateSeen
    | Tick
    | Stop
)
