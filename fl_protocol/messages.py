"""Everything that devices, gateway and operators say to each other, as frozen dataclasses.

The wire's constitution:

1. A field is never removed, renamed or given another meaning. New fields are optional and have a default.
2. Unknown fields are ignored, and kept: `extra` carries them, so that an old reader passes on what a newer one wrote.
3. `v` is the message's schema. A reader refuses (`E_VERSION`) only what it cannot read, never what is merely newer.
4. Every size is bounded here, in the type; the codec refuses before it allocates.
5. What is signed holds no floats: decimals travel as strings, so that its bytes are the same everywhere (RFC 8785).
6. Times between machines are durations in seconds (`..._s`). `ts` is for people: ms since 1970, 0 without a clock.
7. JSON where a person may look, msgpack where bytes count.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Self

from msgspec import Meta

Id = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Fingerprint = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Incarnation = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]  # one life of a device's flash storage
Key = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]  # an Ed25519 public key, hex
Decimal = Annotated[str, Meta(pattern=r"^-?[0-9]{1,12}(\.[0-9]{1,12})?(e-?[0-9]{1,2})?\Z")]
MaybeDecimal = Annotated[str, Meta(pattern=r"^(-?[0-9]{1,12}(\.[0-9]{1,12})?(e-?[0-9]{1,2})?)?\Z")]
MaybeCode = Annotated[str, Meta(pattern=r"^(E_[A-Z]{1,20})?\Z")]
Text = Annotated[str, Meta(max_length=400)]
Pem = Annotated[str, Meta(max_length=4096)]
WheelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,90}\.whl\Z")]
Signature = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]  # Ed25519, hex
Word = Annotated[str, Meta(max_length=64)]
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]  # what JSON carries exactly
Small = Annotated[int, Meta(ge=0, le=1_000_000)]
Metrics = Annotated[dict[Word, float], Meta(max_length=64)]
Settings = Annotated[dict[Word, Word], Meta(max_length=64)]

MAX_COMMANDS = 16  # of a device, open at once
MAX_SUCCESSIONS = 16  # rotations of the fleet's key that a device may have slept through
MAX_OBJECT_BYTES = 1 << 30  # anything offered, fetched or reassembled
MAX_CHUNKS = 1 << 16
MAX_CHUNK_BYTES = 1 << 20
ObjectSize = Annotated[int, Meta(ge=1, le=MAX_OBJECT_BYTES)]
ChunkSize = Annotated[int, Meta(ge=1, le=MAX_CHUNK_BYTES)]
Bitmap = Annotated[bytes, Meta(max_length=MAX_CHUNKS // 8)]  # bit i of byte i // 8: chunk i is missing


@dataclass(frozen=True, kw_only=True)
class Message:
    """What all have: the schema `v`, the sender's clock `ts`, and fields of a later schema in `extra`."""

    v: Annotated[int, Meta(ge=1, le=1)] = 1
    ts: Count = 0
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Signed(Message):
    """What the fleet's key vouches for. `counter` only grows on one topic; a lower one is E_DOWNGRADE."""

    counter: Count = 0


# --- the device speaks -------------------------------------------------------------------------------------------

StateName = Literal["init", "ready", "training", "uploading", "sleeping", "disconnected", "lost"]


@dataclass(frozen=True, kw_only=True)
class DeviceState(Message):
    """Retained at `dev/{id}/state`; also the last will, with state `lost`.

    `boot` +1 a start, `bseq` +1 a CONNECT, `n` +1 a message: by them, within one `incarnation`, a word that comes late
    is known to be older than one that came before.
    """

    state: StateName
    boot: Count
    bseq: Count
    n: Count = 0
    task: Id | None = None
    version: Count | None = None
    why: Text = ""
    incarnation: Incarnation | None = None

    @property
    def connection(self) -> tuple[str | None, int, int]:
        """Names the connection that it is a word of."""
        return self.incarnation, self.boot, self.bseq

    @property
    def order(self) -> tuple[int, int, float]:
        """Grows from word to word of one incarnation; the will is its connection's last."""
        return self.boot, self.bseq, float("inf") if self.state == "lost" else self.n


@dataclass(frozen=True, kw_only=True)
class DeviceInfo(Message):
    """Retained at `dev/{id}/info`: what the device is."""

    software: Word
    public_key: Key
    incarnation: Incarnation
    machine: Word = ""
    python: Word = ""
    cpus: Small = 0
    memory_mb: Small = 0
    num_examples: Count = 0
    mqtt: Word = ""
    arch: Word | None = None  # of the processor, as releases of the agent name it
    release: Count | None = None  # of the agent, that is installed; 0: its kit. None: it takes none from afar


