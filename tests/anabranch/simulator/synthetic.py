"""Runs as a simulation would leave them, made up from a formula."""

from math import exp
from pathlib import Path

import numpy as np

from anabranch.simulator.results import DeviceRow, LedgerRow, ReleaseRow, ResultsWriter, Run, RunSummary


def made_up(
    experiment: str = "fans",
    seed: int = 0,
    *,
    final: float | None = 0.97,
    loss: bool = True,
    rate: float = 0.04,
    versions: int = 100,
    interval: float = 300.0,
    target: float | None = None,
    violations: tuple[str, ...] = (),
    metric: str = "accuracy",
) -> Run:
    """A run whose metric rises to about `final`; None: it was never measured. One release an `interval` (s)."""
    rng = np.random.default_rng([seed, *experiment.encode()])
    end = rng.normal(0, 0.004)
    releases = []
    for version in range(1, versions + 1):
        left = exp(-rate * version)
        releases.append(
            ReleaseRow(
                version=version,
                t_s=interval * version + float(rng.uniform(0, 0.4 * interval)),
                updates=8 * version,
                bytes_up=8 * version * 2600,
                bytes_down=8 * version * 31000,
                used=8,
                staleness_mean=1.5,
                staleness_max=4,
                active=16,
                value=None if final is None else float(final + end - 0.65 * left + rng.normal(0, 0.03 * left)),
                loss=float(1.2 * left + 0.05) if loss else None,
            )
        )
    measured = [row.value for row in releases if row.value is not None]
    summary = RunSummary(
        experiment=experiment,
        seed=seed,
        command=f"anabranch simulate {experiment}.toml --seed {seed}",
        metric=metric,
        target=target,
        stopped=f"{versions} versions",
        virtual_s=releases[-1].t_s,
        wall_s=12.5,
        events=54321,
        versions=versions,
        verdicts={"accepted": 8 * versions, "stale": 2 * versions, "rejected": 0, "deferred": 7},
        counted=8 * versions,
        quarantined=0,
        bytes_up=releases[-1].bytes_up + 5000,
        bytes_down=releases[-1].bytes_down + 5000,
        update_bytes=10 * versions * 2500,
        update_bytes_float32=10 * versions * 30000,
        value=measured[-1] if measured else None,
        value_mean5=float(np.mean(measured[-5:])) if measured else None,
        best=max(measured) if measured else None,
        loss=releases[-1].loss,
        staleness_mean=1.5,
        parameters_sha256=f"{seed:064x}",
        trace_sha256=f"{seed + 1:064x}",
        faults=("device d3 killed at 1h02", "gateway killed at 2h10"),
        violations=violations,
        checks={"durable before visible": 1234},
        replayed=(versions, versions),
    )
    device = DeviceRow(
        device="d1",
        tier="pi4",
        slowness=2.0,
        examples=400,
        boots=2,
        awake_s=9000.5,
        train_s=700.25,
        trained=11,
        accepted=8,
        stale=2,
        rejected=0,
        pending=1,
        counted=8,
        staleness_mean=1.25,
        bytes_up=26000,
        bytes_down=310000,
    )
    counted = LedgerRow(
        device="d1",
        incarnation="ab" * 8,
        seq=1,
        base_version=4,
        verdict="accepted",
        code="",
        disposal="counted",
        version=6,
        staleness=1,
        num_bytes=2500,
    )
    stale = LedgerRow(
        device="d1",
        incarnation="ab" * 8,
        seq=2,
        base_version=0,
        verdict="stale",
        code="E_STALE",
        disposal="",
        num_bytes=2501,
    )
    return Run(Path(f"{experiment}-{seed}"), summary, tuple(releases), (device,), (counted, stale))


def write(folder: Path, run: Run) -> Run:
    """The run as a simulation writes it, into `folder`."""
    with ResultsWriter(folder) as writer:
        for row in run.releases:
            writer.release(row)
        return writer.finish(run.summary, run.devices, run.ledger)
