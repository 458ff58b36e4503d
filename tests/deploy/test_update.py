"""`anabranch-update`: cut off before or after any command, an agent is there, and the next boot ends what was begun.

Every program is real but three: systemd, the agent that it starts, and pip's work. Signatures, the check of the
release, and the exchange of a directory for a link are the real ones.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.flash.seed import SYSTEMD
from fl_protocol.agent_release import pack_release
from fl_protocol.messages import AgentRelease
from fl_protocol.signing import SigningKey
from fl_protocol.succession import hand_over
from tests.support.releases import FLEET, KEY, manifest_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the script is root's")
SCRIPT = SYSTEMD / "anabranch-update"
REPOSITORY = SCRIPT.parents[2]
EXTERNAL = "cat cp dirname flock grep id ln mkdir mv readlink rm sleep sync systemctl tail"
SHIM = """\
#!/bin/sh
read -r n < "$CUT_COUNT"
n=$((n + 1))
echo $n > "$CUT_COUNT"
[ "$CUT_AT" != "-$n" ] || kill -9 "-$CUT_PID"
{real} "$@"
code=$?
[ "$CUT_AT" != "+$n" ] || kill -9 "-$CUT_PID"
exit $code
"""
PYTHON = """\
case "$*" in
  *edge_agent.unpacking*) shift && PYTHONPATH="$REPOSITORY" "$REAL_PYTHON" "$@" ;;
  *heartbeat*) [ -e "$ANABRANCH_ROOT/run/anabranch/heartbeat.json" ] ;;
  *venv\\ --without-pip*)
    for last; do :; done
    mkdir -p "$last/bin" "$last/lib" && /bin/cp "$SLOT_PYTHON" "$last/bin/python" ;;
  *install*)
    [ "$PIP" != fails ] || { echo "no room"; exit 1; }
    printf '#!/bin/sh\\nexit 0\\n' > "${0%/*}/edge-agent" && /bin/chmod 755 "${0%/*}/edge-agent" ;;
esac
"""
# An agent has its broker unless its release is one that is broken.
SYSTEMCTL = """\
#!/bin/sh
beat="$ANABRANCH_ROOT/run/anabranch/heartbeat.json"
case "$1" in
  stop) /bin/rm -f "$beat" ;;
  is-active) [ -e "$beat" ] ;;
  start)
    number=0
    [ ! -e "$ANABRANCH_ROOT/opt/anabranch/venv/release" ] ||
      read -r number rest < "$ANABRANCH_ROOT/opt/anabranch/venv/release"
    "$ANABRANCH_ROOT/opt/anabranch/venv/bin/edge-agent" && [ "$number" != "$BROKEN" ] && echo "$number" > "$beat"
    exit 0 ;;
