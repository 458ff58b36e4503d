"""A task and examples for real programs: a tiny model that trains in a moment, and a fleet that learns it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from broker_aggregator.config import load_config
from broker_aggregator.reading import status as read_status
from broker_aggregator.store_reader import StoreReader
from tests.edge_agent.small import small_bundle
from tests.support.gatehouse import Gatehouse
from tests.support.waiting import wait_until

TASK = "small"


def write_task(folder: Path, **plan: object) -> Path:
    """A task file with its bundle; a version for each update, unless `plan` says else."""
    (folder / "small.bundle").write_bytes(small_bundle("seed"))
    fields = {"buffer": 1, "deadline_s": 3, **plan}
    lines = [f'task = "{TASK}"', 'bundle = "small.bundle"', "start = true", "[plan]"]
    file = folder / "task.toml"
    file.write_text("\n".join([*lines, *(f"{k} = {json.dumps(v)}" for k, v in fields.items())]) + "\n")
    return file


def give_examples(folder: Path, count: int = 24) -> None:
    """What a device learns from."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(count, 2)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "examples.npz", x=x, y=(np.arange(count) % 3).astype(np.int64))


def status(house: Gatehouse) -> dict[str, Any]:
    """The task as the store has it: what `broker-aggregator status --json` prints, without a process for each look."""
    store = StoreReader(load_config(house.config, {}).store_path)
    try:
        return next(t for t in read_status(store) if t["task"] == TASK)
    finally:
        store.close()


def wait_version(house: Gatehouse, version: int, seconds: float = 60) -> None:
    """Until the fleet has released that version, or a later one."""
    wait_until(lambda: status(house)["version"] >= version, seconds, f"version {version}")


def learning_house(folder: Path) -> tuple[Gatehouse, Path]:
    """A gateway with a running task, and the card of a device that has enrolled and trains."""
    house = Gatehouse(folder)
    try:
        done = house.command("task", "create", str(write_task(folder)))
        assert done.returncode == 0, done.stderr
        card = house.device("card", house.ticket("fan-01"))
        give_examples(card / "data")
        house.boot(card)
        wait_version(house, 2)
    except BaseException:
        house.close()
        raise
    return house, card
