"""`edge-agent`: run the device, or look at what it has. argparse and no more: a device's disk is small."""

import argparse
import errno
import fcntl
import json
import logging
import math
import os
import shutil
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.agent import Agent
from edge_agent.board import Board
from edge_agent.config import AgentConfig, TrainingConfig, load_config, load_enrollment, state_directory
from edge_agent.configuring import AgentSettings
from edge_agent.data import look_at_data, open_data
from edge_agent.data_commands import add_data_commands
from edge_agent.health import read_sensors, read_vitals
from edge_agent.identity import Identity, describe, load_key, software_version
from edge_agent.inference import Predictor
from edge_agent.limits import cores, free_memory_mb, hold_memory
from edge_agent.logs import LEAVES, LogRing, log_to_stderr
from edge_agent.metered import MeteredLink
from edge_agent.notify import Notifier
from edge_agent.objects import Objects
from edge_agent.outbox import Outbox
from edge_agent.release_spool import ReleaseSpool
from edge_agent.runtime import Runtime
from edge_agent.service import Service
from edge_agent.sources import InputSpec
from edge_agent.trainer import OnnxTrainer
from edge_agent.update_command import add_update_command
from edge_agent.worker import ThreadWorker
from fl_protocol.bundle import Bundle
from fl_protocol.connecting import transport_to
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.keyfile import load_or_create_key
from fl_protocol.mqtt import MqttTransport
from fl_protocol.tensors import Vector
from fl_protocol.transport import Connected, Disconnected, WillOf

if TYPE_CHECKING:
    from edge_agent.renewing import Renewal

