"""A device as it is in the field: an agent under a system manager, and root's side of its updates, run for real.

Of systemd there is a stand-in. Without a kit, of venv and pip too: what "pip installs" is then a wheel that holds the
script `edge-agent`.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from deploy.flash.seed import SYSTEMD
from tests.support.gatehouse import Gatehouse
from tests.support.waiting import wait_until

REPOSITORY = SYSTEMD.parents[1]
LOOKS, LOOK_S = 40, "1"  # how long a release has to show that it works
WORKS = b"""\
#!/bin/sh
[ "$1" != --version ] || exit 0
exec "$REAL_PYTHON" -m edge_agent "$@"
"""
BROKEN = b"""\
#!/bin/sh
[ "$1" != --version ] || exit 0
echo "this agent does not start"
exit 1
"""
PYTHON = """\
#!/bin/sh
case "$*" in
  *edge_agent.unpacking*|*fl_protocol.heartbeat*) shift && exec "$REAL_PYTHON" "$@" ;;
  *"venv --without-pip"*)
    for last; do :; done
    mkdir -p "$last/bin" "$last/lib" && cp "$0" "$last/bin/python" ;;
  *install*)
    for wheel; do
      case "$wheel" in
        */anabranch-*.whl) cp "$wheel" "${0%/*}/edge-agent" && chmod 755 "${0%/*}/edge-agent" ;;
      esac
    done ;;
esac
"""
SYSTEMCTL = """\
#!/bin/sh
pid="$ANABRANCH_ROOT/agent.pid"
alive() {
  [ -e "$pid" ] && read -r number < "$pid" && [ -e "/proc/$number/status" ] &&
    ! grep -q "^State:[[:space:]]*[ZX]" "/proc/$number/status"
}
case "$1" in
  stop)
    ! alive || kill "$number"
    while alive; do sleep 0.1; done
    rm -f "$pid" "$RUNTIME_DIRECTORY/heartbeat.json" ;;
  is-active) alive ;;
  start)
    ! alive || exit 0
    setsid "$ANABRANCH_ROOT/opt/anabranch/venv/bin/edge-agent" run --config "$AGENT_CONFIG" \
      >> "$ANABRANCH_ROOT/agent.log" 2>&1 < /dev/null 9>&- &
    echo $! > "$pid" ;;
esac
"""


class Fielded:
    """A device with a ticket; `boot` starts it, and root's side begins to watch. `kit` is a real wheelhouse."""

    def __init__(self, house: Gatehouse, name: str, kit: Path | None = None) -> None:
        self.name, self._house = name, house
        self.root = house.folder / name
        self.state, self.opt = self.root / "var/lib/anabranch", self.root / "opt/anabranch"
        self.spool, self.report = self.state / "update/release.tar", self.root / "var/lib/anabranch-update/report"
        run, self._script = self.root / "run/anabranch", self.root / "usr/local/sbin/anabranch-update"
        for path in (self.state, run, self.opt / "venv/bin", self.opt / "venv/lib", self._script.parent):
            path.mkdir(parents=True)
        (self.root / "data").mkdir()
        shutil.copy(SYSTEMD / "anabranch-update", self._script)
        if kit is None:
            _program(self.opt / "venv/bin/python", PYTHON)
            _program(self.opt / "venv/bin/edge-agent", WORKS.decode())
        else:
            install(kit, self.opt / "venv")
        _program(self.root / "shims/systemctl", SYSTEMCTL)
        (self.root / "ticket.toml").write_bytes(house.ticket(name).read_bytes())
        config = self.root / "agent.toml"
        config.write_text(f"""
[enroll]
ticket = "ticket.toml"
directory = "{self.state}/identity"
[device]
state_dir = "{self.state}"
[data]
path = "data"
[broker]
reconnect_max_s = 1
""")
        self._environ = {
            **os.environ,
            "PATH": f"{self.root / 'shims'}:{os.environ['PATH']}",
            "ANABRANCH_ROOT": str(self.root),
            "ANABRANCH_LOOKS": str(LOOKS),
            "ANABRANCH_LOOK_S": LOOK_S,
            "RUNTIME_DIRECTORY": str(run),
            "REAL_PYTHON": sys.executable,
            "AGENT_CONFIG": str(config),
        }
        self._environ.pop("PYTHONPATH", None)
        if kit is None:
            self._environ["PYTHONPATH"] = str(REPOSITORY)
        self._end = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def boot(self) -> None:
        """The agent starts, and enrols."""
        self.systemctl("start")
        if not self._watching.is_alive():
            self._watching.start()

    def systemctl(self, word: str) -> int:
        """`start`, `stop` or `is-active`."""
        return subprocess.run(["systemctl", word, "anabranch-agent"], env=self._environ, timeout=60).returncode

    @property
    def log(self) -> str:
        """All that its agents said."""
        path = self.root / "agent.log"
        return path.read_text() if path.exists() else ""

    @property
    def number(self) -> int:
        """Of the release that is installed; 0: the kit."""
        path = self.opt / "venv/release"
        return int(path.read_text().split()[0]) if path.exists() else 0

    def close(self) -> None:
        """Turn it off."""
        self._end.set()
        if self._watching.is_alive():
            self._watching.join(LOOKS + 60)
        self.systemctl("stop")

    def _watch(self) -> None:
        """The path unit: a new identity, or a spooled release."""
        pin = self.root / "var/lib/anabranch-update/fleet"
        while not self._end.wait(0.2):
            enrolled = (self.state / "identity/identity.toml").exists()
            if self.spool.exists() or (enrolled and not pin.exists()):
                with (self.root / "update.log").open("ab") as log, contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run([self._script], env=self._environ, stdout=log, stderr=log, timeout=300)

    def wait_enrolled(self, seconds: float) -> None:
        """Root has seen the fleet's key."""
        pin = self.root / "var/lib/anabranch-update/fleet"
        wait_until(pin.exists, seconds, f"{self.name} is enrolled")


def install(kit: Path, venv: Path) -> None:
    """What a first boot does."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=300)
    wheels = ("--no-index", "--find-links", kit / "wheels", "anabranch[agent]")
    subprocess.run([venv / "bin/python", "-m", "pip", "install", "--quiet", *wheels], check=True, timeout=600)


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
