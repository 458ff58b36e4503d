"""`deploy flash` on real images: only its files, all of them, read back; what cannot be is refused before a byte."""

import hashlib
import json
import lzma
import os
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deploy.__main__ import app
from deploy.flash.fat import FatFiles
from deploy.flash.imaging import CHUNK, verify_image, write_image
from deploy.flash.partitions import boot_partition
from deploy.flash.seed import Seed, Wifi, agent_toml, hostname_of, read_ssh_key, read_ticket
from deploy.flash.tools import run_tool
from deploy.flash.wheelhouse import read_wheelhouse
from deploy.flash.writing import measure, verify_files, write_files
from fl_protocol.errors import ConfigError
from tests.deploy.images import TICKET, at, check_fat, make_image

SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJkP1aZ0mYcO9y8wVhVdGqkzSmT0oXnKq2m8v1b2c3d4 me@desk"
SECRET = tomllib.loads(TICKET)["secret"]


@pytest.fixture
def ticket(tmp_path: Path) -> Path:
    path = tmp_path / "t.toml"
    path.write_text(TICKET)
    return path


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A wheelhouse's form with other contents: flash copies bytes, it does not ask what is in them."""
    wheels = tmp_path / "kit/wheels"
    wheels.mkdir(parents=True)
    name = "onnxruntime-1.32.0-cp313-cp313-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl"
    sums = ""
    for number, file in enumerate((name, "pip-26.3-py3-none-any.whl")):
        data = bytes([number]) * (3_000_001 + number)
        (wheels / file).write_bytes(data)
        sums += f"{hashlib.sha256(data).hexdigest()}  {file}\n"
    (wheels / "SHA256SUMS").write_text(sums)
    (wheels / "python").write_text("3.13\n")
    return wheels.parent


def flash(*words: object) -> Any:
    """What the command says as JSON; a refusal is raised."""
    result = CliRunner().invoke(app, ["flash", *map(str, words), "--json"], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("table", ["dos", "gpt"])
@pytest.mark.parametrize("label", ["bootfs", "system-boot"])
def test_a_stock_image_gets_its_files_and_nothing_else_changes(
    tmp_path: Path, ticket: Path, kit: Path, table: str, label: str
) -> None:
    """Twice over one image: the second flash leaves nothing of the first."""
    image = make_image(tmp_path / "stock.img", table=table, label=label)
    run_tool("mcopy", "-i", at(image), "-", "::/config.txt", data=b"arm_64bit=1\n")
    around = image.read_bytes()[: 4 << 20], image.read_bytes()[44 << 20 :]
    key = tmp_path / "key.pub"
    key.write_text(SSH_KEY)
    said = flash(image, "--ticket", ticket, "--wheelhouse", kit, "--ssh-key", key, "--data", "/srv/fan")
    assert said["verified"]
    assert said["boot"]["label"] == label
    ((kit / "wheels") / "SHA256SUMS").write_text("")
    flash(image, "--ticket", ticket, "--wheelhouse", kit, "--ssh-key", key, "--data", "/srv/fan")

    fat = FatFiles(image, boot_partition(image))
    own = {"anabranch", "anabranch-ticket.toml", "user-data", "meta-data", "network-config"}
    assert fat.names() == {*own, "config.txt"}
    assert fat.read("config.txt") == b"arm_64bit=1\n"
    assert fat.read("network-config") == b"# the image's own\n"
    assert fat.read("anabranch-ticket.toml") == TICKET.encode()
    assert fat.names("anabranch/wheels") == {"SHA256SUMS", "python"}
    agent = tomllib.loads(fat.read("anabranch/agent.toml").decode())
    assert agent["enroll"]["ticket"] == "/etc/anabranch/ticket.toml"
    assert agent["data"]["path"] == "/srv/fan"
    user = yaml.safe_load(fat.read("user-data"))
    assert user["users"][0]["ssh_authorized_keys"] == [SSH_KEY]
    assert user["hostname"] == "anabranch-c1ab2cd3ef45"
    assert yaml.safe_load(fat.read("meta-data"))["instance-id"].startswith("anabranch-")
    assert SECRET.encode() not in fat.read("user-data") + fat.read("meta-data")
    assert (image.read_bytes()[: 4 << 20], image.read_bytes()[44 << 20 :]) == around
    check_fat(image, tmp_path)


def test_long_names_and_contents_come_back_as_they_were(tmp_path: Path, ticket: Path, kit: Path) -> None:
    """A wheel's name is longer than 8.3, and than any other on the card."""
    image = make_image(tmp_path / "stock.img")
    flash(image, "--ticket", ticket, "--wheelhouse", kit)
    fat = FatFiles(image, boot_partition(image))
    for name, data in read_wheelhouse(kit).items():
        assert fat.read(f"anabranch/wheels/{name}") == data


def test_a_dry_run_writes_nothing(tmp_path: Path, ticket: Path, kit: Path) -> None:
    """It says the same files and sizes as the run that writes."""
    image = make_image(tmp_path / "stock.img")
    before = digest(image)
    planned = flash(image, "--ticket", ticket, "--wheelhouse", kit, "--dry-run")
    assert digest(image) == before
    assert not planned["written"]
    done = flash(image, "--ticket", ticket, "--wheelhouse", kit)
    assert done["files"] == planned["files"]
    assert done["needed"] == planned["needed"]


def test_a_full_boot_partition_is_refused_before_the_first_byte(tmp_path: Path, ticket: Path, kit: Path) -> None:
    """With the sizes; what an earlier flash left there counts as free."""
    image = make_image(tmp_path / "stock.img")
    free = FatFiles(image, boot_partition(image)).free()
    run_tool("mcopy", "-i", at(image), "-", "::/kernel8.img", data=bytes(free - 6_500_000))
    before = digest(image)
    with pytest.raises(ConfigError, match=r"too full: the files take 6\.\d MB, 1\.0 MB must stay free.*6\.5 MB"):
        flash(image, "--ticket", ticket, "--wheelhouse", kit)
    assert digest(image) == before
    run_tool("mdel", "-i", at(image), "::/kernel8.img")
    run_tool("mcopy", "-i", at(image), "-", "::/kernel8.img", data=bytes(free - 8_000_000))
    flash(image, "--ticket", ticket, "--wheelhouse", kit)
    flash(image, "--ticket", ticket, "--wheelhouse", kit)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: make_image(path, label="EFI"), "no boot partition"),
        (lambda path: make_image(path, seeded=False), "does not ask cloud-init"),
        (lambda path: path.write_bytes(os.urandom(1 << 20)), "is no disk image"),
        (lambda path: path.write_bytes(b""), "is no disk image"),
        (lambda path: path.mkdir(), "neither a file nor a disk"),
        (lambda _: None, "No such file"),
    ],
)
def test_what_is_no_stock_image_is_refused(
    tmp_path: Path, ticket: Path, make: Callable[[Path], object], sentence: str
) -> None:
    """One sentence of what it is, and one of what to take."""
    image = tmp_path / "stock.img"
    make(image)
    with pytest.raises(ConfigError, match=sentence) as refused:
        flash(image, "--ticket", ticket)
    assert refused.value.hint