CHECK_S = 10.0  # what `check` gives the broker to answer
log = logging.getLogger("edge_agent")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it did what it says, 2 when the operator has something to mend."""
    options = _parser().parse_args(arguments)
    command: Callable[[AgentConfig, argparse.Namespace], int] = options.command
    try:
        if command in (_run, _enroll) and not _enrolled(options):
            return 0  # asked to stop before it was
        return command(load_config(options.config, os.environ), options)
    except (ConfigError, ProtocolError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-agent", description="Federated learning over MQTT: the device.")
    parser.add_argument("--version", action="version", version=f"edge-agent {software_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, description in (
        ("run", _run, "train, predict and report until asked to end (SIGTERM, Ctrl-C)"),
        ("enroll", _enroll, "get a certificate by the ticket in [enroll], and end; `run` does so by itself"),
        ("check", _check, "say what the configuration means here: data, disk, broker; changes nothing"),
        ("identity", _identity, "print id, fleet and public key; the key is made if there is none"),
        ("ledger", _ledger, "print the verdicts that this device's updates got"),
    ):
        sub = commands.add_parser(name, help=description, description=description)
        sub.add_argument("--config", type=Path, required=True, metavar="FILE", help="TOML; see docs/quickstart.md")
        sub.add_argument("--json", action="store_true", help="for programs: JSON, of logs one object a line")
        if name == "check":
            sub.add_argument("--bundle", type=Path, metavar="FILE", help="hold the data against this model's bundle")
        sub.set_defaults(command=command)
    add_data_commands(commands, _alone)
    add_update_command(commands)
    return parser


def _enrolled(options: argparse.Namespace) -> bool:
    """See to it that the device has a certificate, where it is to get one by a ticket. False: asked to stop first."""
    section = load_enrollment(options.config, os.environ)
    if section is None:
        return True
    from edge_agent.enrolling import enroll, is_enrolled

    if is_enrolled(section):
        return True
    log_to_stderr("info", as_json=options.json)
    state_dir = options.config.resolve().parent / state_directory(options.config, os.environ)
    with _alone(state_dir):
        return enroll(
            section, load_or_create_key(state_dir / "device.key"), _until_asked_to_end(), Notifier(os.environ)
        )


def _until_asked_to_end() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _enroll(config: AgentConfig, options: argparse.Namespace) -> int:
    return _identity(config, options)


def _run(config: AgentConfig, options: argparse.Namespace) -> int:
    log_ring = LogRing()
    log_to_stderr(config.log.level, as_json=options.json or config.log.json, ring=log_ring)
    with _alone(config.device.state_dir):
        outbox = Outbox(config.device.state_dir / "outbox.sqlite3")
        restored = outbox.start()
        identity = Identity(
            config.device.id,
            config.device.fleet,
            load_key(config),
            config.gateway.public_key,
            restored.incarnation,
            restored.boot,
        )
        settings = AgentSettings(
            gate=config.gate,
            budget=config.budget,
            predict_s=config.inference.interval_s,
            health_s=config.health.publish_s,
            state_s=config.health.state_s,
            measure_s=config.health.measure_s,
            log_level=config.log.level,
        )
        rng = np.random.default_rng(config.training.seed)
        training, runtime = config.training, _runtime(config.training)
        metered, board = MeteredLink(config.budget.metered), Board(config.device.state_dir)
        stop = _until_asked_to_end()
        data = open_data(config, failed=stop.set)
        objects = Objects(config.device.state_dir / "objects")
        releases = ReleaseSpool(
            config.device.state_dir, identity.fleet, Path(os.environ.get("ANABRANCH_ROOT") or "/").absolute()
        )
        tls = config.broker.tls()
        agent = Agent(
            identity,
            describe(identity, releases.installed),
            settings,
            restored,
            rng,
            parts=objects.parts,
            release_parts=releases.parts,
        )
        service = Service(
            agent,
            _transport(config, identity.will, tls=tls),
            outbox,
            objects,
            data.source,
            ThreadWorker(_trainers(training, runtime)),
            lambda: read_sensors(board, metered=config.broker.metered or metered()),
            broker="the broker at {}:{}".format(*config.broker.address),
            measure_s=config.health.measure_s,
            make_predictor=_predictors(training, runtime),
            tell_numbers=config.inference.tell_numbers,
            vitals=lambda: replace(read_vitals(), provider=runtime.in_use),
            renewal=_renewal(config, identity, tls, lambda: agent.fleet_key),
            notifier=Notifier(os.environ),
            forget=data.forgettable.forget if data.forgettable else None,
            log_ring=log_ring,
            releases=releases,
        )
        log.info("%s of fleet %s, start %d", identity.device, identity.fleet, identity.boot, extra=LEAVES)
        try:
            log.info("%s", data.source.summary())
        except ConfigError as error:
            log.warning("%s", error)
        data.start()
        try:
            service.run(stop)
        finally:
            data.close()
        log.info("ended", extra=LEAVES)
    return 0


def _runtime(training: TrainingConfig) -> Runtime:
    return Runtime(None if training.threads == "auto" else training.threads, training.provider)


def _hold_memory(training: TrainingConfig) -> float:
    """From now on, hold this process to what the operator allows, or to what is free; megabytes in all."""
    used_mb = read_vitals().memory_mb
    allowed_mb = min(free_memory_mb(), training.memory_mb - used_mb if training.memory_mb else math.inf)
    hold_memory(max(0.0, allowed_mb))
    return used_mb + max(0.0, allowed_mb)


def _trainers(training: TrainingConfig, runtime: Runtime) -> Callable[[Bundle], OnnxTrainer]:
    def make(bundle: Bundle) -> OnnxTrainer:
        _hold_memory(training)  # before its graphs are loaded: that computes what is constant in them
        return OnnxTrainer(
            bundle,
            runtime,
            training.duty_cycle,
            max_batch=training.max_batch,
            hold_memory=lambda: _hold_memory(training),
        )

    return make


def _predictors(training: TrainingConfig, runtime: Runtime) -> Callable[[Bundle, Vector, Vector], Predictor]:
    def make(bundle: Bundle, version: Vector, personal: Vector) -> Predictor:
        _hold_memory(training)
        return Predictor(bundle, version, personal, runtime.threads_for(bundle.layout.num_parameters))

    return make


def _check(config: AgentConfig, options: argparse.Namespace) -> int:
    findings: dict[str, object] = {"device": config.device.id, "fleet": config.device.fleet}
    problems: list[ConfigError | ProtocolError] = []

    def find(name: str, look: Callable[[], object]) -> None:
        try:
            findings[name] = look()
        except (ConfigError, ProtocolError) as error:
            problems.append(error)
            findings[name] = "not as it should be, see below"

    find("state", lambda: _writable(config.device.state_dir))
    find("data", lambda: _look_at_data(config, options.bundle))
    find("training", lambda: _look_at_machine(config.training))
    find("broker", lambda: _reach(config))
    if options.json:
        _print_json({**findings, "problems": [{"message": p.message} for p in problems]})
    else:
        _print_table(findings)
        for problem in problems:
            sys.stderr.write(f"error: {problem}\n")
    return 2 if problems else 0


def _identity(config: AgentConfig, options: argparse.Namespace) -> int:
    outbox = Outbox(config.device.state_dir / "outbox.sqlite3")
    facts = {
        "id": config.device.id,
        "fleet": config.device.fleet,
        "public_key": load_key(config).public,
        "incarnation": outbox.incarnation(),
    }
    outbox.close()
    _print_json(facts) if options.json else _print_table(facts)
    return 0


def _ledger(config: AgentConfig, options: argparse.Namespace) -> int:
    outbox = Outbox(config.device.state_dir / "outbox.sqlite3")
    rows = outbox.ledger()
    outbox.close()
    if options.json:
        _print_json(rows)
    else:
        for row in rows:
            sys.stdout.write("  ".join(f"{name} {value}" for name, value in row.items() if value != "") + "\n")
    return 0


def _transport(config: AgentConfig, will: WillOf | None, suffix: str = "", **options: Any) -> MqttTransport:
    return transport_to(config.broker, f"{config.device.fleet}.{config.device.id}{suffix}", will, **options)


def _renewal(
    config: AgentConfig, identity: Identity, tls: ssl.SSLContext | None, fleet_key: Callable[[], str]
) -> "Renewal | None":
    """Where the certificate came by a ticket, and may be renewed."""
    if config.enroll is None or tls is None or config.broker.certificate is None:
        return None
    if config.broker.certificate.parent != config.enroll.directory:
        return None  # it was brought along
    from edge_agent.renewing import Renewal

    return Renewal(config.enroll.directory, tls, identity.key, identity.fleet, identity.device, fleet_key)


@contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """One agent a state directory: two would spend each other's sequence numbers. Raises `ConfigError`."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise _unusable(state_dir, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another agent runs with {state_dir}", "stop it, or give this one its own `state_dir` in [device]"
            ) from None
        yield


