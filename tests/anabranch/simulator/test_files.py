"""The disk that loses what was not synced: production survives it, and code that syncs too little does not."""

import errno
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.simulator.files import Contents, MemoryFiles
from anabranch.simulator.power import Death, PowerCut, never
from broker_aggregator.objects import add_bundle
from edge_agent.objects import Objects
from fl_protocol.durable import make_directory, write_durably
from fl_protocol.errors import ConfigError

BUNDLE = Path(__file__).parents[3] / "anabranch/data/fan_vibration.bundle"
PATH = Path("objects/ab12")
OLD, NEW = b"the old content", b"and the new one, which is longer"
DEATHS: tuple[Death, ...] = ("kill", "power")
Writer = Callable[[Path, bytes, MemoryFiles], None]


class CrashAt:
    """Cuts the power before effect number `at`; keeps the labels of those before."""

    def __init__(self, at: int) -> None:
        self.at, self.labels = at, []
        self.cut = PowerCut("here")

    def __call__(self, label: str) -> None:
        if len(self.labels) == self.at:
            raise self.cut
        self.labels.append(label)


def durably(path: Path, data: bytes, files: MemoryFiles) -> None:
    """Production."""
    write_durably(path, data, files=files)


def holding(data: bytes | None) -> MemoryFiles:
    """A disk that has `data` in PATH for good."""
    files = MemoryFiles()
    if data is not None:
        write_durably(PATH, data, files=files)
    return files


def found(files: MemoryFiles, path: Path = PATH) -> bytes | None:
    """What the next process reads."""
    return files.read(path) if files.is_file(path) else None


def crashes(prepare: Callable[[], MemoryFiles], run: Callable[[MemoryFiles], object]) -> Iterator[MemoryFiles | None]:
    """A disk after its death at each effect of `run` in turn, None, and one that died when `run` had returned."""
    for at in itertools.count():
        for death, seed in itertools.product(DEATHS, range(40)):
            files = prepare()
            files.crash_point = crash = CrashAt(at)
            cut: BaseException | None = None
            try:
                run(files)
            except PowerCut as raised:
                cut = raised
            assert cut in (None, crash.cut)  # whatever production does about it passes on the first
            returned = cut is None
            files.crash_point = never
            files.die(death, np.random.default_rng(seed))
            files.reboot()
            if returned and (death, seed) == (DEATHS[0], 0):
                yield None
            yield files
        if returned:
            return


def violations(writer: Writer, old: bytes | None = OLD) -> set[str]:
    """All that goes wrong over every crash point, death and seed: `torn` content, or a new one `lost` once said."""
    wrong, returned = set(), False
    for files in crashes(lambda: holding(old), lambda files: writer(PATH, NEW, files)):
        if files is None:
            returned = True
        elif found(files) not in (old, NEW):
            wrong.add("torn")
        if files and returned and found(files) != NEW:
            wrong.add("lost")
    return wrong


@pytest.mark.parametrize("old", [OLD, NEW[:5], b"", None])
def test_a_file_is_old_or_new_wherever_the_process_dies(old: bytes | None) -> None:
    """Before every effect, killed or without power; once `write_durably` has returned it is the new one."""
    assert violations(durably, old) == set()


def careless(*, in_place: bool = False, sync: bool = True, early: bool = False, directory: bool = True) -> Writer:
    """`write_durably` with a step left out."""

    def write(path: Path, data: bytes, files: MemoryFiles) -> None:
        target = path if in_place else files.temporary(path)
        make_directory(path.parent, files)
        with files.create(target, 0o644) as file:
            file.write(data)
            if early:
                files.rename(target, path)
            if sync:
                file.sync()
        if not in_place and not early:
            files.rename(target, path)
        if directory:
            files.sync_directory(path.parent)

    return write


@pytest.mark.parametrize(
    ("writer", "finds"),
    [
        (careless(), set()),
        (careless(sync=False), {"torn", "lost"}),
        (careless(directory=False), {"lost"}),
        (careless(early=True), {"torn"}),
        (careless(in_place=True), {"torn"}),
    ],
    ids=["as production", "no fsync", "no sync of the directory", "rename before fsync", "in place"],
)
def test_the_disk_has_teeth(writer: Writer, finds: set[str]) -> None:
    """Each step of `write_durably` is needed: without it the property above fails, in the way that is expected."""
    assert violations(writer) == finds


