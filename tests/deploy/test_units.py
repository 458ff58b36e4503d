"""The units: systemd itself reads them, and says how exposed the agent is."""

import re
import subprocess
from pathlib import Path

import pytest

from deploy.flash.seed import SYSTEMD

AGENT = SYSTEMD / "anabranch-agent.service"


def test_the_agent_is_exposed_to_little() -> None:
    """0 is sealed, 10 is a plain root service; ours must be 2.5 or less."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(AGENT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    level = re.search(r"exposure level for anabranch-agent\.service: ([0-9.]+)", result.stdout)
    assert level is not None
    assert float(level[1]) <= 2.5


@pytest.mark.parametrize("name", ["anabranch-agent.service", "anabranch-first-boot.service"])
def test_systemd_reads_every_line(tmp_path: Path, name: str) -> None:
    """Only the program is another one: what the unit starts is not on this machine."""
    text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", (SYSTEMD / name).read_text())
    (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in result.stderr.splitlines() if name in line or "anabranch" in line]
    assert (result.returncode, ours) == (0, []), result.stderr


def test_the_unit_starts_what_the_first_boot_installs() -> None:
    """One virtual environment, one configuration, one user: three files name them."""
    unit = AGENT.read_text()
    script = (SYSTEMD / "anabranch-first-boot").read_text()
    assert "ExecStart=/opt/anabranch/venv/bin/edge-agent run --config /etc/anabranch/agent.toml" in unit
    assert 'OPT="$ROOT/opt/anabranch"' in script
    assert 'ETC="$ROOT/etc/anabranch"' in script
    assert "User=anabranch\n" in unit
    assert (SYSTEMD / "anabranch.conf").read_text().splitlines()[-1].startswith("u anabranch ")
