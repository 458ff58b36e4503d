"""`anabranch-first-boot`: cut off before or after any command it runs, the next run ends it, and no ticket is lost.

It makes another machine's file system (`ANABRANCH_ROOT`), with every program real but one: the Python of that machine,
which makes a virtual environment in no time. test_boots.py has the real one.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.flash.seed import KIT, SYSTEMD, agent_toml
from tests.deploy.images import TICKET

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the script gives files to the user anabranch: root")
SCRIPT = SYSTEMD / "anabranch-first-boot"
EXTERNAL = "awk cat chmod chown cmp cp dd dirname id mkdir mv rm sha256sum stat sync systemctl systemd-sysusers tr"
# Counts the commands of a run, and ends the run before (`-`) or after (`+`) the one that is asked for.
SHIM = """\
#!/bin/sh
read -r n < "$CUT_COUNT"
n=$((n + 1))
echo $n > "$CUT_COUNT"
if [ "$CUT_AT" = "-$n" ]; then
  kill -9 "$CUT_PID"
  exit 1
fi
{real} "$@"
code=$?
[ "$CUT_AT" != "+$n" ] || kill -9 "$CUT_PID"
exit $code
"""
PYTHON = """\
#!/bin/sh
case "$*" in
  -c*) echo 3.13 ;;
  *venv*)
    for last; do :; done
    rm -rf "$last" && mkdir -p "$last/bin" && cp "$0" "$last/bin/python" ;;
  *install*) cp "$AGENT" "$(dirname "$0")/edge-agent" ;;
