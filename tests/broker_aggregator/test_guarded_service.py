"""A guarded task over a real broker, by the command line: poison is withheld, looked at, and gone back from."""

import json
import signal
from pathlib import Path

import numpy as np

from anabranch.datasets.fan_vibration import load_all
from fl_protocol.bundle import Bundle
from fl_protocol.compression import make_compressor
from fl_protocol.keyfile import load_or_create_key
from fl_protocol.messages import Manifest
from fl_protocol.signing import unseal
from fl_protocol.topics import Kind, build
from tests.broker_aggregator.test_service import (
    BUNDLE_FILE,
    FAN,
    command,
    config_file,
    fan,
    run_gateway,
    sound_update,
)
from tests.support.fleet import FLEET

__all__ = ["config_file", "fan"]  # fixtures


def said(done) -> object:
    """What a command printed as JSON."""
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_poisonous_update_is_withheld_and_gone_back_from(config_file, fan, tmp_path: Path):
    """Versions 0, 1; 2 is withheld and 3 is 1 again; `rollback` makes 4 of the best measured, which is 1 or 0."""
    x, y = load_all((20, 60)).validation
    np.savez_compressed(tmp_path / "held-out.npz", x=x, y=y)
    task = tmp_path / "task.toml"
    task.write_text(
        f'task = "fan"\nbundle = "{BUNDLE_FILE}"\nevaluation = "held-out.npz"\nstart = true\n[plan]\nbuffer = 1\n'
        "norm_limit = 1e6\n[plan.guard]\nmargin = 0.05\n"
    )
    gateway = run_gateway(config_file)
    bundle = Bundle.read(BUNDLE_FILE.read_bytes())
    assert command(config_file, "task", "create", str(task)).returncode == 0
    key = load_or_create_key(tmp_path / "gw" / "fleet.key").public
    topic = build(Kind.MANIFEST, FLEET, task="fan", channel="stable")

    def versions() -> list[int]:
        return [unseal(Manifest, payload, key, FLEET, topic).version for payload in fan.of(Kind.MANIFEST) if payload]

    fan.update(sound_update(bundle, 1, 0))
    fan.until(lambda: 1 in versions(), "a version that is measured and good", 60)
    codec = {"name": "none"}
    poison = np.random.default_rng(0).normal(size=bundle.layout.num_parameters).astype(np.float32)
    payload = make_compressor(codec, bundle.layout).compress(10 * poison, np.random.default_rng(0))
    fan.update(sound_update(bundle, 2, 1, codec=codec, payload=payload))
    fan.until(lambda: 3 in versions(), "what was before, once more", 60)
    assert 2 not in versions()

    (status,) = said(command(config_file, "status", "--json"))
    states = {r["version"]: r["state"] for r in status["releases"]}
    assert states == {0: "released", 1: "released", 2: "withheld", 3: "released"}
    assert (status["version"], status["withheld"], status["canary"]) == (3, 1, None)
    (row,) = said(command(config_file, "quarantine", "fan", "--json"))
    assert (row["device"], row["base_version"], row["version"], row["kept"]) == (FAN, 1, 2, True)
    assert "version 2 withheld: accuracy" in row["why"]
    assert said(command(config_file, "quarantine", "fan", "--json", "--export", str(tmp_path / "q.npz"))) == [row]
    with np.load(tmp_path / "q.npz", allow_pickle=False) as file:
        assert np.array_equal(file["delta"], 10 * poison[None])
        assert (file["device"][0], file["version"][0]) == (FAN, 2)
    assert FAN in command(config_file, "quarantine").stdout

    refused = command(config_file, "task", "rollback", "fan", "--to", "2")
    assert (refused.returncode, "was never released" in refused.stderr) == (2, True)
    done = said(command(config_file, "task", "rollback", "fan", "--json"))
    assert done["message"].startswith("version 4 has the parameters of version")
    fan.until(lambda: 4 in versions(), "the version that was gone back to", 30)
    assert said(command(config_file, "replay", "fan", "--json"))["differ"] == []
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(10) == 0
