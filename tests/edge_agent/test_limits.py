"""Cores and memory as the machine and its control groups tell them; and a graph that asks for too much."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.limits import cores, free_memory_mb
from tests.edge_agent.rig import ROOT

ALL = len(os.sched_getaffinity(0))


class Machine:
    """A /proc and a /sys/fs/cgroup, written by hand."""

    def __init__(self, folder: Path, group: str = "0::/system.slice/agent.service\n") -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self.inner = self.cgroups / "system.slice/agent.service"
        self.inner.mkdir(parents=True)
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/cgroup").write_text(group)
        (self.proc / "meminfo").write_text("MemTotal: 1024000 kB\nMemAvailable: 512000 kB\n")

    def cores(self) -> int:
        return cores(self.proc, self.cgroups)

    def free_mb(self) -> float:
        return free_memory_mb(self.proc, self.cgroups)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without limits but its own."""
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("quota", "allowed"), [("max 100000", ALL), ("50000 100000", 1), ("900000 100000", ALL), ("", ALL)]
)
def test_cores_are_those_of_the_affinity_and_of_the_quota(machine: Machine, quota: str, allowed: int) -> None:
    """At least one, however small the quota."""
    (machine.inner / "cpu.max").write_text(quota)
    assert machine.cores() == allowed


def test_a_quota_of_an_outer_group_holds_too(machine: Machine) -> None:
    """The whole slice may use half a core."""
    (machine.inner / "cpu.max").write_text("max 100000")
    (machine.inner.parent / "cpu.max").write_text("50000 100000")
    assert machine.cores() == 1


def test_free_memory_is_what_the_machine_has_available(machine: Machine) -> None:
    """MemAvailable, in megabytes of 2**20 bytes."""
    assert machine.free_mb() == 500


@pytest.mark.parametrize("where", [0, 1])
def test_a_control_groups_limit_is_nearer(machine: Machine, where: int) -> None:
    """What it allows less what is used; the page cache makes room when asked."""
    folder = (machine.inner, *machine.inner.parents)[where]
    (folder / "memory.max").write_text(str(200 << 20))
    (folder / "memory.current").write_text(str(150 << 20))
    (folder / "memory.stat").write_text(f"anon {90 << 20}\ninactive_file {20 << 20}\nactive_file {5 << 20}\n")
    assert machine.free_mb() == 75


@pytest.mark.parametrize("text", ["max", "", "nonsense"])
def test_a_group_without_a_limit_changes_nothing(machine: Machine, text: str) -> None:
    """And neither does one that cannot be read."""
    (machine.inner / "memory.max").write_text(text)
    (machine.inner / "memory.current").write_text("1000")
    assert machine.free_mb() == 500


def test_the_first_version_of_control_groups_is_not_read(tmp_path: Path) -> None:
    """The machine's own figures count."""
    machine = Machine(tmp_path, "5:memory:/docker/1\n")
    assert (machine.free_mb(), machine.cores()) == (500, ALL)


def test_a_machine_that_tells_nothing_has_no_limit(tmp_path: Path) -> None:
    """Not on Linux: nothing is held."""
    assert free_memory_mb(tmp_path, tmp_path) == float("inf")


HUNGRY = """
import json, sys
import numpy as np
from edge_agent.health import read_vitals
from edge_agent.limits import hold_memory
from edge_agent.runtime import Runtime
from edge_agent.sources import Dataset, Examples
from edge_agent.trainer import OnnxTrainer, WorkOrder
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ProtocolError

bundle = Bundle.read(open(sys.argv[1], "rb").read())
allowed_mb, batch = int(sys.argv[2]), int(sys.argv[3])
trainer = OnnxTrainer(bundle, Runtime(), hold_memory=lambda: [hold_memory(allowed_mb), allowed_mb][1])
examples = Examples(np.zeros((256, 2), np.float32), np.zeros(256, np.int64))
dataset = Dataset(examples, examples[:0], examples.x[:1])
order = WorkOrder(batch, 1, 2, bundle.hyper)
try:
    trainer.train(bundle.initial, dataset, order, bundle.personal, np.random.default_rng(0), lambda: False)
    said = None
except ProtocolError as error:
    said = [error.code, error.message]
print(json.dumps([said, read_vitals().peak_memory_mb]))
"""


def hungry_bundle(folder: Path, megabytes_an_example: int) -> Path:
    """A bundle whose step makes a tensor of that size for each example."""
    import numpy as np
    from onnx import helper, numpy_helper

    from tests.edge_agent.small import small_bundle

    width = megabytes_an_example << 18  # float32
    extra = (
        helper.make_node("Slice", ["x", "zero", "first", "column"], ["narrow"]),
        helper.make_node("Concat", ["one_axis", "wide_axis"], ["shape"], axis=0),
        helper.make_node("Expand", ["narrow", "shape"], ["wide"]),
        helper.make_node("Exp", ["wide"], ["unused"]),
        helper.make_node("ReduceSum", ["unused"], ["total"], keepdims=0),
    )
    stored = tuple(
        numpy_helper.from_array(np.array([value], np.int64), name)
        for name, value in (("zero", 0), ("first", 1), ("column", 1), ("one_axis", 1), ("wide_axis", width))
    )
    # Nothing may be optimized away: the loss depends on it.
    path = folder / "hungry.bundle"
    path.write_bytes(small_bundle(extra=extra, stored=stored, loss="total"))
    return path


def train_hungry(path: Path, allowed_mb: int, batch: int) -> tuple[list[str] | None, float]:
    """What became of it in a process of its own, and that process's peak in megabytes."""
    import json

    command = [sys.executable, "-c", HUNGRY, str(path), str(allowed_mb), str(batch)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said, peak_mb = json.loads(done.stdout)
    return said, peak_mb


def test_a_step_that_memory_does_not_suffice_for_is_said_with_what_it_takes(tmp_path: Path) -> None:
    """Not killed: E_SIZE, how much a step of the plan's batch needs, and the batch that would fit."""
    path = hungry_bundle(tmp_path, 8)
    assert train_hungry(path, 300, 4)[0] is None
    said, peak_mb = train_hungry(path, 300, 64)
    assert said is not None
    code, message = said
    assert code == "E_SIZE"
    assert "a step of 64 examples needs about" in message
    assert "a batch of 16 fits" in message or "a batch of 8 fits" in message
    assert message.endswith("; 300 MB are allowed")
    needed_mb = float(message.split("about ")[1].split(" MB")[0])
    assert 500 < needed_mb < 1500
    assert peak_mb < 500


def test_a_graph_that_grows_without_end_is_refused_and_outlived(tmp_path: Path) -> None:
    """16 GB from two numbers: the device says E_SIZE, and has used nothing like it."""
    said, peak_mb = train_hungry(hungry_bundle(tmp_path, 1023), 300, 16)
    assert said is not None
    assert said == ["E_SIZE", "a step of 16 examples needs more memory than there is; 300 MB are allowed"]
    assert peak_mb < 500