esac
"""


class Device:
    """A file system that was flashed, and a way to run the script on it."""

    def __init__(self, folder: Path) -> None:
        self.root, self._count, self._shims = folder / "root", folder / "count", folder / "shims"
        self.boot = self.root / "boot/firmware"
        self.ticket, self.moved = self.boot / "anabranch-ticket.toml", self.root / "etc/anabranch/ticket.toml"
        wheels = self.boot / "anabranch/wheels"
        wheels.mkdir(parents=True)
        (self.root / "etc").mkdir()
        (self.root / "usr/lib").mkdir(parents=True)
        for name in KIT:
            shutil.copy(SYSTEMD / name, self.boot / "anabranch" / name)
        (self.boot / "anabranch/agent.toml").write_text(agent_toml("/srv/fan", None))
        (wheels / "pip-1-py3-none-any.whl").write_bytes(b"pip")
        (wheels / "python").write_text("3.13\n")
        (wheels / "arch").write_bytes(subprocess.run(["dpkg", "--print-architecture"], capture_output=True).stdout)
        sums = subprocess.run(["sha256sum", "pip-1-py3-none-any.whl"], cwd=wheels, capture_output=True, check=True)
        (wheels / "SHA256SUMS").write_bytes(sums.stdout)
        self.ticket.write_text(TICKET)
        self._shims.mkdir()
        for name in EXTERNAL.split():
            shim = self._shims / name
            shim.write_text(SHIM.format(real=shutil.which(name)))
            shim.chmod(0o755)
        self._python = folder / "python"
        self._python.write_text(PYTHON)
        self._python.chmod(0o755)
        self._agent = folder / "edge-agent"
        self._agent.write_text("#!/bin/sh\necho edge-agent 0\n")
        self._agent.chmod(0o755)

    def run(self, cut: str = "", *words: str) -> subprocess.CompletedProcess[str]:
        """A run that is cut at its n-th command, "-n" before it and "+n" after it."""
        self._count.write_text("0\n")
        environ = {
            "PATH": f"{self._shims}:{os.environ['PATH']}",
            "ANABRANCH_ROOT": str(self.root),
            "ANABRANCH_PYTHON": str(self._python),
            "AGENT": str(self._agent),
            "CUT_AT": cut,
            "CUT_COUNT": str(self._count),
        }
        line = f'export CUT_PID=$$; exec sh "{SCRIPT}" "$@"'
        command = ["sh", "-c", line, "first-boot", *words]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    @property
    def commands(self) -> int:
        """How many the last run had."""
        return int(self._count.read_text())

    def check_ticket(self) -> None:
        """Whole in one of the two places, whatever is in the other."""
        here = self.moved.read_text() if self.moved.exists() else ""
        there = self.ticket.read_text() if self.ticket.exists() else ""
        assert TICKET in (here, there)
        assert here in ("", TICKET), "half a ticket under the ticket's name"

    def check_done(self) -> None:
        """What a first boot is for."""
        owner = next(line for line in (self.root / "etc/passwd").read_text().splitlines() if "anabranch" in line)
        status = self.moved.stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o600, int(owner.split(":")[2]))
        assert self.moved.read_text() == TICKET
        assert not self.ticket.exists()
        assert (self.root / "etc/anabranch").stat().st_mode & 0o777 == 0o750
        assert (self.root / "var/lib/anabranch").stat().st_mode & 0o777 == 0o700
        wants = self.root / "etc/systemd/system/multi-user.target.wants/anabranch-agent.service"
        assert wants.is_symlink()
        assert (self.root / "opt/anabranch/venv/bin/edge-agent").exists()
        assert (self.root / "var/lib/anabranch-first-boot/done").read_text() == "done\n"
        left = [p for p in self.root.rglob(".*.new") if p.is_file()]
        assert not left, f"left behind: {left}"


@pytest.mark.parametrize("stride", [8, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_cut_anywhere_it_is_ended_by_the_next_run(tmp_path: Path, stride: int) -> None:
    """Before and after every eighth of its commands; the slow one takes each: some hundred devices."""
    whole = Device(tmp_path / "whole")
    result = whole.run()
    assert result.returncode == 0, result.stderr
    whole.check_done()
    assert whole.commands > 50
    for number in range(1, whole.commands + 1, stride):
        for side in "-+":
            folder = tmp_path / f"{side}{number}"
            device = Device(folder)
            assert device.run(f"{side}{number}").returncode == -9
            device.check_ticket()
            result = device.run()
            assert result.returncode == 0, f"{side}{number}: {result.stderr}"
            device.check_done()
            shutil.rmtree(folder)


def test_it_may_run_as_often_as_it_likes(tmp_path: Path) -> None:
    """Nothing is made again that is there."""
    device = Device(tmp_path)
    device.run()
    inode = (device.root / "opt/anabranch/venv/bin/edge-agent").stat().st_ino
    result = device.run()
    assert result.returncode == 0, result.stderr
    device.check_done()
    assert (device.root / "opt/anabranch/venv/bin/edge-agent").stat().st_ino == inode


def test_an_agent_that_was_taken_over_is_given_nobody_elses_folder(tmp_path: Path) -> None:
    """A link in its folder, where root gives a folder away, is not followed when root comes again, as it does with a
    newer kit."""
    device, stolen = Device(tmp_path), tmp_path / "root's"
    device.run()
    stolen.mkdir(mode=0o755)
    data = device.root / "var/lib/anabranch/data"
    data.rmdir()
    data.symlink_to(stolen)
    assert device.run().returncode == 0
    assert (stolen.stat().st_uid, stolen.stat().st_gid) == (0, 0)
    device.check_done()


def test_a_ticket_that_was_being_erased_does_not_replace_the_good_one(tmp_path: Path) -> None:
    """Zeros on the boot partition, the ticket in its place: the power went between the two."""
    device = Device(tmp_path)
    device.run()
    device.ticket.write_bytes(bytes(len(TICKET)))
    assert device.run().returncode == 0
    device.check_done()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: d.ticket.unlink(), "there is no ticket"),
        (lambda d: (d.boot / "anabranch/wheels/pip-1-py3-none-any.whl").write_bytes(b"pap"), "wheels are damaged"),
        (lambda d: (d.boot / "anabranch/wheels/python").write_text("3.99\n"), "wheels are for Python 3.99"),
        (
            lambda d: (d.boot / "anabranch/wheels/arch").write_text("riscv64\n"),
            "wheels are for riscv64, this system is",
        ),
        (lambda d: shutil.rmtree(d.boot / "anabranch/wheels"), "flash with --wheelhouse DIR"),
        (lambda d: shutil.rmtree(d.boot / "anabranch"), "no boot partition has a folder anabranch/"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path, damage: object, sentence: str) -> None:
    """On standard error, which is the journal, and on the card."""
    device = Device(tmp_path)
    damage(device)  # type: ignore[operator]
    result = device.run()
    assert result.returncode == 1
    assert sentence in result.stderr
    assert not (device.root / "var/lib/anabranch-first-boot/done").exists()
    if (device.boot / "anabranch").exists():
        assert "stopped at: " in (device.boot / "anabranch/first-boot.txt").read_text()


def test_by_hand_from_a_folder(tmp_path: Path) -> None:
    """`deploy wheelhouse` prints this command for a device that already runs."""
    device = Device(tmp_path)
    kit, ticket = tmp_path / "kit", tmp_path / "T.toml"
    shutil.move(device.boot / "anabranch", kit)
    shutil.move(device.ticket, ticket)
    result = device.run("", "--kit", str(kit), "--ticket", str(ticket))
    assert result.returncode == 0, result.stderr
    device.check_done()
    assert not ticket.exists()
    assert device.run("", "--kitt", "x").returncode == 1


def test_no_checker_finds_fault_with_the_script() -> None:
    """A POSIX shell reads all of it, also what no test runs."""
    subprocess.run(["sh", "-n", str(SCRIPT)], check=True)
