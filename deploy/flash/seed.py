"""What goes onto the boot partition: cloud-init's files, the ticket, the agent's configuration, and the kit."""

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from string import Template

from fl_protocol.errors import ConfigError
from fl_protocol.ticket import FILE_NAME, load_ticket

SYSTEMD = Path(__file__).resolve().parent.parent / "systemd"
UPDATE = ("anabranch-update", "anabranch-update.service", "anabranch-update.path")
KIT = ("anabranch-first-boot", "anabranch-agent.service", "anabranch.conf", *UPDATE)  # beside wheels/ and agent.toml
TICKET_PATH = "/etc/anabranch/ticket.toml"
STATE_DIR = "/var/lib/anabranch"
IMAGE_MARK = "anabranch-image.json"  # on the boot partition of an image that `deploy image` made
_SSH_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]+( .*)?")
_END = "END_OF_ANABRANCH_FILE"


@dataclass(frozen=True)
class Wifi:
    """A wireless network; `psk` is what WPA2 makes of the passphrase, which itself is not written anywhere."""

    ssid: str
    psk: str
    country: str

    @classmethod
    def of(cls, ssid: str, passphrase: str, country: str) -> "Wifi":
        """Raises `ConfigError` for what no network can have."""
        if not 1 <= len(ssid.encode()) <= 32 or not ssid.isprintable():
            raise ConfigError(f"--wifi: {ssid!r:.50} is no network's name", "give 1 to 32 bytes of text")
        if not 8 <= len(passphrase) <= 63 or not (passphrase.isascii() and passphrase.isprintable()):
            raise ConfigError("the Wi-Fi passphrase is not WPA2's", "it has 8 to 63 printable ASCII characters")
        if not re.fullmatch("[A-Z]{2}", country):
            raise ConfigError(f"--wifi-country: {country!r} is no country", "give its two letters, as in DE")
        key = hashlib.pbkdf2_hmac("sha1", passphrase.encode(), ssid.encode(), 4096, 32)
        return cls(ssid, key.hex(), country)


@dataclass(frozen=True)
class Seed:
    """One device's choices. `ticket` and `agent_toml` are texts that were read and checked."""

    ticket: str
    agent_toml: str
    hostname: str
    ssh_key: str = ""
    user: str = "anabranch-admin"
    wifi: Wifi | None = None

    def files(self, wheels: dict[str, bytes]) -> dict[str, bytes]:
        """Path on the partition -> content, in the order to write: a card that lacks the last one does nothing."""
        kit = {f"anabranch/wheels/{name}": data for name, data in wheels.items()}
        kit |= {f"anabranch/{name}": (SYSTEMD / name).read_bytes() for name in KIT}
        kit["anabranch/agent.toml"] = self.agent_toml.encode()
        kit[FILE_NAME] = self.ticket.encode()
        if self.wifi is not None:
            kit["network-config"] = self._network_config(self.wifi).encode()
        user_data = self._user_data()
        # cloud-init takes a card whose instance-id is new for a new device; the same card again is none.
        instance = _digest({**kit, "user-data": user_data.encode()})
        meta_data = f"instance-id: anabranch-{instance}\nlocal-hostname: {self.hostname}\n"
        return {**kit, "meta-data": meta_data.encode(), "user-data": user_data.encode()}

    def _user_data(self) -> str:
        people: object = []
        if self.ssh_key:
            person = {
                "name": self.user,
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "ssh_authorized_keys": [self.ssh_key],
            }
            people = [person]
        return Template(_USER_DATA).substitute(
            hostname=_yaml(self.hostname),
            users=_yaml(people),
            script=_indented((SYSTEMD / "anabranch-first-boot").read_text("utf-8")),
            unit=_indented((SYSTEMD / "anabranch-first-boot.service").read_text("utf-8")),
            end=_END,
            ssh="systemctl enable --now --no-block ssh.service" if self.ssh_key else ":",
        )

    @staticmethod
    def _network_config(wifi: Wifi) -> str:
        access = {wifi.ssid: {"password": wifi.psk}}
        wlan = {"dhcp4": True, "optional": True, "regulatory-domain": wifi.country, "access-points": access}
        wires = {"match": {"name": "e*"}, "dhcp4": True, "optional": True}
        network = {"version": 2, "ethernets": {"wired": wires}, "wifis": {"wlan0": wlan}}
        return f"# Written by `python -m deploy flash`. JSON is YAML.\n{_yaml({'network': network}, 1)}\n"


