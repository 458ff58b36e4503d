"""Somebody else's source, by entry point: loaded only when it is configured, and held to what ours are held to."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.sources import Dataset, Examples, InputSpec
from edge_agent.sources.plugins import PluginSource, open_plugin
from fl_protocol.errors import ConfigError
from tests.edge_agent.rig import BUNDLE, FLEET_KEY, ROOT

SPEC = InputSpec((2,), "float32", (), "int64", ("a", "b"))
MODULE = """
import numpy as np
from edge_agent.sources import Dataset, Examples

print("loaded its module")

class Machine:
    def __init__(self, options, state_dir):
        self.rows = options["rows"]

    def load(self, spec):
        x = np.ones((self.rows, *spec.x_shape), spec.x_dtype)
        y = np.zeros((self.rows, *spec.y_shape), spec.y_dtype)
        return Dataset(Examples(x[1:], y[1:]), Examples(x[:1], y[:1]), x[:1])

def broken(options, state_dir):
    raise KeyError("host")
"""
ENTRY_POINTS = "[anabranch.sources]\nmachine = anabranch_machine:Machine\nbroken = anabranch_machine:broken\n"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution as pip leaves it."""
    site = tmp_path / "site"
    info = site / "anabranch_machine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: anabranch-machine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "anabranch_machine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(site)
    return site


def edge_agent(site: Path, config: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process that has the package."""
    path = site.parent / "agent.toml"
    path.write_text(
        f'[device]\nid = "d"\nfleet = "f"\nstate_dir = "state"\n[gateway]\npublic_key = "{FLEET_KEY.public}"\n'
        f'[broker]\nhost = "127.0.0.1"\nport = 9\n{config}'
    )
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", *arguments, "--config", str(path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{site}"},
        cwd=site.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_source_of_another_package(installed: Path) -> None:
    """Its options are its own; its examples are checked as ours are."""
    dataset = open_plugin("machine", {"rows": 5}, Path()).load(SPEC)
    assert (len(dataset.train), len(dataset.validation), dataset.newest.shape) == (4, 1, (1, 2))


def test_it_is_imported_only_when_configured(installed: Path, tmp_path: Path) -> None:
    """A folder's agent never runs a stranger's code."""
    bundle = tmp_path / "fan.bundle"
    bundle.write_bytes((ROOT / "anabranch/data/fan_vibration.bundle").read_bytes())
    (tmp_path / "data").mkdir()
    x = np.zeros((20, *BUNDLE.x_shape), np.float32)
    np.savez(tmp_path / "data/a.npz", x=x, y=np.zeros(20, np.int64))
    folder = edge_agent(installed, '[data]\npath = "data"\n', "check", "--bundle", str(bundle))
    assert "18 examples to train on" in folder.stdout
    assert "loaded its module" not in folder.stdout
    config = '[data]\nsource = "machine"\noptions = { rows = 7 }\n'
    machine = edge_agent(installed, config, "check", "--bundle", str(bundle))
    assert "loaded its module" in machine.stdout
    assert "6 examples to train on, 1 held out; they fit fan.bundle" in machine.stdout


def test_one_that_is_not_installed_or_does_not_open(installed: Path) -> None:
    """The names that there are; the reason."""
    with pytest.raises(ConfigError, match="'opcua', and no such source is installed") as caught:
        open_plugin("opcua", {}, Path())
    assert "broken, folder, machine, ring" in caught.value.hint
    with pytest.raises(ConfigError, match="'broken' does not open: KeyError: 'host'"):
        open_plugin("broken", {}, Path())


class Wrong:
    """A source that does what the test says."""

    def __init__(self, what: Any) -> None:
        self._what = what

    def load(self, spec: InputSpec) -> Dataset:  # noqa: ARG002
        if isinstance(self._what, Exception):
            raise self._what
        x, y = self._what
        return Dataset(Examples(x, y), Examples(x[:0], y[:0]), x[:1])


@pytest.mark.parametrize(
    "what",
    [
        ConfigError("row 3 is 31337.5"),
        ZeroDivisionError("31337.5"),
        (np.full((4, 3), 31337.5, np.float32), np.zeros(4, np.int64)),
        (np.full((4, 2), np.nan, np.float32), np.zeros(4, np.int64)),
        (np.zeros((4, 2), np.float32), np.full(4, 31337)),
        (np.zeros((0, 2), np.float32), np.zeros(0, np.int64)),
    ],
    ids=["complains", "fails", "shape", "not finite", "label", "empty"],
)
def test_what_goes_wrong_in_it_is_told_without_its_words(what: Any, caplog: pytest.LogCaptureFixture) -> None:
    """They may quote an example: they stay in the device's own log."""
    with pytest.raises(ConfigError, match="the source 'other'") as caught:
        PluginSource("other", Wrong(what)).load(SPEC)
    assert "31337" not in str(caught.value)
    if isinstance(what, Exception):
        assert "31337" in caplog.text
