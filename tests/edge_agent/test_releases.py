"""`update-agent` at the device: fetched as an object, checked, spooled, and ended by whoever runs afterwards."""

import contextlib
import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import events as e
from edge_agent.budget import BudgetConfig
from edge_agent.commands import KeptCommand, read_command, write_command
from edge_agent.gate import Reading
from edge_agent.release_spool import ReleaseSpool
from edge_agent.releases import LOOK_S
from fl_protocol.agent_release import pack_release
from fl_protocol.device_commands import MAX_RELEASE_BYTES
from fl_protocol.messages import CommandProgress, Desired, DeviceCommand, Get
from fl_protocol.signing import SigningKey
from fl_protocol.topics import Kind
from tests.edge_agent.rig import FLEET, FLEET_KEY, STRANGERS_KEY, TASK, Rig, all_of, chunks_of, sent, topic
from tests.support.releases import manifest_of

CID, NAME = "u1", "update-agent"


class Device(Rig):
    """A device with root's side beside it, which does what the test says."""

    def __init__(self, folder: Path, **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]
        self.root, self.state_dir = folder / "root", folder / "state"
        for path in ("usr/local/sbin", "opt/anabranch/venv", "var/lib/anabranch-update"):
            (self.root / path).mkdir(parents=True)
        updater = self.root / "usr/local/sbin/anabranch-update"
        updater.write_text("#!/bin/sh\n")
        updater.chmod(0o755)
        self.spool = self.state_dir / "update/release.tar"
        self.begin()

    def begin(self) -> None:
        """A process."""
        self.releases = ReleaseSpool(self.state_dir, FLEET, self.root)
        self.start()
        self.connect()

    def restart(self) -> None:
        """Killed, and started again."""
        self.releases = ReleaseSpool(self.state_dir, FLEET, self.root)
        super().restart()

    def ask(self, data: bytes, cid: str = CID, size: int | None = None) -> list[e.Effect]:
        """The gateway's command."""
        effects = self.name(cid)
        arguments = {"sha256": hashlib.sha256(data).hexdigest(), "size": str(size or len(data))}
        command = DeviceCommand(
            arguments=arguments, deadline_s=600, counter=self.count(Kind.DEVICE_COMMAND, name=NAME, cid=cid)
        )
        return effects + self.hear(Kind.DEVICE_COMMAND, command, name=NAME, cid=cid)

    def name(self, *cids: str) -> list[e.Effect]:
        """The open commands."""
        commands = dict.fromkeys(cids, NAME)
        return self.hear(Kind.DESIRED, Desired(tasks=(TASK,), commands=commands, counter=self.count(Kind.DESIRED)))

    def report(self, state: str, number: int, why: str = "") -> None:
        """Root's side is done, or is at it."""
        path = self.root / "var/lib/anabranch-update/report"
        path.write_text(f"{state}\n{number}\n2\n{why}\n")
        if state != "executing":
            self.spool.unlink()


def release(number: int = 7, key: SigningKey = FLEET_KEY, wheel: int = 1000, **changes: object) -> bytes:
    files = {"anabranch-2-py3-none-any.whl": b"ours" * wheel, "pip-1-py3-none-any.whl": b"pip"}
    return pack_release(manifest_of(files, number, **changes), files, key, FLEET)


def told(effects: list[e.Effect], cid: str = CID) -> list[tuple[str, str]]:
    """Status and why, of each word."""
    words = [s.message for s in sent(Kind.DEVICE_COMMAND, effects, name=NAME, cid=cid)]
    return [(w.status, w.why) for w in words if isinstance(w, CommandProgress)]


def gets(effects: list[e.Effect]) -> list[Get]:
    return [s.message for s in all_of(e.Send, effects) if s.topic == topic(Kind.GET) and isinstance(s.message, Get)]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


@pytest.mark.parametrize("wheel", [1000, 60_000])  # below and above what is held in memory
def test_a_release_is_fetched_checked_spooled_and_reported(device: Device, wheel: int) -> None:
    """Executing, installing, and what root's side says; the agent that runs afterwards says it."""
    data = release(wheel=wheel)
    effects = device.ask(data)
    assert told(effects) == [("executing", "")]
    assert [g.size for g in gets(effects)] == [len(data)]
    effects = device.serve(data, chunk_size=gets(effects)[0].chunk_size)
    assert told(effects) == [("executing", "installing release 7 (2)")]
    assert device.spool.read_bytes() == data
    saves = [x for x in effects if isinstance(x, e.SaveCommand) and x.command.note]
    assert effects.index(saves[0]) < effects.index(all_of(e.SpoolRelease, effects)[0])  # noted before it is given away
    assert not told(device.wait(2 * LOOK_S))
    device.report("executing", 7)
    device.restart()
    assert told(device.connect()) == []  # until the gateway says what is open
    device.name(CID)
    assert not told(device.wait(5 * LOOK_S))
    device.report("successful", 7)
    assert told(device.wait(2 * LOOK_S)) == [("successful", "release 7 (2) is installed")]
    assert not all_of(e.LookForReport, device.wait(60))


