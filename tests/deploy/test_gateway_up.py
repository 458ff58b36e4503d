"""`python -m deploy gateway up`: what it writes, that it writes it once, and what it refuses."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tomlkit
import yaml

from broker_aggregator.config import load_config
from broker_aggregator.pki import SERVICES
from deploy.gateway.services import UNITS
from fl_protocol.certificates import read_certificate
from tests.deploy.rig import Gateway, deploy, running
from tests.support.waiting import wait_until


@pytest.fixture
def gateway(tmp_path) -> Gateway:
    return Gateway(tmp_path)


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file's inode, mode and content."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mode, p.read_bytes()) for p in found}


def changed(outcome: dict) -> list[str]:
    return sorted(Path(change["path"]).name for change in outcome["changes"])


def test_run_again_it_changes_nothing(gateway, tmp_path):
    """And says so."""
    first = gateway.up()
    assert first["changes"]
    assert not first["started"]
    assert first["to_run"]
    before = everything(tmp_path)
    assert gateway.up()["changes"] == []
    assert everything(tmp_path) == before
    assert "nothing to change" in deploy("gateway", "up", *gateway.options).stdout


def test_another_name_renews_the_servers_certificate_only(gateway, tmp_path):
    """Devices that are enrolled trust the same authority, and the key stays."""
    gateway.up()
    before = everything(tmp_path)
    assert (
        changed(gateway.up("--name", "10.0.0.5")) == ["gateway.toml", "server.pem"]
        or changed(gateway.up("--name", "10.0.0.5")) == []
    )
    after = everything(tmp_path)
    assert [Path(name).name for name in before if before[name] != after[name]] == ["server.pem"]
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", gateway.pki / "server.pem"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "DNS:gw.local" in done.stdout
    assert "IP Address:10.0.0.5" in done.stdout


def test_a_dry_run_writes_nothing(gateway, tmp_path):
    """It names what would be written, on an empty folder and beside a gateway that is there."""
    outcome = gateway.up("--dry-run")
    assert {"ca.pem", "broker.conf", "gateway.toml"} <= set(changed(outcome))
    assert everything(tmp_path) == {}
    gateway.up()
    before = everything(tmp_path)
    assert changed(gateway.up("--dry-run", "--name", "10.0.0.5")) == ["server.pem"]
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--fleet", "../plant"), "--fleet '../plant' is no fleet's name"),
        (("--name", "gw local"), "--name 'gw local' is neither a host name nor an address"),
        (("--name", "gw.local\nuser root"), "is neither a host name"),
        (("--port", "0"), "--port 0 is no port"),
        (("--port", "8884", "--enroll-port", "8884"), "two are the same"),
        (("--services-address", "here"), "--services-address 'here' is no address"),
        (("--broker-user", "nobody-of-that-name", "--gateway-user", "root"), "no account nobody-of-that-name"),
    ],
)
def test_what_can_never_work_is_refused_before_anything_is_written(gateway, tmp_path, options, words):
    """With the option, its value, and the mend."""
    done = deploy("gateway", "up", *gateway.options, *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert "hint:" in done.stderr
    assert everything(tmp_path) == {}


def test_another_fleet_is_refused(gateway, tmp_path):
    """Its authority would be lost on the devices that are out there."""
    gateway.up()
    before = everything(tmp_path)
    done = deploy("gateway", "up", *gateway.options, "--fleet", "other")
    assert done.returncode == 2
    assert "is the gateway of the fleet plant, not other" in done.stderr
    assert everything(tmp_path) == before


def test_the_operators_own_settings_stay(gateway):
    """Comments, too; ours are put right again."""
    gateway.up()
    file = gateway.etc / "gateway.toml"
    document = tomlkit.parse(file.read_text())
    document["gateway"]["keep_releases"] = 50
    document["gateway"].add(tomlkit.comment("because the disk is small"))
    document["broker"]["port"] = 1
    file.write_text(tomlkit.dumps(document))
    assert changed(gateway.up()) == ["gateway.toml"]
    assert "# because the disk is small" in file.read_text()
    settings = load_config(file, {})
    assert settings.gateway.keep_releases == 50
    assert settings.broker.address == ("127.0.0.1", gateway.services_port)


def test_only_their_owners_read_the_keys(gateway):
    """As whoever runs it, in a folder."""
    gateway.up()
    keys = sorted(gateway.pki.rglob("*.key"))
    assert [key.stem for key in keys] == sorted(
        ["ca", "server", *SERVICES, "enrollment"], key=lambda n: (n not in ("ca", "server"), n)
    )
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


REVOKE = """\
import datetime, grp, os, pathlib, pwd, sys, time
from broker_aggregator.pki import Pki
folder, account = sys.argv[1:]
Pki(pathlib.Path(folder)).authority.revocation_list([], 2, datetime.datetime.now(datetime.UTC))  # imports
os.setgroups([])
os.setgid(grp.getgrnam(account).gr_gid)
os.setuid(pwd.getpwnam(account).pw_uid)
os.umask(0o027)
Pki(pathlib.Path(folder)).revoke([], time.time_ns() // 10**6)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to other accounts takes root")
def test_each_account_reads_what_it_needs_and_no_more():
    """The broker's account its two keys, the gateway's the authority's and its own; nobody else any."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-"))
    try:
        folder.chmod(0o755)  # other accounts have to get there, which pytest's folders do not let them
        gateway = Gateway(folder, "--broker-user", "mosquitto", "--gateway-user", "games")
        gateway.up()
        assert gateway.up()["changes"] == []

        def readable(account: str) -> set[str]:
            files = [*gateway.pki.rglob("*.key"), gateway.pki / "crl.pem", gateway.etc / "gateway.toml"]
            return {
                f.stem
                for f in files
                if subprocess.run(["runuser", "-u", account, "--", "test", "-r", f]).returncode == 0
            }

        assert readable("mosquitto") == {"server", "enrollment", "crl"}
        assert readable("games") == {"ca", "server", "aggregator", "enrollment", "crl", "gateway"}
        assert readable("nobody") == set()
        # The gateway writes the list of revoked certificates, with its unit's umask; the broker still reads it.
        done = subprocess.run([sys.executable, "-c", REVOKE, gateway.pki, "games"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (gateway.pki / "crl.pem").owner() == "games"
        assert "crl" in readable("mosquitto")
        assert readable("nobody") == set()
        # And mosquitto runs as that account, with what it may read.
        gateway.start("broker")
        gateway.start("enrollment")
        gateway.stop()
    finally:
        shutil.rmtree(folder)


def test_the_units_are_sound_and_hardened(gateway, tmp_path):
    """As systemd's own tools judge them."""
    gateway.up()
    units = [tmp_path / "etc/systemd/system" / name for name in UNITS]
    verified = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    lines = [line for line in verified.stderr.splitlines() if "anabranch" in line and "is not executable" not in line]
    assert lines == []
    for unit in units:
        if unit.suffix == ".service":
            judged = subprocess.run(
                ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit],
                capture_output=True,
                text=True,
            )
            assert judged.returncode == 0, judged.stdout[-300:]