def test_a_directory_that_is_not_synced_into_its_parent_takes_its_files_along() -> None:
    """Why `make_directory` syncs: a file in a new directory was said to be on the disk."""

    def write(path: Path, data: bytes, files: MemoryFiles) -> None:
        files.make_directory(path.parent)
        write_durably(path, data, files=files)

    assert violations(write, old=None) == {"lost"}


LIVES = st.lists(
    st.tuples(st.binary(min_size=1, max_size=9), st.integers(0, 7), st.sampled_from(DEATHS)), min_size=1, max_size=8
)


@given(LIVES, st.integers(0, 2**32))
def test_a_file_over_many_lives_is_none_older_than_what_was_said(
    lives: list[tuple[bytes, int, Death]], seed: int
) -> None:
    """Killed, cut off, started again: the last content said to be durable, or one that was tried since."""
    files, rng = holding(OLD), np.random.default_rng(seed)
    allowed = {OLD}
    for data, at, death in lives:
        files.crash_point = CrashAt(at)
        try:
            durably(PATH, data, files)
        except PowerCut:
            allowed.add(data)
        else:
            allowed = {data}
        files.crash_point = never
        files.die(death, rng)
        files.reboot()
        assert found(files) in allowed


def test_objects_are_whole_or_missing_wherever_the_process_dies() -> None:
    """An object of the directory is what was saved under its name; one that was kept is there; leftovers go."""
    contents = {"a": b"the first" * 3, "b": b"the second" * 5, "c": b"the third" * 2}

    def prepare() -> MemoryFiles:
        files = MemoryFiles()
        Objects(Path("state/objects"), files).save("a", contents["a"])
        Objects(Path("state/objects"), files).save("b", contents["b"])
        return files

    def run(files: MemoryFiles) -> None:
        objects = Objects(Path("state/objects"), files)
        objects.save("c", contents["c"])
        objects.keep(frozenset({"b", "c"}))

    returned = False
    for files in crashes(prepare, run):
        if files is None:
            returned = True
            continue
        objects = Objects(Path("state/objects"), files)
        loaded = {name: objects.load(name) for name in "abc"}
        assert all(data in (None, contents[name]) for name, data in loaded.items())
        assert loaded["b"] == contents["b"]
        if returned:
            assert (loaded["a"], loaded["c"]) == (None, contents["c"])
        objects.keep(frozenset("ab"))
        assert set(files.names(Path("state/objects"))) <= {"a", "b"}


def test_a_first_start_survives_its_death() -> None:
    """The directory itself is being made; what was saved in it is there."""
    returned = False
    for files in crashes(MemoryFiles, lambda files: Objects(Path("state/objects"), files).save("a", OLD)):
        if files is None:
            returned = True
        else:
            assert Objects(Path("state/objects"), files).load("a") in ((OLD,) if returned else (OLD, None))


def test_a_bundle_that_was_added_is_there_whoever_wrote_it() -> None:
    """The gateway was killed before it synced the name; the next one found the file whole, and said so."""
    data = BUNDLE.read_bytes()
    folder = Path("bundles")
    for at, seed in itertools.product(range(6), range(10)):
        files = MemoryFiles()
        durably(Path("source"), data, files)
        files.make_directory(folder)
        files.sync_directory(Path())
        files.crash_point = CrashAt(at)
        with suppress(PowerCut):
            add_bundle(folder, Path("source"), files)
        files.crash_point = never
        for death in DEATHS:
            files.die(death, np.random.default_rng(seed))
            files.reboot()
            if death == "kill":
                name = add_bundle(folder, Path("source"), files).sha256
        assert found(files, folder / name) == data


def test_every_effect_is_announced_in_order() -> None:
    """The labels that a schedule of deaths chooses from."""
    files = holding(OLD)
    files.crash_point = crash = CrashAt(-1)
    durably(PATH, NEW, files)
    temporary = "objects/.ab12.1.tmp"
    steps = ["create {}", "write {}", "fsync {}", "rename {} objects/ab12", "fsync objects"]
    assert crash.labels == [step.format(temporary) for step in steps]


