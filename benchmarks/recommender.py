"""What people get of the federated recommender: each with the factors that stayed on the person's own device.

The gateway cannot measure it, nor can model_accuracy.py: both know no person. Here benchmarks/experiments/models/
recommender.toml runs in the twin; then each device's own factors, as its outbox kept them, meet the last version on the
person's own test ratings, in the network that trained and as its int8 model. The mean error per rating, in stars.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import parse_arguments, print_result, setting
from numpy.typing import NDArray

from anabranch.datasets import Client, load
from anabranch.simulator.compare import estimate
from anabranch.simulator.experiment import load_experiment
from anabranch.simulator.twin import TASK, Twin
from edge_agent.inference import quantize
from edge_agent.runtime import open_session

EXPERIMENT = Path(__file__).parent / "experiments" / "models" / "recommender.toml"
SHRINK = 2.0  # so many ratings of the mean count with everybody's own; chosen on validation


def means(clients: Sequence[Client], sweeps: int = 10) -> dict[str, float]:
    """Test errors of the global mean, of each film's, and of film's and person's together (least squares, shrunk)."""
    person, film, stars = (
        np.concatenate(column) for column in zip(*map(_flat, clients, range(len(clients))), strict=True)
    )
    mean, films, people = stars.mean(), np.zeros(film.max() + 1), np.zeros(len(clients))
    alone = _shrunk(film, stars - mean, len(films))
    for _ in range(sweeps):
        films = _shrunk(film, stars - mean - people[person], len(films))
        people = _shrunk(person, stars - mean - films[film], len(people))
    errors: dict[str, list[NDArray[Any]]] = {"mean": [], "film's mean": [], "film's and person's mean": []}
    for i, client in enumerate(clients):
        x, y = np.minimum(client.test.x[:, 0], len(films) - 1), client.test.y[:, 0]
        guesses = (np.full(len(y), mean), mean + alone[x], mean + films[x] + people[i])
        for of, guess in zip(errors.values(), guesses, strict=True):
            of.append(np.abs(guess - y))
    return {name: float(np.concatenate(parts).mean()) for name, parts in errors.items()}


def _flat(client: Client, number: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return np.full(len(client.train.y), number), client.train.x[:, 0], client.train.y[:, 0].astype(np.float64)


def _shrunk(of: NDArray[Any], values: NDArray[Any], size: int) -> NDArray[Any]:
    return np.asarray(np.bincount(of, values, size) / (np.bincount(of, minlength=size) + SHRINK))


def run(seed: int, updates: int | None) -> dict[str, float]:
    """One run of the experiment; the errors on the test ratings, and what the run itself tells."""
    experiment = load_experiment(EXPERIMENT)
    if updates is not None:
        experiment = replace(experiment, stop=replace(experiment.stop, updates=updates))
    twin = Twin(experiment, seed)
    twin.run()
    twin.recorder.close()
    if twin.checker.violations:
        raise SystemExit(f"seed {seed}: {twin.checker.violations[0]}")
    bundle, version = twin.bundle, twin.store.release(TASK).vector
    clients = {client.name: client for client in load("ratings").clients}
    evaluate = open_session(bundle.graph("evaluate"), 1)
    errors: dict[str, list[float]] = {"personal": [], "personal, int8": [], "without a person": []}
    ratings = 0
    for device in twin.devices:
        kept = device.outbox.start().personal.get(TASK)  # as the agent would find it
        own = bundle.personal if kept is None else kept.vector
        x, y = clients[device.name].test
        for name, values in (("personal", own), ("without a person", bundle.personal)):
            state = bundle.tensors(version, values)
            given = {value.name: {**state, "x": x, "y": y}[value.name] for value in evaluate.get_inputs()}
            errors[name].append(float(evaluate.run(["correct"], given)[0]))
        stars = open_session(quantize(bundle, version, own), 1).run(None, {"x": x})[0]
        errors["personal, int8"].append(float(np.abs(stars - y).sum()))
        ratings += len(y)
    ran = {"versions": float(twin.recorder.version), "virtual minutes": twin.world.now / 60}
    return {name: sum(parts) / ratings for name, parts in errors.items()} | ran


def rows_of(runs: Sequence[Mapping[str, float]], baselines: Mapping[str, float]) -> list[list[str]]:
    """A table: each figure with its 95 % half-width over the seeds."""
    table = [["absolute error on test, stars", "mean", "95 %"]]
    table += [[f"baseline: {name}", f"{value:.4f}", ""] for name, value in baselines.items()]
    for name in runs[0]:
        of = estimate([run[name] for run in runs])
        assert of is not None
        table.append([name, f"{of.mean:.4f}", "" if of.half_width is None else f"± {of.half_width:.4f}"])
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="the seeds 0, 1, ...")
    parser.add_argument("--updates", type=int, help="counted updates, in place of the experiment's")
    options = parse_arguments(parser)
    baselines = means(load("ratings").clients)
    runs = [run(seed, options.updates) for seed in range(options.seeds)]
    result = {"setting": setting("onnxruntime", "numpy"), "baselines": baselines, "runs": runs}
    print_result(result, [rows_of(runs, baselines)], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
