"""The parts of `deploy image`, on a root file system of a few files: disk, initrd, what is refused."""

import json
import subprocess
from pathlib import Path

import pytest

from deploy.flash.fat import FatFiles
from deploy.flash.partitions import boot_partition
from deploy.flash.tools import find_tool, run_tool
from deploy.image import kernel as kernels
from deploy.image.assembling import MIB, assemble
from deploy.image.filling import install_agent
from deploy.image.kernel import pack_initrd
from deploy.image.system import System, build_system, recipe, unpack_system
from fl_protocol.errors import ConfigError
from tests.deploy.images import TICKET
from tests.deploy.rig import deploy

KERNEL = "6.1.0-1-arm64"
FACTS = {"agent": "1.2", "arch": "arm64"}
MODULES = {
    "kernel/fs/ext4/ext4.ko": "kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko",
    "kernel/fs/jbd2/jbd2.ko": "",
    "kernel/lib/crc16.ko": "",
    "kernel/drivers/block/virtio_blk.ko": "",
    "kernel/drivers/usb/storage/usb-storage.ko": "",
    "kernel/drivers/gpu/nouveau.ko": "kernel/lib/crc16.ko",
}


@pytest.fixture
def system(tmp_path: Path) -> System:
    """What `assemble` and `pack_initrd` look at."""
    root = tmp_path / "root"
    modules = root / "usr/lib/modules" / KERNEL
    for name in MODULES:
        (modules / name).parent.mkdir(parents=True, exist_ok=True)
        (modules / name).write_bytes(b"")
    lines = [f"{name}: {needs}".strip() for name, needs in MODULES.items()]
    (modules / "modules.dep").write_text("\n".join(lines) + "\n")
    for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
        (modules / name).write_text("")
    for name in ("boot/vmlinuz-" + KERNEL, "usr/lib/systemd/boot/efi/systemd-bootaa64.efi", "usr/bin/busybox"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "etc").mkdir()
    (root / "etc/hostname").write_text("anabranch\n")
    return System(root, KERNEL)


@pytest.fixture
def image(tmp_path: Path, system: System) -> Path:
    return assemble(tmp_path / "fleet.img", system, b"the initrd", 500, FACTS).path