def test_a_roll_back_is_told_by_the_agent_before(device: Device) -> None:
    """With root's reason, without a gateway in between, and over any number of starts."""
    data = release()
    device.serve(data, gets(device.ask(data))[0].chunk_size)
    device.restart()
    device.restart()
    device.report("failed", 7, "rolled back: the agent was not ready")
    device.wait(2 * LOOK_S)  # offline
    device.connect()
    assert told(device.name(CID)) == [("failed", "rolled back: the agent was not ready")]


def test_a_power_cut_before_it_is_spooled_does_no_harm(device: Device) -> None:
    """The note is on the disk, the file has not its name yet."""
    data = release()
    device.serve(data, gets(device.ask(data))[0].chunk_size)
    device.spool.rename(device.spool.with_name(hashlib.sha256(data).hexdigest()))
    device.restart()
    assert len(all_of(e.SpoolRelease, device.wait(1))) == 1
    assert device.spool.exists()


def test_a_kill_in_the_middle_of_fetching_goes_on(device: Device) -> None:
    """What came before is not asked for again."""
    data = release(wheel=100_000)
    first = gets(device.ask(data))[0]
    count = -(-len(data) // first.chunk_size)
    chunks = chunks_of(data, first.chunk_size)
    assert count == len(chunks) > 4
    for chunk in chunks[:3]:
        device.hear(Kind.CHUNK_DOWN, chunk)
    device.restart()
    device.connect()
    effects = device.name(CID)
    (get,) = gets(device.asked)[:1]
    assert get.missing != first.missing
    for chunk in chunks[3:]:
        effects += device.hear(Kind.CHUNK_DOWN, chunk)
    assert told(effects)[-1] == ("executing", "installing release 7 (2)")


class KilledError(Exception):
    """kill -9."""


@given(after=st.integers(0, 40), again=st.integers(0, 40), state=st.sampled_from(["successful", "failed"]))
@settings(max_examples=60, deadline=None)
def test_killed_at_any_effects_it_ends_as_root_says(after: int, again: int, state: str) -> None:
    """Twice; the release is given to root once, whole, and the last word is root's."""
    with tempfile.TemporaryDirectory() as folder:
        device, data = Device(Path(folder)), release(wheel=60_000)
        perform, counts = device._perform, [after, again]

        def dying(effect: e.Effect) -> object:
            if counts and counts[0] == 0:
                counts.pop(0)
                raise KilledError
            if counts:
                counts[0] -= 1
            return perform(effect)

        device._perform = dying  # type: ignore[method-assign, assignment]
        for start in range(4):
            with contextlib.suppress(KilledError):
                if start:
                    device.restart()
                    device.connect()
                device.ask(data)
                if asked := gets(device.asked):
                    device.serve(data, asked[0].chunk_size)
                break
        given_away = len(all_of(e.SpoolRelease, device.asked))
        assert device.spool.read_bytes() == data
        device._perform = perform  # type: ignore[method-assign]
        device.report(state, 7, "why")
        device.restart()
        device.connect()
        effects = device.name(CID) + device.wait(2 * LOOK_S)
        assert told(effects)[-1][0] == state
        assert given_away <= 1
        assert not device.spool.exists()


def test_what_the_disk_has_is_not_fetched(device: Device) -> None:
    """A release that failed to install may be sent again; here it lies still."""
    data = release()
    sha256 = hashlib.sha256(data).hexdigest()
    device.spool.parent.mkdir(parents=True)
    (device.spool.parent / sha256).write_bytes(data)
    (device.spool.parent / ("0" * 64)).write_bytes(b"of another")
    effects = device.ask(data)
    assert not gets(effects)
    assert device.spool.read_bytes() == data
    assert not (device.spool.parent / ("0" * 64)).exists()


@pytest.mark.parametrize(
    ("data", "code", "word"),
    [
        (release(key=STRANGERS_KEY), "E_SIG", "refused"),
        (release(python="3.99"), "E_VERSION", "3.99"),
        (release(arch="riscv64"), "E_VERSION", "riscv64"),
        (release(number=4), "E_DOWNGRADE", "after 5"),
        (b"no release" * 1000, "E_SCHEMA", "no release"),
    ],
)
def test_what_does_not_fit_is_rejected_and_goes(device: Device, data: bytes, code: str, word: str) -> None:
    """Root's side never hears of it."""
    (device.root / "opt/anabranch/venv/release").write_text("5 " + "0" * 64 + " 1\n")
    effects = device.serve(data, gets(device.ask(data))[0].chunk_size)
    (said,) = [s.message for s in sent(Kind.DEVICE_COMMAND, effects, name=NAME, cid=CID)]
    assert isinstance(said, CommandProgress)
    assert (said.status, said.code) == ("rejected", code)
    assert word in said.why
    assert not device.spool.exists()
    assert not list(device.spool.parent.iterdir())


def test_one_that_did_not_work_here_is_rejected(device: Device) -> None:
    """Root's list of bad releases is read by all."""
    data = release()
    digest = hashlib.sha256(data[512 : 512 + int(data[124:135], 8)]).hexdigest()
    (device.root / "var/lib/anabranch-update/bad").write_text(f"\n{digest}\n")
    effects = device.serve(data, gets(device.ask(data))[0].chunk_size)
    assert [status for status, _ in told(effects)] == ["rejected"]
    assert "did not work" in told(effects)[0][1]


def test_without_an_updater_it_is_rejected(device: Device) -> None:
    """At once, and nothing is fetched."""
    (device.root / "usr/local/sbin/anabranch-update").unlink()
    effects = device.ask(release())
    assert not gets(effects)
    status, why = told(effects)[-1]
    assert (status, "no anabranch-update" in why) == ("rejected", True)
    assert device.releases is not None
    assert device.releases.installed is None


def test_without_room_on_the_disk_it_is_rejected(device: Device) -> None:
    """Its part, its wheels and its slot must fit."""
    device.do(e.Measured(Reading(disk_free_mb=10.0)))
    effects = device.ask(release())
    assert not gets(effects)
    assert told(effects)[-1][0] == "rejected"
    assert "10 MB are free" in told(effects)[-1][1]


def test_it_waits_for_a_link_that_is_not_metered(tmp_path: Path) -> None:
    """And says so at its deadline; the gateway then names it no more."""
    device = Device(tmp_path, budget=BudgetConfig(metered_object_mb=0.001))
    device.do(e.Measured(Reading(metered=True)))
    data = release()
    assert not gets(device.ask(data))
    assert not gets(device.wait(300))
    device.do(e.Measured(Reading(metered=False)))
    assert gets(device.wait(61))
    device.do(e.Measured(Reading(metered=True)))
    effects = device.wait(600)
    assert told(effects)[-1][0] == "failed"


def test_what_waits_says_for_what(tmp_path: Path) -> None:
    """At its deadline."""
    device = Device(tmp_path, budget=BudgetConfig(metered_object_mb=0.001))
    device.do(e.Measured(Reading(metered=True)))
    device.ask(release())
    assert "wait for a link that is not metered" in told(device.wait(601))[-1][1]


def test_one_at_a_time(device: Device) -> None:
    """A second command is rejected, whatever it names; the first goes on."""
    data = release(wheel=100_000)
    device.ask(data)
    effects = device.name(CID, "u2")
    command = DeviceCommand(arguments={"sha256": "0" * 64, "size": "5"}, deadline_s=60, counter=99)
    effects += device.hear(Kind.DEVICE_COMMAND, command, name=NAME, cid="u2")
    assert told(effects, "u2")[-1] == ("rejected", "another update is under way")
    assert told(device.serve(data, gets(device.asked)[0].chunk_size)) == [("executing", "installing release 7 (2)")]


def test_a_command_that_is_withdrawn_is_not_installed(device: Device) -> None:
    """The gateway names it no more: what has come of it stays a part."""
    data = release(wheel=100_000)
    chunk_size = gets(device.ask(data))[0].chunk_size
    device.name()
    device.serve(data, chunk_size)
    assert not device.spool.exists()


def test_a_deadline_does_not_end_what_root_has(device: Device) -> None:
    """Its word counts, however late."""
    data = release()
    device.serve(data, gets(device.ask(data))[0].chunk_size)
    assert not told(device.wait(1000))
    device.report("successful", 7)
    assert told(device.wait(2 * LOOK_S))[-1][0] == "successful"


@pytest.mark.parametrize("size", [0, MAX_RELEASE_BYTES + 1])
def test_a_size_out_of_bounds_is_rejected(device: Device, size: int) -> None:
    """As is a command without one."""
    command = DeviceCommand(arguments={"sha256": "0" * 64, "size": str(size)}, deadline_s=60, counter=1)
    device.name(CID)
    assert told(device.hear(Kind.DEVICE_COMMAND, command, name=NAME, cid=CID))[-1][0] == "rejected"
    command = DeviceCommand(arguments={"sha256": "0" * 64}, deadline_s=60, counter=2)
    device.name(CID, "u2")
    effects = device.hear(Kind.DEVICE_COMMAND, command, name=NAME, cid="u2")
    assert told(effects, "u2")[-1] == ("rejected", "update-agent has no size: say all of its arguments")


def test_earlier_software_reads_what_has_no_note() -> None:
    """An agent that was rolled back starts with the rows of the newer one."""
    plain = KeptCommand("c1", "pause", 3, {}, CommandProgress(status="successful"))
    assert '"note"' not in write_command(plain)
    noted = KeptCommand("c1", NAME, 3, {"size": "1"}, CommandProgress(status="executing"), "7 aa 2")
    assert read_command(write_command(noted)) == noted