@dataclass(frozen=True, kw_only=True)
class Health(Message):
    """Now and then at `dev/{id}/health`: temperature in Celsius, resident memory in MB, and why it does not train.

    `bytes_up` and `bytes_down` count what passed the device's socket since its program started: MQTT packets whole, of
    connections and keep-alives too, without what TLS, TCP and IP add.
    """

    memory_mb: float = 0.0
    peak_memory_mb: float = 0.0
    cpu_s: float = 0.0
    temperature_c: float | None = None
    battery_pct: float | None = None
    disk_free_mb: float | None = None
    may_train: bool = True
    why_not: Text = ""
    bytes_up: Count = 0
    bytes_down: Count = 0
    provider: Word | None = None  # of onnxruntime: cpu, cuda, tensorrt; once it has trained
    bytes_today: Count | None = None  # both ways; where the device has a byte budget
    bytes_allowed: Count | None = None  # a day, by that budget


@dataclass(frozen=True, kw_only=True)
class DeviceEvent(Message):
    """At `dev/{id}/event`: something a person should know about; `code` where the protocol has one."""

    event: Word
    level: Literal["info", "warning", "error"] = "info"
    code: MaybeCode = ""
    message: Text = ""
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Prediction(Message):
    """At `dev/{id}/prediction`: the int8 model of `version` at work on the device's newest example."""

    task: Id
    version: Count
    label: Text
    probability: float
    milliseconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Reported(Message):
    """Retained at `dev/{id}/twin/reported`: the wanted configuration that is in force, by its revision; 0: none ever.

    `refused` is a later revision that could not be, and `why`: then the one before it stays.
    """

    revision: Count = 0
    configuration: Settings = field(default_factory=dict)
    refused: Count | None = None
    code: MaybeCode = ""
    why: Text = ""


CommandStatus = Literal["executing", "successful", "failed", "rejected"]
LogLines = Annotated[tuple[Text, ...], Meta(max_length=200)]


@dataclass(frozen=True, kw_only=True)
class CommandProgress(Message):
    """Retained at `dev/{id}/cmd/{name}/{cid}` in the command's place: what became of it so far.

    `rejected` was never begun, `failed` was. `lines` are the device's log and `health` its vitals, where that was
    asked for.
    """

    status: CommandStatus
    code: MaybeCode = ""
    why: Text = ""
    lines: LogLines | None = None
    health: Health | None = None

    @property
    def final(self) -> bool:
        """Whether nothing more comes."""
        return self.status != "executing"


@dataclass(frozen=True, kw_only=True)
class Update(Message):
    """What a device learnt from `base_version`. (incarnation, seq) is its `update_id`; seq only grows.

    `payload` is the compressed delta, `statistics` float16 little-endian values of the layout's statistic entries.
    Sent inside an `Envelope`.
    """

    device: Id
    incarnation: Incarnation
    seq: Count
    task: Id
    plan_revision: Count
    base_version: Count
    fingerprint: Fingerprint
    num_examples: Annotated[int, Meta(ge=1, le=2**40)]
    local_steps: Annotated[int, Meta(ge=1, le=2**40)]
    codec: Settings
    payload: bytes
    statistics: bytes
    sha256: Sha256 | None = None  # the signature says as much; earlier devices send both
    train_seconds: float = 0.0
    metrics: Metrics = field(default_factory=dict)
    slot: Word = ""


@dataclass(frozen=True, kw_only=True)
class Envelope(Message):
    """Signed bytes: the exact body that was signed, and the device's Ed25519 signature over it."""

    body: bytes
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


@dataclass(frozen=True, kw_only=True)
class Offer(Message):
    """At `up/offer`: an update too large for one packet, described so that a useless one is not sent.

    Signed by the device over all other fields: what an offer is told may be final. A field that comes later has the
    default None, which is not said: the signature is over the message as a reader would say it again.
    """

    sha256: Sha256
    size: ObjectSize
    chunk_size: ChunkSize
    task: Id
    incarnation: Incarnation
    seq: Count
    base_version: Count
    fingerprint: Fingerprint
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)] | None = None


@dataclass(frozen=True, kw_only=True)
class Grant(Message):
    """At `dn/grant`: the receiver paces. Send at most `window` of the chunks whose bit is set in `missing`."""

    sha256: Sha256
    answer: Literal["go", "wait", "done", "stale", "full", "reject"]
    window: Small = 0
    missing: Bitmap = b""
    retry_in_s: Small = 0
    code: MaybeCode = ""


