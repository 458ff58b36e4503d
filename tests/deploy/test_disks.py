"""Which disks `deploy flash` refuses: by what the kernel tells of them, here a kernel that a test makes up."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.flash.disks import Kernel, check_target, exclusively
from fl_protocol.errors import ConfigError
from tests.deploy.images import make_image

MOUNT = "36 35 {number} / /media/card\\040one rw - vfat {source} rw\n"


class Machine:
    """A kernel's /sys and /proc, about a block device of this machine, of which nothing is read or written."""

    def __init__(self, folder: Path) -> None:
        self.kernel = Kernel(folder / "sys", folder / "proc", Path("/dev"))
        self.node = next(p for p in sorted(Path("/dev").iterdir()) if stat.S_ISBLK(p.stat().st_mode))
        number = self.node.stat().st_rdev
        self.number = f"{os.major(number)}:{os.minor(number)}"
        self.disk = folder / "sys/block/sdz"
        for path in (self.disk / "holders", self.disk / "device", folder / "sys/dev/block", folder / "sys/class/block"):
            path.mkdir(parents=True)
        (folder / "proc/self").mkdir(parents=True)
        (folder / "sys/dev/block" / self.number).symlink_to(self.disk)
        self.tell(self.disk, dev=self.number, removable="1", ro="0", size="62333952")
        (folder / "proc/self/mountinfo").write_text("")
        (folder / "proc/swaps").write_text("Filename Type Size Used Priority\n")
        self.proc, self.sys = folder / "proc", folder / "sys"

    def tell(self, place: Path, **facts: str) -> None:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in facts.items():
            (place / name).write_text(text + "\n")

    def partition(self, number: str = "259:77") -> Path:
        part = self.disk / "sdz1"
        (part / "holders").mkdir(parents=True)
        self.tell(part, dev=number, partition="1")
        return part


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_card_in_a_reader_may_be_written(machine: Machine) -> None:
    """Removable, not mounted, nothing on it; its size is the kernel's."""
    target = check_target(machine.node, kernel=machine.kernel)
    assert (target.name, target.size) == ("sdz", 62333952 * 512)


def test_a_card_in_the_machines_own_slot_may_be_written(machine: Machine) -> None:
    """mmcblk says that it is not removable; its type says SD. An eMMC says MMC, and has to be named."""
    machine.tell(machine.disk, removable="0")
    machine.tell(machine.disk / "device", type="SD")
    assert check_target(machine.node, kernel=machine.kernel).name == "sdz"
    machine.tell(machine.disk / "device", type="MMC")
    with pytest.raises(ConfigError, match="not removable"):
        check_target(machine.node, kernel=machine.kernel)


def test_a_disk_that_is_not_removable_must_be_named(machine: Machine) -> None:
    """Another's name will not do."""
    machine.tell(machine.disk, removable="0")
    for name in ("", "sda"):
        with pytest.raises(ConfigError, match="not removable") as refused:
            check_target(machine.node, name, machine.kernel)
        assert "--yes-this-disk sdz" in refused.value.hint
    assert check_target(machine.node, "sdz", machine.kernel).name == "sdz"


def _mounted(machine: Machine) -> None:
    (machine.proc / "self/mountinfo").write_text(MOUNT.format(number=machine.number, source="/dev/sdz"))


def _partition_mounted(machine: Machine) -> None:
    machine.partition()
    (machine.proc / "self/mountinfo").write_text(MOUNT.format(number="259:77", source="/dev/sdz1"))


def _subvolume_mounted(machine: Machine) -> None:
    machine.partition()
    (machine.proc / "self/mountinfo").write_text(MOUNT.format(number="0:44", source="/dev/sdz1"))


def _root(machine: Machine) -> None:
    machine.partition()
    (machine.proc / "self/mountinfo").write_text("25 1 259:77 / / rw - ext4 /dev/sdz1 rw\n")


def _encrypted(machine: Machine) -> None:
    (machine.partition() / "holders/dm-0").mkdir()
    machine.tell(machine.sys / "class/block/dm-0", dev="253:0")


def _encrypted_root(machine: Machine) -> None:
    _encrypted(machine)
    (machine.proc / "self/mountinfo").write_text("25 1 253:0 / / rw - ext4 /dev/mapper/root rw\n")


def _swap(machine: Machine) -> None:
    (machine.proc / "swaps").write_text(f"Filename Type Size Used Priority\n{machine.node} partition 1 0 -2\n")


@pytest.mark.parametrize(
    ("busy", "sentence"),
    [
        (_mounted, "mounted at /media/card one"),
        (_partition_mounted, "sdz1 is mounted"),
        (_subvolume_mounted, "sdz1 is mounted"),
        (_root, "this machine runs from"),
        (_encrypted, "part of dm-0"),
        (_encrypted_root, "this machine runs from"),
        (_swap, "is swapped to"),
        (lambda m: m.tell(m.disk, ro="1"), "write-protected"),
        (lambda m: m.tell(m.disk, size="0"), "no medium"),
        (lambda m: m.tell(m.disk, partition="1"), "one partition of a disk"),
    ],
)
def test_a_disk_in_use_is_refused_whatever_is_said(
    machine: Machine, busy: Callable[[Machine], None], sentence: str
) -> None:
    """`--yes-this-disk` is no help there."""
    busy(machine)
    with pytest.raises(ConfigError, match=sentence) as refused:
        check_target(machine.node, "sdz", machine.kernel)
    assert refused.value.hint


def test_the_disk_that_this_machine_runs_from_is_refused() -> None:
    """The real one, where the root file system has a disk that can be named."""
    number = Path("/").stat().st_dev
    here = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    node = Path("/dev") / here.resolve().name
    sentence = "this machine runs from|one partition of a disk" if here.exists() else "No such file|cannot use"
    with pytest.raises(ConfigError, match=sentence):
        check_target(node if here.exists() else Path("/dev/no-such-disk"), node.name)


def test_a_character_device_is_no_card() -> None:
    """/dev/null would take it all, and say that it went well."""
    with pytest.raises(ConfigError, match="neither a file nor a disk"):
        check_target(Path("/dev/null"))


def test_an_image_that_is_in_use_as_a_disk_is_refused(machine: Machine, tmp_path: Path) -> None:
    """Two would write to it."""
    image = make_image(tmp_path / "a.img")
    machine.tell(machine.sys / "block/loop7/loop", backing_file=str(image))
    with pytest.raises(ConfigError, match="in use as /dev/loop7"):
        check_target(image, kernel=machine.kernel)
    (machine.sys / "block/loop7/loop/backing_file").unlink()
    with exclusively(check_target(image, kernel=machine.kernel)) as descriptor:
        assert os.fstat(descriptor).st_size == image.stat().st_size
