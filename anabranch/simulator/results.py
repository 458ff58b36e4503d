"""A run's results: what lies in its folder, written while it goes on and read back whole.

    run.json          one `RunSummary`; written last, so that a folder that has it is complete
    releases.jsonl    one `ReleaseRow` a release, as it happens: `tail -f` shows the run
    devices.jsonl     one `DeviceRow` a device
    ledger.jsonl      one `LedgerRow` an update that the gateway recorded
    experiment.toml   the experiment, as its file said
    best/             after real training: the best version as `export_version` writes it, and `version.f32`

These files are read by later programs: fields may be added with a default, but are never removed and never change
their meaning. Metrics are as the gateway judges them; `better` says which end of theirs is. What is not finite is
written as null.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from fl_protocol.bundle import Better
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError

RUN, RELEASES, DEVICES, LEDGER = "run.json", "releases.jsonl", "devices.jsonl", "ledger.jsonl"
EXPERIMENT = "experiment.toml"

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A version on the test set, measured once, after the run: `value` with its fake-quantized network, and `int8`.

    `int8` is the metric of the int8 model that people get; None where the metric cannot be told from outputs alone.
    """

    version: int
    value: float
    int8: float | None = None


@dataclass(frozen=True)
class Finals:
    """The version that validation chose, and the last, on the test set; None: not measured. The rest: `RunSummary`."""

    best: Measurement | None = None
    last: Measurement | None = None
    tiers: Mapping[str, float] = field(default_factory=dict)
    backdoor_success: float | None = None