@dataclass(frozen=True, kw_only=True)
class Chunk(Message):
    """A block of the object named by `sha256`; every chunk but the last has the transfer's chunk size."""

    sha256: Sha256
    index: Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]
    count: Annotated[int, Meta(ge=1, le=MAX_CHUNKS)]
    crc32: Annotated[int, Meta(ge=0, lt=2**32)]
    data: Annotated[bytes, Meta(max_length=MAX_CHUNK_BYTES)]


@dataclass(frozen=True, kw_only=True)
class Get(Message):
    """At `up/get`: blocks of an object that the device misses; at most `window` of them now, please."""

    sha256: Sha256
    size: ObjectSize
    chunk_size: ChunkSize
    window: Annotated[int, Meta(ge=1, le=4096)]
    missing: Bitmap


@dataclass(frozen=True, kw_only=True)
class Want(Message):
    """At `up/want`: what makes the version `sha256` of `base`, both as manifests name them? None: of nothing."""

    task: Id
    sha256: Sha256
    base: Sha256 | None = None


@dataclass(frozen=True, kw_only=True)
class SlotAnswer(Message):
    """At `up/slot`: whether the device trains for the slot that it was offered; a decline frees it at once."""

    task: Id
    slot: Word
    answer: Literal["accept", "decline"]
    why: Text = ""


# --- the gateway speaks ------------------------------------------------------------------------------------------

Verdict = Literal["accepted", "stale", "rejected", "deferred"]
Mode = Literal["asynchronous", "synchronous"]
TaskState = Literal["created", "running", "paused", "stopped", "finished"]


@dataclass(frozen=True, kw_only=True)
class Stop(Message):
    """When a task is done; 0 or empty means: not by this. `plateau` releases without a better metric stop it."""

    versions: Small = 0
    minutes: Small = 0
    metric: MaybeDecimal = ""
    plateau: Small = 0


@dataclass(frozen=True, kw_only=True)
class Plan(Signed):
    """Retained at `task/{task}/plan`: how to train. A change is a new `revision`. Buffer to stop: for the gateway."""

    task: Id
    revision: Count
    origin: Count = 0  # the version that this life of the model began with; what came of an earlier one is stale
    state: TaskState
    bundle_sha256: Sha256
    bundle_size: ObjectSize
    fingerprint: Fingerprint
    hyper: Settings = field(default_factory=dict)
    batch_size: Annotated[int, Meta(ge=1, le=65536)] = 32
    local_epochs: Annotated[int, Meta(ge=1, le=1000)] = 1
    max_local_steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    clip_norm: MaybeDecimal = ""
    codec: Settings = field(default_factory=lambda: {"name": "uq", "step": "1.0"})
    mode: Mode = "asynchronous"
    buffer: Annotated[int, Meta(ge=1, le=100_000)] = 8
    deadline_s: Annotated[int, Meta(ge=1, le=1_000_000)] = 60
    quorum: Annotated[int, Meta(ge=1, le=100_000)] = 1
    max_staleness: Small = 20
    norm_limit: Decimal = "5"
    staleness_exponent: Decimal = "0.5"
    example_exponent: Decimal = "0.5"
    server_learning_rate: Decimal = "1.0"
    server_momentum: Decimal = "0.0"
    downlink: Settings | None = None  # how versions are published; none: whole, as float32
    rule: Settings | None = None  # how a buffer becomes a step; none: the mean, by the two exponents above
    optimizer: Settings | None = None  # how a step is applied; none: SGD, by the server's rate and momentum above
    participation: Settings | None = None  # who is asked to train; none: whoever is there, at once
    tiers: Annotated[int, Meta(ge=2, le=8)] | None = None  # synchronous: among devices of like speed only
    guard: Settings | None = None  # what a release must show before it is published; none: nothing
    stop: Stop = field(default_factory=Stop)

    @property
    def in_rounds(self) -> bool:
        """Whether a version is everybody's, trained from the one before: synchronous, and not tier by tier."""
        return self.mode == "synchronous" and self.tiers is None


@dataclass(frozen=True, kw_only=True)
class Manifest(Signed):
    """Retained at `task/{task}/manifest/stable`: the current version, as the SHA-256 of its float32 vector's bytes."""

    task: Id
    plan_revision: Count
    version: Count
    fingerprint: Fingerprint
    sha256: Sha256
    size: ObjectSize
    chunk_size: ChunkSize
    encoding: Literal["float32"] = "float32"
    delta: Sha256 | None = None  # the object that makes it of the version before, see fl_protocol/deltas.py
    delta_size: ObjectSize | None = None