def test_an_older_image_may_be_insisted_on(tmp_path: Path, ticket: Path) -> None:
    """Someone put cloud-init in himself; FAT16 is as good."""
    image = make_image(tmp_path / "stock.img", seeded=False, fat=16)
    assert flash(image, "--ticket", ticket, "--any-image")["verified"]


def test_what_is_not_what_was_written_is_told(tmp_path: Path) -> None:
    """A card that loses a byte."""
    image = make_image(tmp_path / "stock.img")
    partition = boot_partition(image)
    files = {"anabranch/a": b"a" * 1000, "user-data": b"u"}
    measure(image, partition, files)
    write_files(image, partition, files, lambda _: None)
    verify_files(image, partition, files, lambda _: None)
    place = image.read_bytes().index(b"a" * 1000)
    with image.open("r+b") as card:
        card.seek(place + 500)
        card.write(b"b")
    with pytest.raises(ConfigError, match="anabranch/a is not what was written"):
        verify_files(image, partition, files, lambda _: None)


@pytest.mark.parametrize("packed", [False, True])
def test_a_whole_image_goes_onto_a_card_and_then_the_files(tmp_path: Path, ticket: Path, packed: bool) -> None:
    """The card here is a file; a disk is opened and written by the same calls."""
    stock = make_image(tmp_path / "stock.img")
    image = stock
    if packed:
        image = tmp_path / "stock.img.xz"
        image.write_bytes(lzma.compress(stock.read_bytes(), preset=0))
    card = tmp_path / "card"
    with card.open("wb") as file:
        file.truncate(stock.stat().st_size + CHUNK)
    assert flash("--image", image, "--to", card, "--ticket", ticket)["verified"]
    fat = FatFiles(card, boot_partition(card))
    assert fat.read("anabranch-ticket.toml") == TICKET.encode()
    assert card.read_bytes()[44 << 20 : stock.stat().st_size] == stock.read_bytes()[44 << 20 :]
    with card.open("r+b") as file:
        file.truncate(CHUNK)
    with pytest.raises(ConfigError, match=r"GB, .* only 0"):
        flash("--image", image, "--to", card, "--ticket", ticket)


