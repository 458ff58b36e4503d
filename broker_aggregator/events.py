"""What happens to the coordinator, and what it wants done about it.

Effects come in two kinds. The service applies all `Durable` effects of a batch in one transaction, and only then lets
the others (`Acknowledge`, `Send`, ...) out: durable before visible.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from broker_aggregator.fleet import Certificate, Claim, CommandRecord, Configuration
from broker_aggregator.rollout import Attempt, KeptRelease, Rollout
from fl_protocol.bundle import Better, Bundle
from fl_protocol.messages import (
    Ask,
    Chunk,
    CommandProgress,
    DeviceEvent,
    DeviceInfo,
    DeviceState,
    Enroll,
    Envelope,
    Get,
    Message,
    Offer,
    Plan,
    Renew,
    Reported,
    Result,
    SlotAnswer,
    Update,
    Want,
)
from fl_protocol.tensors import ModelLayout, Vector
from fl_protocol.topics import Topic

# --- events ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Online:
    """Connected to the broker; without `session_present` it has forgotten what we retained. `max_packet` in bytes."""

    session_present: bool
    max_packet: int
    mqtt: str
    now_ms: int = 0


@dataclass(frozen=True)
class Received:
    """A message of a device, decoded; `device` is from the topic, `num_bytes` counts topic and payload.

    The payload of an update is the sealed message: header, signature, statistics and the compressed delta. MQTT's own
    5 to 10 bytes a packet are not counted, nor, of an update in chunks, what carries each of them (some 120 bytes).
    """

    device: str
    message: (
        DeviceState | DeviceInfo | DeviceEvent | Envelope | Offer | SlotAnswer | Chunk | Get | Want | Renew | Reported
    )
    num_bytes: int = 0
    now_ms: int = 0


@dataclass(frozen=True)
class Claimed:
    """Somebody with a ticket asks for a certificate; `now_ms` since 1970, for dates in certificates are that."""

    claim: str
    request: Enroll
    now_ms: int


@dataclass(frozen=True)
class Progressed:
    """How far a device is with a command; `topic` names both."""

    topic: Topic
    progress: CommandProgress
    now_ms: int


@dataclass(frozen=True)
class Gone:
    """A device's retained state was cleared: it left for good."""

    device: str


@dataclass(frozen=True)
class Asked:
    """An operator's command, its signature verified; `bundle` is the one it names, read by the service.

    `release` is the earlier version that a rollback goes back to; None where it is not kept. `agent_release` is the one
    that a roll-out names, checked.
    """

    ask: Ask
    cid: str
    bundle: Bundle | None = None
    release: "Release | None" = None
    now_ms: int = 0
    agent_release: KeptRelease | None = None


@dataclass(frozen=True)
class Evaluated:
    """A version measured on the gateway's held-out set: mean loss, and the bundle's metric in 0..1."""

    task: str
    version: int
    loss: float
    value: float


@dataclass(frozen=True)
class Tick:
    """Time passed; deadlines are looked at. `free_bytes` are left on the store's disk."""

    free_bytes: int = 1 << 62
    now_ms: int = 0


Event = Online | Received | Claimed | Progressed | Gone | Asked | Evaluated | Tick

# --- effects: durable --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordUpdate:
    """An accepted update: it waits in the buffer from now on, to be counted by `scale`. `norm` is its delta's."""

    update: Update
    verdict: Result
    num_bytes: int
    norm: float
    scale: float


@dataclass(frozen=True)
class RecordVerdict:
    """A final refusal, so that a repeat hears the same; nothing of the update is kept."""

    device: str
    verdict: Result
    base_version: int
    num_bytes: int


@dataclass(frozen=True)
class Release:
    """A new version. `used` are (device, incarnation, seq) in the order in which they were summed."""

    task: str
    version: int
    plan_revision: int
    fingerprint: str
    vector: Vector  # shape (layout.size,)
    sha256: str
    used: tuple[tuple[str, str, int], ...] = ()
    staleness: tuple[int, ...] = ()
    share: float = 1.0  # b / K: how full the buffer was
    rule: Mapping[str, Vector] = field(default_factory=dict)
    optimizer: Mapping[str, Vector] = field(default_factory=dict)
    num_examples: int = 0
    num_bytes: int = 0
    step_norm: float = 0.0
    elapsed_s: float = 0.0
    residual: Vector = field(default_factory=lambda: np.zeros(0, np.float32))  # wanted and not published; or empty
    delta: bytes | None = None  # from the version before, where it can be said; not kept


ReleaseState = Literal["released", "canary", "withheld"]  # a canary's version becomes one of the other two


@dataclass(frozen=True)
class CommitRelease:
    """The version and what it used up, in one transaction.

    What a `canary` used is set aside until `Promote` counts it or `Withhold` quarantines it; what a `withheld` one
    used is quarantined, and `why` is the reason.
    """

    release: Release
    state: ReleaseState = "released"
    why: str = ""


@dataclass(frozen=True)
class Promote:
    """The canary's version is good: it is released, and what it used is counted."""

    task: str
    version: int