def test_a_dead_disk_does_nothing_until_it_is_started_again() -> None:
    """Whatever is asked of it, reading too."""
    files = holding(OLD)
    files.die("kill", np.random.default_rng(0))
    questions: list[Callable[[], object]] = [
        lambda: files.read(PATH),
        lambda: files.names(PATH.parent),
        lambda: files.is_file(PATH),
        lambda: files.remove(PATH),
        lambda: durably(PATH, NEW, files),
        lambda: Objects(PATH.parent, files).load("ab12"),
    ]
    for question in questions:
        with pytest.raises(PowerCut):
            question()
    files.reboot()
    assert found(files) == OLD


@pytest.mark.parametrize("death", DEATHS)
def test_what_was_synced_stays_and_a_kill_loses_nothing(death: Death) -> None:
    """Over 100 deaths each; of what was not synced, a power cut leaves every kind of remains."""
    remains = set()
    for seed in range(100):
        files = holding(OLD)
        with files.create(Path("unsynced"), 0o644) as file:
            file.write(NEW)
        files.die(death, np.random.default_rng(seed))
        files.reboot()
        assert found(files) == OLD
        data = found(files, Path("unsynced"))
        kind = {None: "no name", b"": "empty", NEW: "whole"}.get(data)
        remains.add(kind or ("hollow" if data and data.endswith(b"\0") else "cut"))
    assert remains == ({"whole"} if death == "kill" else {"no name", "empty", "whole", "cut", "hollow"})


def test_the_same_seed_leaves_the_same() -> None:
    """Deaths are drawn from the generator and from nothing else."""

    def after(seed: int) -> list[bytes | None]:
        files = holding(OLD)
        for name in "cab":
            with files.create(Path(name), 0o644) as file:
                file.write(NEW)
        files.die("power", np.random.default_rng(seed))
        files.reboot()
        return [found(files, Path(name)) for name in "abc"]

    assert [after(seed) for seed in range(20)] == [after(seed) for seed in range(20)]
    assert len({tuple(after(seed)) for seed in range(20)}) > 5


def test_a_full_disk_leaves_the_old_file_and_no_other() -> None:
    """However much of the new one fits; and all is well once there is room."""
    for capacity in (0, *range(len(OLD), len(OLD) + len(NEW))):
        files = holding(OLD)
        files.capacity = capacity
        with pytest.raises(OSError, match="No space") as caught:
            durably(PATH, NEW, files)
        assert caught.value.errno == errno.ENOSPC
        assert not Objects(PATH.parent, files).save("other", NEW)
        assert (files.names(PATH.parent), found(files)) == ([PATH.name], OLD)
        files.capacity = len(OLD) + len(NEW)
        durably(PATH, NEW, files)
        assert (found(files), files.used()) == (NEW, len(NEW))


def test_a_write_that_fits_not_leaves_its_first_part() -> None:
    """As a real disk does; a failing one leaves half."""
    files = MemoryFiles(capacity=5)
    with pytest.raises(OSError, match="No space"), files.create(Path("f"), 0o644) as file:
        file.write(NEW)
    assert found(files, Path("f")) == NEW[:5]


def test_a_disk_with_errors_leaves_the_old_file_wherever_they_are() -> None:
    """But for the last step, where the new one is there and may not stay. To a device it is the operator's matter."""
    for at in range(5):
        files = holding(OLD)
        answers = iter([0] * at + [errno.EIO] + [0] * 5)
        files.fault = lambda _, answers=answers: next(answers)  # type: ignore[misc]
        with pytest.raises(OSError, match="Input/output"):
            durably(PATH, NEW, files)
        assert (files.names(PATH.parent), found(files)) == ([PATH.name], NEW if at == 4 else OLD)
        files.fault = lambda _: errno.EIO
        with pytest.raises(ConfigError, match="objects directory"):
            Objects(PATH.parent, files).save("other", NEW)


def test_equal_contents_are_stored_once() -> None:
    """A fleet holds the same version on every disk; only the last ones are remembered."""
    contents = Contents(limit=2)
    disks = [MemoryFiles(contents=contents) for _ in range(3)]
    for files in disks:
        durably(PATH, bytes(bytearray(NEW)), files)
    assert len({id(files.read(PATH)) for files in disks}) == 1
    first = contents.one(bytes(bytearray(b"another")))
    contents.one(b"a third")
    assert contents.one(bytes(bytearray(NEW))) is not disks[0].read(PATH)
    assert first == b"another"