@given(st.binary(min_size=1, max_size=4000), st.integers(0, 3999))
def test_a_card_that_gives_back_another_byte_is_found(data: bytes, place: int) -> None:
    """Whatever the image's size, and wherever the byte is."""
    with tempfile.TemporaryDirectory() as folder:
        image, card = Path(folder) / "a.img", Path(folder) / "card"
        image.write_bytes(data)
        card.write_bytes(bytes(5000))
        with card.open("r+b") as file:
            sha256 = write_image(image, file.fileno(), len(data), lambda _: None)
            verify_image(file.fileno(), len(data), sha256, lambda _: None)
            place %= len(data)
            os.pwrite(file.fileno(), bytes([data[place] ^ 1]), place)
            with pytest.raises(ConfigError, match="gives back"):
                verify_image(file.fileno(), len(data), sha256, lambda _: None)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 200_000), max_size=8), st.integers(1, 90))
def test_the_room_that_is_counted_is_room_enough(sizes: list[int], length: int) -> None:
    """What was measured as needed is never less than what is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        image = make_image(Path(folder) / "a.img", boot_mb=16, seeded=False, fat=16)
        fat = FatFiles(image, boot_partition(image))
        files = {f"anabranch/{'n' * length}{i}/{'w' * length}.whl": bytes(size) for i, size in enumerate(sizes)}
        needed, free = fat.needed((name, len(data)) for name, data in files.items()), fat.free()
        for name, data in files.items():
            fat.write(name, data)
        assert free - fat.free() <= needed <= free - fat.free() + 64 * 1024


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (TICKET.replace("secret", "sekret"), "unknown key `sekret`"),
        (TICKET.replace("00112233", "nonsense"), "secret"),
        (TICKET + "# " + "x" * (16 << 10), "at most 16384"),
        ("fleet = ", "is not TOML"),
        ("\xff", "cannot read"),
    ],
)
def test_a_bad_ticket_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """Without showing what is in it."""
    path = tmp_path / "t.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=sentence) as refused:
        read_ticket(path)
    assert SECRET not in str(refused.value)


def test_a_private_key_stays_at_home(tmp_path: Path) -> None:
    """The usual slip: `id_ed25519` for `id_ed25519.pub`."""
    path = tmp_path / "id_ed25519"
    path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match="is a private key"):
        read_ssh_key(path)


def test_the_passphrase_itself_is_not_on_the_card() -> None:
    """IEEE 802.11i's own example: what WPA2 makes of it is, and opens this network only."""
    wifi = Wifi.of("IEEE", "password", "DE")
    assert wifi.psk == "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    text = seed(wifi=wifi).files({})["network-config"].decode()
    assert "password" not in text.replace('"password":', "")
    network = yaml.safe_load(text)["network"]
    assert network["wifis"]["wlan0"]["access-points"] == {"IEEE": {"password": wifi.psk}}


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=8))
def test_whatever_a_person_types_stays_text(typed: str) -> None:
    """No SSID and no path becomes YAML or TOML of its own."""
    if typed.isprintable():
        files = seed(wifi=Wifi.of(typed, "a" * 8, "DE"), agent_toml=agent_toml(f"/{typed}", None)).files({})
        network = yaml.safe_load(files["network-config"])["network"]
        assert list(network["wifis"]["wlan0"]["access-points"]) == [typed]
        assert tomllib.loads(files["anabranch/agent.toml"].decode())["data"]["path"] == f"/{typed}"


def test_the_same_card_is_the_same_device_and_another_ticket_another() -> None:
    """cloud-init starts over where the instance-id is new."""
    first, again = seed().files({})["meta-data"], seed().files({})["meta-data"]
    other = seed(ticket=TICKET.replace("gw.local", "gw2.local")).files({})["meta-data"]
    assert first == again != other
    assert list(seed().files({}))[-1] == "user-data", "a card that lacks the last file does nothing"


def seed(**changes: Any) -> Seed:
    """A device's seed, but for `changes`."""
    plain = {"ticket": TICKET, "agent_toml": agent_toml("/srv/fan", None), "hostname": hostname_of(TICKET)}
    return Seed(**{**plain, **changes})