def _unusable(state_dir: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot use {state_dir}: {error.strerror}",
        "set `state_dir` in [device] to a directory that this user may write",
    )


def _writable(state_dir: Path) -> str:
    """Where the state is or will be, and how much room there is. Raises `ConfigError`."""
    existing = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise _unusable(state_dir, PermissionError(errno.EACCES, "not a writable directory"))
    return f"{state_dir}, {shutil.disk_usage(existing).free / 2**20:.0f} MB free"


def _look_at_data(config: AgentConfig, bundle: Path | None) -> str:
    """What there is to train on, held against a bundle if there is one. Raises `ConfigError | ProtocolError`."""
    if bundle is None:
        return look_at_data(config, None)
    try:
        spec = InputSpec.of(Bundle.read(bundle.read_bytes()))
    except OSError as error:
        raise ConfigError(f"cannot read {bundle}: {error.strerror}", "name a bundle's file") from None
    return look_at_data(config, spec, bundle.name)


def _look_at_machine(training: TrainingConfig) -> str:
    """What training runs on, and the memory that it may take."""
    threads = training.threads if training.threads != "auto" else f"1 to {cores()}"
    free_mb = free_memory_mb()
    allowed_mb = min(free_mb, training.memory_mb) if training.memory_mb else free_mb
    return f"on {_runtime(training).name}, {threads} threads, {allowed_mb:.0f} MB allowed"


def _reach(config: AgentConfig) -> str:
    """What the broker says to a CONNECT under another client id than the agent's. Raises `ConfigError`."""
    transport = _transport(config, None, suffix=".check")
    where = f"{config.broker.address[0]}:{config.broker.address[1]}"
    deadline, reason = time.monotonic() + CHECK_S, f"no answer within {CHECK_S:.0f} s"
    transport.start()
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            for event in transport.receive(left_s):
                match event:
                    case Connected(limits=limits):
                        return f"{where} answers, MQTT {limits.version}, packets up to {limits.max_packet} bytes"
                    case Disconnected(reason=word) if "is tried next" not in word:
                        raise ConfigError(
                            f"cannot use the broker at {where}: {word}", "mend [broker], or see that the broker runs"
                        )
                    case Disconnected(reason=word):
                        reason = word
    finally:
        transport.close()
    raise ConfigError(f"cannot use the broker at {where}: {reason}", "mend [broker], or see that the broker runs")


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _print_table(facts: Mapping[str, object]) -> None:
    for name, value in facts.items():
        sys.stdout.write(f"{name:<12} {value}\n")


if __name__ == "__main__":
    sys.exit(main())