esac
"""


class Device:
    """A device as a first boot left it, which has been enrolled since."""

    def __init__(self, folder: Path) -> None:
        self.root, self._folder = folder / "root", folder
        self.opt, self.state = self.root / "opt/anabranch", self.root / "var/lib/anabranch-update"
        self.spool = self.root / "var/lib/anabranch/update/release.tar"
        self.beat = self.root / "run/anabranch/heartbeat.json"
        identity = self.root / "var/lib/anabranch/identity/identity.toml"
        for path in (self.opt / "venv/bin", self.opt / "venv/lib", self.spool.parent, self.beat.parent):
            path.mkdir(parents=True)
        identity.parent.mkdir()
        identity.write_text(f'[device]\nfleet = "{FLEET}"\n[gateway]\npublic_key = "{KEY.public}"\n')
        self._shims = folder / "shims"
        self._shims.mkdir()
        self._program(folder / "systemctl", SYSTEMCTL)
        for name in EXTERNAL.split():
            real = str(folder / name) if name == "systemctl" else shutil.which(name)
            self._program(self._shims / name, SHIM.format(real=real))
        # Counted too.
        self._program(folder / "slot-python", SHIM.format(real=f"inner() {{\n{PYTHON}}}\ninner"))
        shutil.copy(folder / "slot-python", self.opt / "venv/bin/python")
        self._program(self.opt / "venv/bin/edge-agent", "#!/bin/sh\nexit 0\n")
        self.beat.write_text("0\n")

    @staticmethod
    def _program(path: Path, text: str) -> Path:
        path.write_text(text)
        path.chmod(0o755)
        return path

    def send(self, number: int, key: SigningKey = KEY, **changes: object) -> str:
        """Spool a release; its digest."""
        files = {"anabranch-2-py3-none-any.whl": b"ours" * 1000, "pip-1-py3-none-any.whl": b"pip"}
        manifest: AgentRelease = manifest_of(files, number, **changes)
        packed = pack_release(manifest, files, key, FLEET)
        self.spool.write_bytes(packed)
        return hashlib.sha256(packed[512 : 512 + int(packed[124:135], 8)]).hexdigest()

    def run(self, cut: str = "", broken: int = -1, pip: str = "works") -> subprocess.CompletedProcess[str]:
        """A run that is cut at its n-th command, "-n" before it and "+n" after it; with all that it started."""
        count = self._folder / "count"
        count.write_text("0\n")
        environ = {
            "PATH": f"{self._shims}:{os.environ['PATH']}",
            "ANABRANCH_ROOT": str(self.root),
            "ANABRANCH_LOOKS": "4",
            "ANABRANCH_LOOK_S": "0",
            "REAL_PYTHON": sys.executable,
            "REPOSITORY": str(REPOSITORY),
            "SLOT_PYTHON": str(self._folder / "slot-python"),
            "BROKEN": str(broken),
            "PIP": pip,
            "CUT_AT": cut,
            "CUT_COUNT": str(count),
        }
        command = ["sh", "-c", f'export CUT_PID=$$; exec sh "{SCRIPT}"']
        result = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=60, check=False, start_new_session=True
        )
        self.commands = int(count.read_text() or 0)
        return result

    def check_agent(self) -> None:
        """Whatever happened: what systemd would start is there, and it is all of one release."""
        venv = self.opt / "venv"
        assert os.access(venv / "bin/edge-agent", os.X_OK)
        assert os.access(venv / "bin/python", os.X_OK)
        if venv.is_symlink() and not (venv / "release").exists():
            assert str(venv.readlink()) == "a", "a slot without the line that ends its making"

    @property
    def number(self) -> int:
        """Of the release that is installed."""
        path = self.opt / "venv/release"
        return int(path.read_text().split()[0]) if path.exists() else 0

    @property
    def report(self) -> list[str]:
        """State, number, version, why."""
        return (self.state / "report").read_text().splitlines()

    def check_settled(self, number: int, state: str) -> None:
        """An end: one agent, nothing left to do."""
        self.check_agent()
        assert (self.number, self.report[0]) == (number, state)
        assert self.beat.read_text() == f"{number}\n", "another agent runs than the one that is installed"
        assert not self.spool.exists()
        assert not (self.state / "trial").exists()
        assert not (self.opt / ".incoming").exists()


def test_a_release_goes_into_the_idle_slot(tmp_path: Path) -> None:
    """The directory of the first boot becomes slot a; then b, and a again."""
    device = Device(tmp_path)
    for number, slot in ((7, "b"), (8, "a"), (9, "b")):
        device.send(number)
        result = device.run()
        assert result.returncode == 0, result.stderr
        device.check_settled(number, "successful")
        assert str((device.opt / "venv").readlink()) == slot


def test_one_that_does_not_work_is_rolled_back_for_good(tmp_path: Path) -> None:
    """The one before runs again; the same release is not tried twice, a later one is."""
    device = Device(tmp_path)
    device.send(7)
    device.run()
    digest = device.send(8)
    assert device.run(broken=8).returncode == 0
    device.check_settled(7, "failed")
    assert "rolled back: the agent was not ready with its broker" in device.report[3]
    assert digest in (device.state / "bad").read_text().split()
    device.send(8)
    device.run()
    device.check_settled(7, "failed")
    assert "was tried here, and did not work" in device.report[3]
    device.send(9)
    device.run()
    device.check_settled(9, "successful")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"number": 6}, "E_DOWNGRADE"),
        ({"number": 8, "key": SigningKey(bytes(32))}, "E_SIG"),
        ({"number": 8, "python": "3.99"}, "E_VERSION"),
        ({"number": 8, "arch": "riscv64"}, "E_VERSION"),
    ],
)
def test_what_is_not_for_this_device_is_refused(tmp_path: Path, change: dict, sentence: str) -> None:
    """The agent that runs is not even stopped."""
    device = Device(tmp_path)
    device.send(7)
    device.run()
    device.send(**change)
    assert device.run().returncode == 0
    device.check_settled(7, "failed")
    assert sentence in device.report[3]


def test_a_kit_does_not_open_the_way_for_older_releases(tmp_path: Path) -> None:
    """It has no number, and an agent that was taken over may have kept each release that there ever was."""
    device = Device(tmp_path)
    device.send(7)
    device.run()
    (device.opt / "venv/release").unlink()  # as `anabranch-first-boot` leaves it
    device.send(6)
    device.run()
    assert "E_DOWNGRADE" in device.report[3]
    device.send(7)
    device.run()
    device.check_settled(7, "successful")


@pytest.mark.parametrize("at", [3, 200, 700, 2000, 5000, -1])
def test_one_flipped_bit_is_refused(tmp_path: Path, at: int) -> None:
    """In a header, the manifest, the files or the end."""
    device = Device(tmp_path)
    device.send(7)
    damaged = bytearray(device.spool.read_bytes())
    damaged[at] ^= 1
    device.spool.write_bytes(damaged)
    assert device.run().returncode == 0
    device.check_settled(0, "failed")


def test_an_agent_that_was_taken_over_cannot_bring_its_own_key(tmp_path: Path) -> None:
    """Root believes the key that it saw first."""
    device, other = Device(tmp_path), SigningKey(bytes(32))
    device.run()
    identity = device.root / "var/lib/anabranch/identity/identity.toml"
    identity.write_text(identity.read_text().replace(KEY.public, other.public))
    device.send(7, key=other)
    device.run()
    device.check_settled(0, "failed")
    assert "E_SIG" in device.report[3]


def test_roots_key_follows_a_rotation(tmp_path: Path) -> None:
    """A release brings the chain from the key that root saw to its own; the key before is believed no more."""
    device, following = Device(tmp_path), SigningKey(bytes(32))
    device.send(7, key=following, keys=hand_over(None, SigningKey(b"t" * 32), following, FLEET))
    device.run()
    device.check_settled(0, "failed")
    device.send(7, key=following, keys=hand_over(None, KEY, following, FLEET))
    device.run()
    device.check_settled(7, "successful")
    assert (device.state / "fleet").read_text() == f"{FLEET} {following.public}\n"
    device.send(8, key=KEY)
    device.run()
    device.check_settled(7, "failed")
    assert "E_SIG" in device.report[3]


def test_a_link_in_the_spool_is_not_followed(tmp_path: Path) -> None:
    """The agent's account may make one to any file."""
    device = Device(tmp_path)
    device.send(7)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(device.spool, elsewhere)
    device.spool.symlink_to(elsewhere)
    device.run()
    device.check_settled(0, "failed")
    assert elsewhere.exists()


