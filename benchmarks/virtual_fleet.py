"""A fleet of containers on a real engine: sizes of the images, memory of each agent, accuracy, and what chaos costs.

`python -m deploy fleet up`, in steps: the images are measured, the fleet is made, and trains the demo's task. With
--hurt 5, when a fifth of the versions are out, one of five agents is killed, two are paused and two partitioned, with
the same verbs that a person types; at three fifths all come back. In the end the gateway's store is copied out of its
volume, each version of the last five is measured as an int8 model on the test split of every fan, as the demo does it,
and every version is made again from its updates. Needs an engine (DOCKER_HOST) and the images (`make images`).

Ends with 1 when the accuracy is below 96.5 %, an agent's image above 350 MB or 140 MB compressed, a version is not what
its updates make it, or no version came out while agents were away.
"""

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from figures import parse_arguments, print_result, setting, spread

from anabranch.demo.comparison import Judge
from anabranch.demo.folder import TASK, Folder, read_bundle
from anabranch.demo.outcome import LAST
from broker_aggregator.reading import replay, status
from broker_aggregator.store_reader import StoreReader
from deploy.fleet.command import create_task
from deploy.fleet.engine import Engine
from deploy.fleet.looking import fleet_status
from deploy.fleet.members import GATEWAY_CONFIG_FILE, Members, Wanted
from deploy.fleet.profiles import PROFILES
from deploy.fleet.specs import GATEWAY, GATEWAY_STATE, IMAGES
from fl_protocol.errors import ConfigError

ACCURACY, UNPACKED_MB, COMPRESSED_MB = 0.965, 350, 140
HURT_AT, HEAL_AT = 0.2, 0.6
READY_S = 180.0  # after heal: for everyone who was away to send something again
LOOK_S = 1.0


def main() -> int:
    options = parse_arguments(_parser())
    wanted = Wanted(
        name=options.name,
        agents=options.agents,
        profile=options.profile,
        versions=options.versions,
        minutes=options.minutes,
        seed=options.seed,
    )
    engine = Engine(wanted.name, _say)
    if engine.members():
        raise ConfigError(f"there is a fleet {wanted.name} already", "take it down first, or name another with --name")
    with tempfile.TemporaryDirectory() as temporary:
        members = Members(Path(temporary) / "fleet", wanted)
        members.prepare()
        try:
            images = {role: image_size(engine, IMAGES[role]) for role in IMAGES}
            training = train(engine, members, options.hurt)
            judged = judge(engine, members, Path(temporary) / "store")
        finally:
            engine.down()
    agents = [m for m in training["members"] if m["role"] == "agent"]
    problems = _problems(images, judged, training)
    result = {
        "setting": setting("numpy", "onnxruntime", "docker"),
        "engine": training.pop("engine"),
        "images": images,
        "training": training,
        "judged": judged,
        "agent_peak_mb": spread([m["peak_mb"] for m in agents if m["peak_mb"] is not None]),
        "agent_memory_mb": spread([m["memory_mb"] for m in agents if m["memory_mb"] is not None]),
        "problems": problems,
    }
    print_result(result, [_image_table(images), _table(result)], options.json)
    for problem in problems:
        _say(problem)
    return 1 if problems else 0


def image_size(engine: Engine, name: str) -> dict[str, float]:
    """Megabytes of 10^6: all layers, and what `docker save | gzip` makes of them."""
    image = engine.client.images.get(name)
    packer, size = zlib.compressobj(6, zlib.DEFLATED, 31), 0
    for part in image.save():
        size += len(packer.compress(part))
    size += len(packer.flush())
    _say(f"{name}: {image.attrs['Size'] / 1e6:.0f} MB, compressed {size / 1e6:.0f} MB")
    return {"unpacked_mb": round(image.attrs["Size"] / 1e6, 1), "compressed_mb": round(size / 1e6, 1)}


def train(engine: Engine, members: Members, hurt: int) -> dict[str, Any]:
    """Make the fleet and let it train to its end; with `hurt`, so many agents are away for a while."""
    began = time.monotonic()
    engine.up(members.containers())
    create_task(engine)
    made = time.monotonic()
    again = engine.up(members.containers())
    victims = list(members.speeds)[:hurt]
    left, back, hurt_at, healed_at = bool(hurt), bool(hurt), 0, 0
    before: dict[str, int] = {}
    while (task := _task(engine))["state"] == "running":
        if left and task["version"] >= HURT_AT * members.wanted.versions:
            before, hurt_at, left = _hurt(engine, victims), task["version"], False
        elif back and not left and task["version"] >= HEAL_AT * members.wanted.versions:
            healed_at, back = task["version"], False
            _heal(engine, victims)
        time.sleep(LOOK_S)  # nothing tells us of a new version here
    trained = time.monotonic()
    returned = _returned(engine, before)
    found = fleet_status(engine)
    return {
        "engine": engine.client.version()["Version"],
        "up_s": round(made - began, 1),
        "training_s": round(trained - made, 1),
        "changed_by_a_second_up": sum(len(ids) for what, ids in again.items() if what != "left"),
        "version": task["version"],
        "hurt": victims,
        "hurt_at": hurt_at,
        "healed_at": healed_at,
        "returned": returned,
        "members": found["members"],
    }


