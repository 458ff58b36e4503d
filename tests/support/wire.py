"""One example of every message, signed where the wire wants it: the source of the golden files under tests/wire/."""

from fl_protocol import messages as m
from fl_protocol.codec import encode
from fl_protocol.signing import SigningKey, seal, seal_update
from fl_protocol.succession import hand_over

FLEET_KEY = SigningKey(bytes(range(32)))
NEXT_KEYS = [SigningKey(bytes(range(n, n + 32))) for n in (64, 96)]
DEVICE_KEY = SigningKey(bytes(range(32, 64)))
FLEET = "demo"
SHA = "5f" * 32
FINGERPRINT = "0a" * 16
INCARNATION = "1234567890abcdef"
UPDATE_TOPIC = "fl/1/demo/dev/fan-20/up/update"

UPDATE = m.Update(
    device="fan-20",
    incarnation=INCARNATION,
    seq=7,
    task="fan",
    plan_revision=1,
    base_version=41,
    fingerprint=FINGERPRINT,
    num_examples=543,
    local_steps=17,
    codec={"name": "uq", "step": "2.0"},
    payload=b"\x00\x01payload",
    statistics=b"\x00\x3c",
    sha256=SHA,
    train_seconds=1.5,
    metrics={"value": 0.75},
)

CHAIN = hand_over(hand_over(None, FLEET_KEY, NEXT_KEYS[0], FLEET), *NEXT_KEYS, FLEET)

MESSAGES: dict[str, m.Message] = {
    "state": m.DeviceState(state="training", boot=3, bseq=2, n=9, task="fan", version=41, why="", ts=1),
    "info": m.DeviceInfo(software="anabranch-agent/0.1.0", public_key=DEVICE_KEY.public, incarnation=INCARNATION),
    "info-release": m.DeviceInfo(
        software="edge-agent 0.2.0", public_key=DEVICE_KEY.public, incarnation=INCARNATION, arch="arm64", release=7
    ),
    "health": m.Health(memory_mb=70.5, temperature_c=41.0, why_not="too hot", may_train=False),
    "health-budget": m.Health(bytes_up=900_000, bytes_down=3_100_000, bytes_today=4_000_000, bytes_allowed=5_000_000),
    "event": m.DeviceEvent(event="bundle", level="error", code="E_SHA", message="not the one that the plan names"),
    "prediction": m.Prediction(task="fan", version=41, label="normal", probability=0.97, milliseconds=1.2),
    "reported": m.Reported(revision=3, configuration={"gate.min_battery_pct": "50"}),
    "reported-refused": m.Reported(
        revision=3, configuration={"log.level": "debug"}, refused=4, code="E_SCHEMA", why="unknown key `gate.x`"
    ),
    "progress": m.CommandProgress(status="executing"),
    "progress-rejected": m.CommandProgress(status="rejected", code="E_COMMAND", why="battery below 30 %"),
    "progress-lines": m.CommandProgress(status="successful", lines=("12:00:00 INFO fan-20 of fleet demo, start 3",)),
    "progress-health": m.CommandProgress(
        status="successful", health=m.Health(memory_mb=70.5, temperature_c=41.0, cpu_s=3.25)
    ),
    "offer": m.Offer(
        sha256=SHA,
        size=100_000,
        chunk_size=16384,
        task="fan",
        incarnation=INCARNATION,
        seq=7,
        base_version=41,
        fingerprint=FINGERPRINT,
    ),
    "enroll": m.Enroll(
        csr="-----BEGIN CERTIFICATE REQUEST-----", public_key=SHA, proof=SHA, hardware="10000000abcdef01"
    ),
    "renew": m.Renew(csr="-----BEGIN CERTIFICATE REQUEST-----", signature="ab" * 64),
    "slot-answer": m.SlotAnswer(task="fan", slot="41-7", answer="decline", why="the battery is at 12 %"),
    "grant": m.Grant(sha256=SHA, answer="go", window=4, missing=b"\x7f"),
    "chunk": m.Chunk(sha256=SHA, index=2, count=7, crc32=0xDEADBEEF, data=b"sixteen bytes of"),
    "get": m.Get(sha256=SHA, size=100_000, chunk_size=16384, window=4, missing=b"\x7f"),
    "want": m.Want(task="fan", sha256=SHA, base=SHA[::-1]),
    "delta": m.Delta(task="fan", sha256=SHA, base=SHA[::-1], object=SHA, size=5, chunk_size=16384, data=b"bytes"),
    "status": m.TaskStatus(task="fan", state="running", version=41, value=0.9, updates={"accepted": 300}),
    "status-bytes": m.TaskStatus(
        task="fan", state="running", version=41, bytes_up=600_000, bytes_up_float32=8_700_000, ratio_up=14.5
    ),
    "status-invited": m.TaskStatus(
        task="fan", state="running", version=41, invited={"fan-20": "version 41, for 90 s; its turn: never asked"}
    ),
    "status-guarded": m.TaskStatus(
        task="fan",
        state="running",
        version=41,
        canary=42,
        withheld=1,
        why="version 40 withheld: accuracy 0.1 after 0.9",
    ),
    "metrics-withheld": m.ReleaseMetrics(
        task="fan", version=40, updates=8, devices=("fan-20",), value=0.1, withheld=True
    ),
    "metrics": m.ReleaseMetrics(task="fan", version=41, updates=8, devices=("fan-20", "fan-25"), value=0.9, loss=0.3),
    "gateway": m.GatewayState(state="ready", boot=1, bseq=1, fleet_key=FLEET_KEY.public),
    "sync": m.Sync(within_s=5),
    "key": CHAIN,
    "answer": m.Answer(status="failed", message="there is no task fan", hint="tasks: none"),
}