@dataclass(frozen=True, kw_only=True)
class Delta(Message):
    """At `dn/delta`, in answer to a `Want`: `object` makes the version of `base`, or alone where that is None.

    Its bytes come with it if they fit into a chunk. Nobody signs it: what comes of it is known by its SHA-256.
    """

    task: Id
    sha256: Sha256
    base: Sha256 | None = None
    object: Sha256
    size: ObjectSize
    chunk_size: ChunkSize
    data: Annotated[bytes, Meta(max_length=MAX_CHUNK_BYTES)] = b""


@dataclass(frozen=True, kw_only=True)
class Desired(Signed):
    """Retained at `dev/{id}/twin/desired`: the tasks that the device takes part in.

    `commands` are the open ones, cid -> name: to no other does the device listen. `configuration` stands above the
    device's own file, and `revision` is its number; None: nothing is said about it, and what is in force stays.
    """

    tasks: Annotated[tuple[Id, ...], Meta(max_length=64)] = ()
    canary: Annotated[tuple[Id, ...], Meta(max_length=64)] | None = None  # whose versions it tries: `manifest/canary`
    commands: Annotated[dict[Id, Id], Meta(max_length=MAX_COMMANDS)] | None = None
    configuration: Settings | None = None
    revision: Count | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceCommand(Signed):
    """Retained at `dev/{id}/cmd/{name}/{cid}`: the device is asked for something; see `edge_agent/commanding.py`.

    It answers on the same topic by `CommandProgress`, and the gateway clears the topic. `deadline_s` is what is left
    of the time in which the gateway wants an answer.
    """

    status: Literal["init"] = "init"
    arguments: Settings = field(default_factory=dict)
    deadline_s: Annotated[int, Meta(ge=1, le=10_000_000)] = 60


@dataclass(frozen=True, kw_only=True)
class Slot(Signed):
    """At `dn/slot`: an invitation to train from `version`, or a newer one; a lease that ends in `expires_in_s`.

    The update names it in `Update.slot`. `why` says for people by what the device was chosen.
    """

    task: Id
    slot: Word
    version: Count
    expires_in_s: Annotated[int, Meta(ge=1, le=10_000_000)]
    why: Text = ""


@dataclass(frozen=True, kw_only=True)
class Result(Signed):
    """At `dn/result`: the gateway's word on an update. `deferred` is not final: send the same bytes again later.

    `bytes_up` is what the update came in: the topic, and the sealed message with its header, signature, payload and
    statistics; in chunks the sealed message alone. `bytes_up_float32` is what parameters and statistics take as plain
    float32, with nothing around them. Absent from gateways that do not tell, and where nothing came.
    """

    task: Id
    incarnation: Incarnation
    seq: Count
    verdict: Verdict
    code: MaybeCode = ""
    why: Text = ""
    retry_in_s: Small = 0
    repeat: bool = False
    bytes_up: Count | None = None
    bytes_up_float32: Count | None = None
    ratio_up: Decimal | None = None  # how many times fewer

    @property
    def final(self) -> bool:
        """Whether the device settles its residual and forgets the update."""
        return self.verdict != "deferred"

    def repeated(self) -> Self:
        """The same verdict, for the same update that came again."""
        return replace(self, repeat=True)


@dataclass(frozen=True, kw_only=True)
class TaskStatus(Message):
    """Retained at `task/{task}/status`, for people.

    `bytes_up` is what all updates of the task came in, refused ones too, counted as in `Result`; `bytes_up_float32`
    what the accepted ones would have taken as float32, and `ratio_up` the second over the first. Bytes down are not
    here: the gateway publishes once, and only a device's socket knows what it heard of that; see `Health`.
    """

    task: Id
    state: TaskState
    version: Count = 0
    revision: Count = 0
    mode: Mode = "asynchronous"
    metric: Word = ""
    value: float | None = None
    best: float | None = None
    loss: float | None = None
    reported: float | None = None
    buffered: Small = 0
    buffer: Small = 0
    devices: Small = 0
    active: Small = 0
    updates: dict[Word, Count] = field(default_factory=dict)
    bytes_up: Count = 0
    bytes_up_float32: Count = 0
    ratio_up: float | None = None
    why: Text = ""
    invited: Annotated[dict[Id, Text], Meta(max_length=64)] | None = None  # the newest open slots, and why
    withheld: Count | None = None  # versions that the plan's guard did not let pass, in this life of the model
    canary: Count | None = None  # the version that a few devices try now