def test_status_says_what_answers(tmp_path):
    """And ends with 1 where something does not."""
    with running(tmp_path, "broker", "enrollment") as gateway:
        good = deploy("gateway", "status", "--root", tmp_path, "--json")
        assert good.returncode == 0, good.stdout
        assert all(finding["good"] for finding in json.loads(good.stdout)["findings"])
        gateway.kill("enrollment")
        (gateway.pki / "ca.key").chmod(0o644)
        bad = deploy("gateway", "status", "--root", tmp_path, "--json")
        wrong = [f["what"] for f in json.loads(bad.stdout)["findings"] if not f["good"]]
        assert bad.returncode == 1
        assert wrong == [f"enrolment, port {gateway.enroll_port}", "ca.key"]
        assert "kill what you started by hand" in deploy("gateway", "down", "--root", tmp_path).stdout


def test_status_without_a_gateway(tmp_path):
    """The mend is named."""
    done = deploy("gateway", "status", "--root", tmp_path)
    assert done.returncode == 2
    assert "gateway up` makes one" in done.stderr


def test_certificates_that_are_due_are_renewed(gateway):
    """By the timer's command; what is not due stays as it is."""
    gateway.up()
    assert json.loads(deploy("gateway", "renew", "--root", gateway.root, "--json").stdout)["made"] == []
    serial = read_certificate((gateway.pki / "ca.pem").read_bytes(), "ca.pem").serial_number
    (gateway.pki / "services/monitor.pem").unlink()
    made = json.loads(deploy("gateway", "renew", "--root", gateway.root, "--json").stdout)["made"]
    assert made == ["services/monitor.pem"]
    assert read_certificate((gateway.pki / "ca.pem").read_bytes(), "ca.pem").serial_number == serial


def test_a_compose_project_has_the_same_parts(gateway):
    """Only the two ports for devices are published; keys are mounted, not copied."""
    gateway.up("--how", "compose")
    project = yaml.safe_load((gateway.etc / "compose.yaml").read_text())
    assert set(project["services"]) == {"broker", "enrollment", "gateway"}
    ports = [port for service in project["services"].values() for port in service.get("ports", [])]
    assert ports == [f"{gateway.port}:{gateway.port}", f"{gateway.enroll_port}:{gateway.enroll_port}"]
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in project["services"].values())
    assert f"listener {gateway.services_port} 0.0.0.0" in (gateway.etc / "mosquitto/broker.conf").read_text()
    assert 'host = "broker"' in (gateway.etc / "gateway.toml").read_text()


def test_in_a_container_the_broker_reads_revocations_again(tmp_path):
    """`broker.sh` runs mosquitto, sends SIGHUP when crl.pem changes, and ends it with itself."""
    gateway = Gateway(tmp_path)
    gateway.up("--how", "compose")
    gateway.up()  # the configuration with this machine's paths
    command = ["/bin/sh", gateway.etc / "broker.sh", gateway.etc / "mosquitto/broker.conf", "--watch"]
    with (tmp_path / "broker.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    gateway.processes["broker"] = process
    try:
        wait_until(lambda: "running" in gateway.log("broker"), 20, "mosquitto runs")
        serial = gateway.issue("thief")
        with gateway.device("thief"):
            pass
        gateway.revoke(serial)
        wait_until(lambda: "Reloading config" in gateway.log("broker"), 10, "mosquitto reads its files again")
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        del gateway.processes["broker"]
        assert "terminating" in gateway.log("broker")
    finally:
        gateway.stop()