def read_ticket(path: Path) -> str:
    """A ticket's text, once it is known to be one. Raises `ConfigError`."""
    load_ticket(path)
    return path.read_text("utf-8")


def read_ssh_key(path: Path) -> str:
    """A public key's line. Raises `ConfigError`, for a private one above all."""
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ssh-key: cannot read {path}: {error}", "name a .pub file") from None
    if "PRIVATE KEY" in text:
        raise ConfigError(f"--ssh-key: {path} is a private key", f"it stays here; name {path.name}.pub")
    if not _SSH_KEY.fullmatch(text):
        raise ConfigError(f"--ssh-key: {path} is no public key of OpenSSH", "name a .pub file with one key")
    return text


def agent_toml(data: str, own: Path | None) -> str:
    """The agent's configuration: made here, or the operator's own. Raises `ConfigError`."""
    if own is None:
        if not data.startswith("/") or not data.isprintable():
            raise ConfigError(f"--data: {data!r:.60} is no path from the root", f"for example {STATE_DIR}/data")
        path = json.dumps(data, ensure_ascii=False)  # TOML reads JSON's strings, but no surrogates
        return (
            "# Written by `python -m deploy flash`. Identity, gateway and broker come from the enrolment.\n"
            f'[enroll]\nticket = "{TICKET_PATH}"\n\n[device]\nstate_dir = "{STATE_DIR}"\n\n[data]\npath = {path}\n'
        )
    try:
        text = own.read_text("utf-8")
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--agent-config: cannot read {own}: {error}", "name the agent's TOML file") from None
    ticket = table.get("enroll", {}).get("ticket")
    if ticket != TICKET_PATH:
        raise ConfigError(f"--agent-config: [enroll] ticket is {ticket!r}", f'write `ticket = "{TICKET_PATH}"`')
    return text


def hostname_of(ticket: str) -> str:
    """A name that tells two cards of one stack apart, from the ticket's public part."""
    claim = re.sub("[^a-z0-9]", "", str(tomllib.loads(ticket)["claim"]).lower())
    return f"anabranch-{claim[:12] or _digest({'ticket': ticket.encode()})[:12]}"


def _digest(files: dict[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name, data in sorted(files.items()):
        whole.update(f"{name}\0{len(data)}\0".encode() + data)
    return whole.hexdigest()[:16]


def _yaml(value: object, indent: int | None = None) -> str:
    """JSON is YAML, whatever a person typed, but for the surrogates that escapes would have."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _indented(text: str) -> str:
    if _END in text:
        raise AssertionError("the heredoc's end is inside it")
    return "\n".join(f"    {line}".rstrip(" ") for line in text.splitlines())


# Everything else that cloud-init does is done once, marked as done, and not synced: after a power cut host's keys were
# empty files, for ever. `bootcmd` runs at every boot, and has all of it done again until `anabranch-first-boot`, which
# waits for it, has synced the disk and written `done`. `$$` is a dollar sign here.
_USER_DATA = """\
#cloud-config
# Written by `python -m deploy flash`.
hostname: $hostname
manage_etc_hosts: true
users: $users
ssh_pwauth: false
bootcmd:
  - |
    put() { cat > "$$1.new" && chmod "$$2" "$$1.new" && sync "$$1.new" && mv "$$1.new" "$$1" && sync "$${1%/*}"; }
    if [ "$$(cat /var/lib/anabranch-first-boot/seed 2> /dev/null)" != "$$INSTANCE_ID" ]; then
    mkdir -p /usr/local/sbin /var/lib/anabranch-first-boot
    rm -f /var/lib/anabranch-first-boot/done
    put /usr/local/sbin/anabranch-first-boot 755 <<'$end'
$script
    $end
    put /etc/systemd/system/anabranch-first-boot.service 644 <<'$end'
$unit
    $end
    systemctl daemon-reload
    systemctl enable anabranch-first-boot.service
    $ssh
    echo "$$INSTANCE_ID" | put /var/lib/anabranch-first-boot/seed 644
    fi
    [ -e /var/lib/anabranch-first-boot/done ] || rm -f "/var/lib/cloud/instances/$$INSTANCE_ID/sem/config_"*
    systemctl start --no-block anabranch-first-boot.service
"""