def test_the_disk_is_what_uefi_starts(image: Path, tmp_path: Path) -> None:
    """GPT; the loader where firmware looks; both file systems are sound, and the root is found by its label."""
    table = json.loads(run_tool("sfdisk", "--json", str(image)))["partitiontable"]
    assert table["label"] == "gpt"
    esp, root = table["partitions"]
    assert esp["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    assert root["type"] == "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"
    fat = FatFiles(image, boot_partition(image))
    assert fat.read("EFI/BOOT/BOOTAA64.EFI").endswith(b"systemd-bootaa64.efi")
    assert fat.read("vmlinuz").decode() == f"boot/vmlinuz-{KERNEL}"
    assert fat.read("initrd.img") == b"the initrd"
    assert b"root=LABEL=anabranch-root" in fat.read("loader/entries/anabranch.conf")
    assert json.loads(fat.read("anabranch-image.json")) == FACTS
    for number, (partition, check) in enumerate(((esp, ["fsck.vfat", "-n"]), (root, ["e2fsck", "-fn"]))):
        part = tmp_path / f"part{number}"
        with image.open("rb") as disk:
            disk.seek(partition["start"] * 512)
            part.write_bytes(disk.read(partition["size"] * 512))
        checked = subprocess.run([find_tool(check[0]), *check[1:], str(part)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout
    assert run_tool("debugfs", "-R", "cat /etc/hostname", str(tmp_path / "part1")) == b"anabranch\n"
    assert b"anabranch-root" in run_tool("e2label", str(tmp_path / "part1"))


def test_flash_takes_it_as_it_takes_a_stock_image(image: Path, tmp_path: Path) -> None:
    """Without --any-image; what starts it stays."""
    ticket = tmp_path / "t.toml"
    ticket.write_text(TICKET)
    done = deploy("flash", image, "--ticket", ticket)
    assert done.returncode == 0, done.stderr
    fat = FatFiles(image, boot_partition(image))
    assert {"EFI", "loader", "vmlinuz", "initrd.img", "anabranch", "anabranch-ticket.toml"} <= fat.names()
    assert b"anabranch-first-boot" in fat.read("user-data")


def test_wifi_is_refused(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image knows cables only; nothing is written."""
    monkeypatch.setenv("ANABRANCH_WIFI_PASSPHRASE", "correct horse")
    ticket = tmp_path / "t.toml"
    ticket.write_text(TICKET)
    done = deploy("flash", image, "--ticket", ticket, "--wifi", "barn", "--wifi-country", "DE")
    assert done.returncode == 2
    assert "cables only" in done.stderr
    assert "anabranch-ticket.toml" not in FatFiles(image, boot_partition(image)).names()


def test_an_image_that_is_too_small_is_not_begun(system: System, tmp_path: Path) -> None:
    """It says how much is needed, and leaves no file."""
    with pytest.raises(ConfigError, match="--size"):
        assemble(tmp_path / "small.img", system, b"", 300, FACTS)
    assert not list(tmp_path.glob("*.img*"))
    assert not list(tmp_path.glob(".*.img*"))


def test_the_initrd_has_the_way_to_the_disk_and_no_more(system: System, tmp_path: Path) -> None:
    """What ext4 needs comes along; the graphics card's module does not. Names count, whether - or _."""
    initrd = pack_initrd(system)
    (tmp_path / "initrd").write_bytes(initrd)
    listed = subprocess.run(
        f"zcat {tmp_path}/initrd | cpio --list --quiet --verbose",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    top = f"lib/modules/{KERNEL}"
    assert {f"{top}/{name}" for name in MODULES if "nouveau" not in name} <= names
    assert not any("nouveau" in name for name in names)
    assert {"init", "bin/busybox", f"{top}/modules.alias"} <= names
    assert {line.split()[2] for line in listed.splitlines()} == {"root"}
    subprocess.run(["sh", "-n"], input=kernels._INIT, text=True, check=True)


def test_a_kernel_that_cannot_reach_its_root_is_refused(system: System) -> None:
    """Before an image is made of it."""
    modules = system.root / "usr/lib/modules" / KERNEL
    (modules / "modules.dep").write_text("kernel/drivers/block/virtio_blk.ko:\n")
    with pytest.raises(ConfigError, match="no ext4"):
        pack_initrd(system)
    (modules / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    assert pack_initrd(system)


def test_a_tar_without_one_kernel_is_refused(tmp_path: Path) -> None:
    """As of a run of an older version."""
    (tmp_path / "boot").mkdir()
    run_tool("tar", "-cf", str(tmp_path / "s.tar"), "-C", str(tmp_path), "boot")
    with pytest.raises(ConfigError, match="0 kernels"):
        unpack_system(tmp_path / "s.tar", tmp_path / "root")


def test_wheels_of_another_machine_are_refused(system: System, tmp_path: Path) -> None:
    """The image's Python is Debian 12's."""
    (tmp_path / "wheelhouse.json").write_text('{"arch": "arm64", "python": "3.13"}')
    with pytest.raises(ConfigError, match=r"Python 3\.13"):
        install_agent(system, tmp_path)


def test_a_failed_mmdebstrap_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last complaint, and no half of a tar."""
    program = tmp_path / "bin/mmdebstrap"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\necho "I: working" >&2; echo "E: no mirror today" >&2; for f; do :; done; : > "$f"; exit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin:/usr/sbin:/sbin")
    told: list[str] = []
    with pytest.raises(ConfigError, match="no mirror today"):
        build_system(tmp_path / "s.tar", "arm64", "linux-image-arm64", told.append)
    assert told == ["working"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


def test_the_recipe_names_no_mirror() -> None:
    """mmdebstrap takes the machine's, or Debian's own."""
    assert not [word for word in recipe("arm64", "linux-image-arm64") if "http" in word]
    subprocess.run(["sh", "-n"], input=recipe("arm64", "linux-image-arm64")[-2].split("=", 1)[1], text=True, check=True)


def test_sizes_are_whole(image: Path) -> None:
    """Sparse, and as large as was asked for."""
    assert image.stat().st_size == 500 * MIB
    assert image.stat().st_blocks * 512 < 40 * MIB