SIGNED: dict[str, tuple[str, m.Signed]] = {
    "plan": (
        "fl/1/demo/task/fan/plan",
        m.Plan(
            task="fan",
            revision=1,
            state="running",
            bundle_sha256=SHA,
            bundle_size=138_672,
            fingerprint=FINGERPRINT,
            hyper={"learning_rate": "0.05"},
            stop=m.Stop(versions=50, metric="0.95"),
            counter=3,
        ),
    ),
    "manifest": (
        "fl/1/demo/task/fan/manifest/stable",
        m.Manifest(
            task="fan",
            plan_revision=1,
            version=41,
            fingerprint=FINGERPRINT,
            sha256=SHA,
            size=40_000,
            chunk_size=16384,
            counter=42,
        ),
    ),
    "manifest-delta": (
        "fl/1/demo/task/fan/manifest/stable",
        m.Manifest(
            task="fan",
            plan_revision=1,
            version=42,
            fingerprint=FINGERPRINT,
            sha256=SHA,
            size=40_000,
            chunk_size=16384,
            delta=SHA[::-1],
            delta_size=700,
            counter=43,
        ),
    ),
    "desired": ("fl/1/demo/dev/fan-20/twin/desired", m.Desired(tasks=("fan",), counter=1)),
    "desired-canary": (
        "fl/1/demo/dev/fan-20/twin/desired",
        m.Desired(tasks=("fan", "pump"), canary=("fan",), counter=2),
    ),
    "desired-configuration": (
        "fl/1/demo/dev/fan-20/twin/desired",
        m.Desired(
            tasks=("fan",),
            commands={"0123abcd": "train-now"},
            configuration={"gate.min_battery_pct": "50", "log.level": "debug"},
            revision=3,
            counter=3,
        ),
    ),
    "command": (
        "fl/1/demo/dev/fan-20/cmd/pause/0123abcd",
        m.DeviceCommand(arguments={"minutes": "30"}, deadline_s=60, counter=7),
    ),
    "result": (
        "fl/1/demo/dev/fan-20/dn/result",
        m.Result(
            task="fan", incarnation=INCARNATION, seq=7, verdict="stale", code="E_STALE", why="too old", counter=12
        ),
    ),
    "result-bytes": (
        "fl/1/demo/dev/fan-20/dn/result",
        m.Result(
            task="fan",
            incarnation=INCARNATION,
            seq=8,
            verdict="accepted",
            bytes_up=2344,
            bytes_up_float32=28_988,
            ratio_up="12.4",
            counter=13,
        ),
    ),
    "slot": (
        "fl/1/demo/dev/fan-20/dn/slot",
        m.Slot(task="fan", slot="41-7", version=41, expires_in_s=90, why="its turn: never asked", counter=6),
    ),
    "certified": (
        "fl/1/demo/enroll/0123abcd/resp",
        m.Certified(status="issued", key=SHA, device="fan-20", certificate="-----BEGIN CERTIFICATE-----", counter=3),
    ),
    "certified-keys": (
        "fl/1/demo/enroll/0123abcd/resp",
        m.Certified(status="issued", key=SHA, device="fan-20", certificate="-----", keys=CHAIN, counter=5),
    ),
    "certified-refused": (
        "fl/1/demo/enroll/0123abcd/resp",
        m.Certified(
            status="refused", key=SHA, code="E_CLAIM", why="there is no such claim", retry_in_s=3600, counter=4
        ),
    ),
    "ask": ("fl/1/demo/op/cmd/task-start/0123", m.Ask(name="task-start", arguments={"task": "fan"}, counter=5)),
    "agent-release": (
        "agent-release",
        m.AgentRelease(
            version="0.2.0",
            arch="arm64",
            python="3.13",
            files={"anabranch-0.2.0-py3-none-any.whl": SHA, "pip-25.3-py3-none-any.whl": SHA[::-1]},
            sizes={"anabranch-0.2.0-py3-none-any.whl": 400_000, "pip-25.3-py3-none-any.whl": 1_800_000},
            counter=7,
        ),
    ),
}


def golden() -> dict[str, bytes]:
    """File name -> bytes of every golden message."""
    files = {f"{name}.bin": encode(message) for name, message in MESSAGES.items()}
    files |= {f"{name}.signed.bin": seal(message, FLEET_KEY, FLEET, t) for name, (t, message) in SIGNED.items()}
    files["update.envelope.bin"] = seal_update(UPDATE, DEVICE_KEY, FLEET, UPDATE_TOPIC)
    return files


if __name__ == "__main__":  # writes what is new; a file that exists is for ever
    from pathlib import Path

    folder = Path(__file__).parents[1] / "wire" / "messages"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in golden().items():
        path = folder / name
        if not path.exists():
            path.write_bytes(data)