@dataclass(frozen=True)
class Withhold:
    """The canary's version is none for the fleet: what it used is quarantined. Its number is used up."""

    task: str
    version: int
    why: str


@dataclass(frozen=True)
class Quarantine:
    """Accepted updates that no release will count, and why; the other disposal that `accepted` may come to."""

    used: tuple[tuple[str, str, int], ...]
    why: str


@dataclass(frozen=True)
class SaveTask:
    """The task's plan, in its newest revision, and what only the gateway knows of it."""

    plan: Plan
    layout: ModelLayout
    metric: str
    evaluation: str = ""  # path of the held-out .npz on the gateway
    elapsed_s: float = 0.0
    why: str = ""
    better: Better = "higher"  # value of the metric


@dataclass(frozen=True)
class SaveEvaluation:
    """What a version measured."""

    task: str
    version: int
    loss: float
    value: float


@dataclass(frozen=True)
class RemoveTask:
    """The task and its releases are forgotten; its updates stay in the ledger."""

    task: str


@dataclass(frozen=True)
class SaveDevice:
    """A device that may take part (its public key), or no longer may (`revoked`)."""

    device: str
    public_key: str
    revoked: bool = False


@dataclass(frozen=True)
class SaveClaim:
    """A ticket as it stands."""

    claim: Claim


@dataclass(frozen=True)
class RemoveClaim:
    """A ticket has served, or was withdrawn."""

    claim: str


@dataclass(frozen=True)
class SaveCertificate:
    """A certificate that was issued, or is revoked now."""

    certificate: Certificate


@dataclass(frozen=True)
class SaveCommand:
    """A device's command as it stands."""

    command: CommandRecord


@dataclass(frozen=True)
class RemoveCommand:
    """A command that was over long ago."""

    command: str


@dataclass(frozen=True)
class SaveRollout:
    """A roll-out of the agent as it stands."""

    rollout: Rollout


@dataclass(frozen=True)
class SaveAttempt:
    """One device's part in a roll-out as it stands."""

    attempt: Attempt


@dataclass(frozen=True)
class RemoveRollout:
    """A roll-out that was over long ago, and its devices' parts."""

    rollout: str


@dataclass(frozen=True)
class SaveConfiguration:
    """What is wanted of a device, or of all."""

    configuration: Configuration


@dataclass(frozen=True)
class SaveState:
    """What a device last said of itself."""

    device: str
    state: DeviceState | DeviceInfo | Reported


@dataclass(frozen=True)
class SaveCounter:
    """The highest counter seen or used for a name."""

    name: str
    value: int


Durable = (
    RecordUpdate
    | RecordVerdict
    | CommitRelease
    | Promote
    | Withhold
    | Quarantine
    | SaveTask
    | SaveEvaluation
    | RemoveTask
    | SaveDevice
    | SaveClaim
    | RemoveClaim
    | SaveCertificate
    | SaveCommand
    | RemoveCommand
    | SaveRollout
    | SaveAttempt
    | RemoveRollout
    | SaveConfiguration
    | SaveState
    | SaveCounter
)

# --- effects: visible --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Publish a message, QoS 1; a `Signed` one is given its counter and signature on the way out."""

    topic: Topic
    message: Message
    retain: bool = False


@dataclass(frozen=True)
class Clear:
    """Remove what is retained on a topic."""

    topic: Topic


@dataclass(frozen=True)
class SendObject:
    """Publish chunks of the object `sha256` on a topic, QoS 0: all, or at most `window` of the `missing`.

    `data` is the object itself where it lies nowhere yet.
    """

    topic: Topic
    sha256: str
    chunk_size: int
    missing: bytes | None = None
    window: int = 0
    data: bytes | None = None


@dataclass(frozen=True)
class SendDelta:
    """Answer a device that wants a version: what is shortest from the one that it holds, QoS 0."""

    topic: Topic
    want: Want
    layout: ModelLayout
    chunk_size: int


@dataclass(frozen=True)
class DropParts:
    """What lies on the disk of an upload is of no use any more: its verdict does."""

    device: str
    sha256: str


@dataclass(frozen=True)
class Evaluate:
    """Measure a version on the held-out set, in the background; `Evaluated` follows."""

    task: str
    version: int
    bundle_sha256: str
    vector: Vector
    evaluation: str


@dataclass(frozen=True)
class RotateKey:
    """The next key is the fleet's: what was before it is durable by then, and what comes after it the new key signs."""


@dataclass(frozen=True)
class WriteRevocations:
    """The list that the broker reads: whoever holds one of these certificates is refused from now on."""

    revoked: tuple[Certificate, ...]


@dataclass(frozen=True)
class CloseSession:
    """The device's open connection to the broker ends, if it has one."""

    device: str


@dataclass(frozen=True)
class Note:
    """A line for the log."""

    level: str
    text: str


Visible = (
    Send | Clear | SendObject | SendDelta | DropParts | Evaluate | RotateKey | WriteRevocations | CloseSession | Note
)
Effect = Durable | Visible