def judge(engine: Engine, members: Members, folder: Path) -> dict[str, Any]:
    """Stop the gateway, copy its store out, and measure what is in it."""
    gateway = engine.member(GATEWAY)
    gateway.stop(timeout=30)
    parts, _ = gateway.get_archive(GATEWAY_STATE)
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as tar:
        tar.extractall(folder, filter="data")
    store = StoreReader(folder / Path(GATEWAY_STATE).name / "store.sqlite")
    try:
        speeds = sorted(set(members.speeds.values()))
        measure = Judge(read_bundle(Folder(members.folder / "task")), speeds)
        last = [measure.accuracy(store.release(TASK, v).vector) for v in store.releases(TASK)[-LAST:]]
        again = list(replay(store, TASK))
        (task,) = status(store)
        return {
            "accuracy": fmean(fmean(by_fan.values()) for by_fan in last),
            "updates": task["updates"],
            "staleness": task["staleness"],
            "replayed": len(again),
            "differ": sum(not r.same for r in again),
        }
    finally:
        store.close()


def _hurt(engine: Engine, victims: Sequence[str]) -> dict[str, int]:
    """Kill, pause and partition by turns; what each had sent until then."""
    devices = {m["id"]: m["updates"] or 0 for m in fleet_status(engine)["members"] if m["role"] == "agent"}
    deeds = (engine.kill, engine.pause, engine.partition, engine.pause, engine.partition)
    for number, device in enumerate(victims):
        deed = deeds[number % len(deeds)]
        deed(device)
        _say(f"{device}: {deed.__name__}")
    return {device: devices[device] for device in victims}


def _heal(engine: Engine, victims: Sequence[str]) -> None:
    for device in victims:
        engine.heal(device)
        engine.resume(device)
    _say(f"{', '.join(victims)}: back")


def _returned(engine: Engine, before: dict[str, int]) -> int:
    """How many of those that were away have had a verdict since; waits for the last updates to come in."""
    until = time.monotonic() + READY_S
    while True:
        now = {m["id"]: m["updates"] or 0 for m in fleet_status(engine)["members"]}
        returned: int = sum(now[device] > updates for device, updates in before.items())
        if returned == len(before) or time.monotonic() > until:
            return returned
        time.sleep(LOOK_S)


def _task(engine: Engine) -> dict[str, Any]:
    code, out, err = engine.run(GATEWAY, ["broker-aggregator", "status", "--config", GATEWAY_CONFIG_FILE, "--json"])
    if code:
        raise ConfigError(f"the gateway does not answer: {err}", "see `fleet logs gateway`")
    (task,) = json.loads(out)
    _say(f"version {task['version']}, {task['metric']} {task['value'] or 0:.4f}")
    return dict(task)


def _problems(images: dict[str, Any], judged: dict[str, Any], training: dict[str, Any]) -> list[str]:
    agent = images["agent"]
    checks = {
        f"accuracy {judged['accuracy']:.4f}, below {ACCURACY}": judged["accuracy"] < ACCURACY,
        f"the agent's image has {agent}": agent["unpacked_mb"] > UNPACKED_MB or agent["compressed_mb"] > COMPRESSED_MB,
        f"{judged['differ']} versions are not what their updates make them": judged["differ"] > 0,
        "a second `up` changed something": training["changed_by_a_second_up"] > 0,
        "no version came out while agents were away": bool(training["hurt"])
        and training["healed_at"] <= training["hurt_at"],
        f"only {training['returned']} of {len(training['hurt'])} came back": training["returned"]
        < len(training["hurt"]),
        "an agent was restarted by the engine": any(m["restarts"] for m in training["members"]),
    }
    return [what for what, wrong in checks.items() if wrong]


def _image_table(images: dict[str, Any]) -> list[list[object]]:
    rows = [[IMAGES[role], sizes["unpacked_mb"], sizes["compressed_mb"]] for role, sizes in images.items()]
    return [["image", "MB", "MB compressed"], *rows]


def _table(result: dict[str, Any]) -> list[list[object]]:
    training, judged = result["training"], result["judged"]
    memory, peak = result["agent_memory_mb"], result["agent_peak_mb"]
    rows: list[list[object]] = [
        ["accuracy, int8, test split, last 5 versions", f"{judged['accuracy']:.2%}"],
        ["versions; updates", f"{training['version']}; {judged['updates']}"],
        ["`up`, and training", f"{training['up_s']} s, {training['training_s']} s"],
        ["an agent's memory, and its peak (VmHWM), MB", f"{memory['median']:.0f}, {peak['median']:.0f}"],
        ["the largest, MB", f"{memory['max']:.0f}, {peak['max']:.0f}"],
        ["versions made again; differ", f"{judged['replayed']}; {judged['differ']}"],
    ]
    if training["hurt"]:
        away = f"{len(training['hurt'])}, from version {training['hurt_at']} to {training['healed_at']}"
        rows += [["agents away", away], ["of them heard of again", training["returned"]]]
    return [["", ""], *rows]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=17, help="how many")
    parser.add_argument("--profile", default="pi-zero-2", choices=PROFILES, help="the board")
    parser.add_argument("--versions", type=int, default=160, help="the training ends after so many")
    parser.add_argument("--minutes", type=int, default=20, help="and after these at the latest")
    parser.add_argument("--hurt", type=int, default=0, help="so many agents are away from a fifth to three fifths")
    parser.add_argument("--seed", type=int, default=0, help="draws all training")
    parser.add_argument("--name", default="measured", help="the fleet's name")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.exit(f"error: {error}")