@dataclass(frozen=True, kw_only=True)
class ReleaseMetrics(Message):
    """At `task/{task}/metrics`: one line a release."""

    task: Id
    version: Count
    updates: Small = 0
    devices: tuple[Id, ...] = ()
    staleness_mean: float = 0.0
    staleness_max: Small = 0
    num_examples: Count = 0
    step_norm: float = 0.0
    value: float | None = None
    loss: float | None = None
    reported: float | None = None
    bytes_up: Count = 0
    seconds: float = 0.0
    withheld: bool | None = None  # the plan's guard found it too bad: it was never the fleet's


@dataclass(frozen=True, kw_only=True)
class GatewayState(Message):
    """Retained at `gw/state`: birth and last will of the gateway. `fleet_key` is for people; devices bring it."""

    state: Literal["ready", "lost", "disconnected"]
    boot: Count
    bseq: Count
    software: Word = ""
    fleet_key: Word = ""


@dataclass(frozen=True, kw_only=True)
class Sync(Message):
    """At `gw/sync`: everyone announces again within `within_s` seconds, each at a random moment."""

    within_s: Small = 5


@dataclass(frozen=True, kw_only=True)
class FleetKeys(Message):
    """Retained at `gw/key` once the fleet's key was rotated: its keys, oldest first, each but the first signed for.

    `signatures[i]` is by `keys[i]` for the key after it, see `succession.py`; `first` counts the keys before `keys[0]`.
    """

    first: Count = 0
    keys: Annotated[tuple[Key, ...], Meta(min_length=1, max_length=MAX_SUCCESSIONS + 1)]
    signatures: Annotated[tuple[Signature, ...], Meta(max_length=MAX_SUCCESSIONS)] = ()


# --- who gets in -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Enroll(Message):
    """At `enroll/{claim}/req`: whoever holds the claim's ticket asks for a certificate; see `enrolling.py`.

    `csr` is PKCS #10, `public_key` is what the device signs updates with, `hardware` the machine's serial number where
    it has one, and `proof` an HMAC-SHA256 by the ticket's secret, which itself never travels.
    """

    csr: Pem
    public_key: Key
    proof: Sha256
    hardware: Word = ""


@dataclass(frozen=True, kw_only=True)
class Renew(Message):
    """At `dev/{id}/up/renew`: the next certificate, please. `signature` is by the device's signing key."""

    csr: Pem
    signature: Signature


@dataclass(frozen=True, kw_only=True)
class Certified(Signed):
    """At `enroll/{claim}/resp` and `dev/{id}/dn/cert`: a certificate, or why there is none yet or none at all.

    `key` is the SHA-256 of the public key that asked: others on the topic know that they are not meant. A device that
    waits asks again after `retry_in_s`, and so does one that was refused, less and less often.
    """

    status: Literal["issued", "waiting", "refused"]
    key: Sha256
    device: Id | None = None
    certificate: Pem = ""
    code: MaybeCode = ""
    why: Text = ""
    retry_in_s: Small = 0
    keys: FleetKeys | None = None  # for a ticket that names an earlier key of the fleet


# --- the operator speaks -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ask(Signed):
    """At `op/cmd/{name}/{cid}`: signed with the fleet's key; `arguments` is what the command `name` reads."""

    name: Word
    arguments: dict[Word, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer(Message):
    """The gateway's answer, on the same topic."""

    status: Literal["successful", "failed"]
    message: Text = ""
    hint: Text = ""


@dataclass(frozen=True, kw_only=True)
class AgentRelease(Signed):
    """The first file of a release of the agent, see `agent_release.py`; `counter` numbers a fleet's releases.

    `files` are SHA-256 by name, `sizes` bytes by the same names: the wheels that follow, in the order of their names.
    """

    version: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.+!_-]{1,64}\Z")]
    arch: Annotated[str, Meta(pattern=r"^[a-z0-9]{1,16}\Z")]
    python: Annotated[str, Meta(pattern=r"^[0-9]\.[0-9]{1,3}\Z")]
    files: Annotated[dict[WheelName, Sha256], Meta(min_length=1, max_length=48)]
    sizes: Annotated[dict[WheelName, ObjectSize], Meta(min_length=1, max_length=48)]
    keys: FleetKeys | None = None  # for who believes an earlier key of the fleet