NO_FINALS = Finals()


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One experiment with one seed, in figures.

    `command` replays it; `stopped` says why it ended. `value` is the metric of the last release, `value_mean5` the mean
    of the last five that were measured, `loss` the last release's; None where nothing was. `best` is the best value, of
    `best_version`; `test_best` is that version on the test set, and None unless validation chose it; `test_last` the
    last version there. `reported` is the metric by the devices' own word: what each last said of a version on its own
    held-out examples, with its personal entries, weighted by examples. Bytes up and down are counted at the devices'
    sockets; `update_bytes` are those of updates with their topics, `update_bytes_float32` of the same updates as plain
    float32 with nothing around them. `verdicts` counts updates by verdict, `checks` how often each invariant was
    checked; `replayed` are the releases made again bit for bit, and of how many. `calm_s` is how long after its storm
    the fleet was at work again. Of `begun` trainings `died` ended with their device; `longest_s` is the longest time
    without a version, from the task's start to its end. `tiers` is the last version's metric on the examples of each
    tier's own devices: those that they hold out, or where the data holds none out, those that they train on.
    `backdoor_success` is the share of held-out examples of other classes that the last version's int8 model takes for
    the target once they bear the trigger. Times are in seconds: `virtual_s` of the fleet's, `wall_s` of our clock.
    """

    experiment: str
    seed: int
    command: str
    metric: str
    stopped: str
    virtual_s: float
    wall_s: float
    events: int
    versions: int
    verdicts: dict[str, int]
    counted: int
    quarantined: int
    bytes_up: int
    bytes_down: int
    update_bytes: int
    update_bytes_float32: int
    staleness_mean: float
    parameters_sha256: str
    trace_sha256: str
    target: float | None = None
    value: float | None = None
    value_mean5: float | None = None
    best: float | None = None
    loss: float | None = None
    faults: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()
    checks: dict[str, int] = field(default_factory=dict)
    replayed: tuple[int, int] = (0, 0)
    calm_s: float | None = None
    better: Better = "higher"
    best_version: int | None = None
    test_best: Measurement | None = None
    test_last: Measurement | None = None
    reported: float | None = None
    begun: int = 0
    died: int = 0
    longest_s: float | None = None
    tiers: dict[str, float] = field(default_factory=dict)
    backdoor_success: float | None = None

    @property
    def ok(self) -> bool:
        """Whether every invariant held."""
        return not self.violations


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseRow:
    """One version: `t_s` virtual seconds after the task began to run.

    `updates`, `bytes_up` and `bytes_down` are sums since then (updates counted; bytes at the devices' sockets); `used`
    updates went into this version, with these stalenesses; `active` devices were awake. Not measured: None.
    """

    version: int
    t_s: float
    updates: int
    bytes_up: int
    bytes_down: int
    used: int
    staleness_mean: float
    staleness_max: int
    active: int
    value: float | None = None
    loss: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRow:
    """One device: `awake_s` and `train_s` in virtual seconds; `trained` updates made, and what became of them.

    `slowness` is how many times longer than the reference machine it takes for a step; `pending` updates had no verdict
    at the end; bytes are counted at its sockets. Of `begun` trainings it `died` in so many. `attack` is the
    number of its `[[attacks]]`, empty for an honest one; of its counted updates the rule `near` left out `left_out`.
    """

    device: str
    tier: str
    slowness: float
    examples: int
    boots: int
    awake_s: float
    train_s: float
    trained: int
    accepted: int
    stale: int
    rejected: int
    pending: int
    counted: int
    staleness_mean: float
    bytes_up: int
    bytes_down: int
    begun: int = 0
    died: int = 0
    attack: str = ""
    left_out: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerRow:
    """One update as the gateway recorded it; `version` counted it, at `staleness`. `code` is empty unless refused."""

    device: str
    incarnation: str
    seq: int
    base_version: int
    verdict: str
    code: str
    disposal: str
    num_bytes: int
    version: int | None = None
    staleness: int | None = None


@dataclass(frozen=True)
class Run:
    """A whole folder, read: releases by version, devices and ledger as they were written."""

    folder: Path
    summary: RunSummary
    releases: tuple[ReleaseRow, ...]
    devices: tuple[DeviceRow, ...]
    ledger: tuple[LedgerRow, ...]


class ResultsWriter:
    """Writes the folder of one run. What is in a folder without `run.json`, an unfinished run, is written over.

    Raises `ConfigError` for a folder that cannot be written to, or that holds the results of a finished run.
    """

    def __init__(self, folder: Path, experiment: str = "") -> None:
        """`experiment` is the text of the experiment's file; without it there is no copy."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / RUN).exists():
                raise ConfigError(f"{folder} holds the results of a run", "name a new folder, or remove this one")
            if experiment:
                write_durably(folder / EXPERIMENT, experiment.encode())
            self._releases = (folder / RELEASES).open("wb", buffering=0)  # a line is there as soon as it is written
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error.strerror}", "name another folder") from None

    def release(self, row: ReleaseRow) -> None:
        """Append a release; whoever reads the file sees it at once, and as a whole line."""
        self._releases.write(_line(row))

    def finish(self, summary: RunSummary, devices: Iterable[DeviceRow], ledger: Iterable[LedgerRow]) -> Run:
        """Write the rest durably, the summary last, and return the run as `read_run` reads it. Raises `OSError`."""
        os.fsync(self._releases.fileno())
        self.close()
        write_durably(self.folder / DEVICES, b"".join(map(_line, devices)))
        write_durably(self.folder / LEDGER, b"".join(map(_line, ledger)))
        write_durably(self.folder / RUN, msgspec.json.format(_json(summary), indent=2) + b"\n")
        return read_run(self.folder)

    def close(self) -> None:
        """Let go of the file; the folder stays unfinished unless `finish` was called."""
        self._releases.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_run(folder: Path) -> Run:
    """Read a run's folder. Raises `ConfigError` that names the file and the mend where it is none, or not whole."""
    if not (folder / RUN).exists():
        if (folder / RELEASES).exists():
            raise ConfigError(
                f"{folder} has no {RUN}: its run goes on, or was ended half-way", "wait for it, or run it again"
            )
        raise ConfigError(f"{folder} is no run's folder: it has no {RUN}", "name the folder that a simulation wrote")
    return Run(
        folder=folder,
        summary=_decode(folder / RUN, _read(folder / RUN), RunSummary),
        releases=_rows(folder / RELEASES, ReleaseRow),
        devices=_rows(folder / DEVICES, DeviceRow),
        ledger=_rows(folder / LEDGER, LedgerRow),
    )


def _rows(path: Path, kind: type[Row]) -> tuple[Row, ...]:
    data = _read(path)
    if data and not data.endswith(b"\n"):
        raise _broken(path, "its last line was not written to the end")
    decoder = msgspec.json.Decoder(kind)
    try:
        return tuple(map(decoder.decode, data.splitlines()))
    except msgspec.DecodeError:  # once more, slowly, for the line's number
        for number, line in enumerate(data.splitlines(), 1):
            _decode(path, line, kind, f"line {number}: ")
        raise


def _decode(path: Path, data: bytes, kind: type[Row], where: str = "") -> Row:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _broken(path, f"{where}{error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _broken(path, error.strerror or str(error)) from None


def _broken(path: Path, what: str) -> ConfigError:
    return ConfigError(f"cannot read {path}: {what}", "run it again, or copy the whole folder once more")


def _line(row: Any) -> bytes:
    return _json(row) + b"\n"


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=_plain)


def _plain(value: Any) -> Any:
    """numpy's scalars as Python's."""
    return value.item()