@pytest.mark.parametrize("make", [lambda p: (p / "x").mkdir(parents=True), os.mkfifo])
def test_what_is_no_file_in_the_spool_stands_in_nobodys_way(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """It is refused and taken away, and the next release is installed."""
    device = Device(tmp_path)
    make(device.spool)
    assert device.run().returncode == 0
    device.check_settled(0, "failed")
    device.send(7)
    device.run()
    device.check_settled(7, "successful")


def test_what_pip_cannot_install_is_not_tried(tmp_path: Path) -> None:
    """It may be sent again: it is not bad."""
    device = Device(tmp_path)
    device.send(7)
    device.run(pip="fails")
    device.check_settled(0, "failed")
    assert device.report[3] == "it cannot be installed: no room"
    device.send(7)
    device.run()
    device.check_settled(7, "successful")


def test_a_release_that_takes_the_power_with_it_is_rolled_back(tmp_path: Path) -> None:
    """Three boots that end in its trial are enough."""
    device = Device(tmp_path)
    digest = device.send(7)
    device.run()
    device.check_settled(7, "successful")
    (device.state / "trial").write_text(f"a b 2 7 {digest} 2\n")
    assert device.run("-12").returncode == -9
    assert (device.state / "trial").read_text().split()[2] == "3"
    device.check_agent()
    device.run()
    device.check_settled(0, "failed")
    assert "at 3 boots" in device.report[3]


@pytest.mark.parametrize(("broken", "end"), [(-1, (8, "successful")), (8, (0, "failed"))])
@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_cut_anywhere(tmp_path: Path, stride: int, broken: int, end: tuple[int, str]) -> None:
    """The first update, of a release that works and of one that does not."""
    whole = Device(tmp_path / "whole")
    whole.send(8)
    whole.run(broken=broken)
    whole.check_settled(*end)
    assert whole.commands > 40
    for n in range(1, whole.commands + 1, stride):
        for side in "-+":
            folder = tmp_path / f"{side}{n}"
            device = Device(folder)
            device.send(8)
            assert device.run(f"{side}{n}", broken).returncode == -9
            device.check_agent()
            result = device.run(broken=broken)
            assert result.returncode == 0, f"{side}{n}: {result.stderr}"
            device.check_settled(*end)
            shutil.rmtree(folder)


def test_a_posix_shell_reads_all_of_it() -> None:
    """Also what no test runs."""
    subprocess.run(["sh", "-n", str(SCRIPT)], check=True)
