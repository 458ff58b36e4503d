"""A large object across a broker that takes small packets only, both ways: bytes, goodput, memory, and what dies.

Two processes with the real transport, mosquitto between them with packets of 128 KB at most. First over a link of 20
Mbit/s between two network namespaces (needs root), with a disconnect of either end in each tenth of the way and a
receiver's network that reorders and doubles; against a publisher of 1 MB packets on an uncapped broker over the same
link. Then on this machine's loopback with kill -9 of both ends on the way. Exits with 1 when a claim does not hold.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from figures import parse_arguments, print_result, setting
from paho.mqtt.enums import CallbackAPIVersion

from fl_protocol.errors import ConfigError
from fl_protocol.file_source import sha256_of

PORT, CAP = 21883, 131_072
HERE = Path(__file__).parent
START = f"import sys; sys.path.insert(0, {str(HERE)!r}); import transfer_ends as ends; sys.exit(ends.main())"
PAGE = HERE.parent / "docs" / "bench-transfer.md"
PATIENCE_S = 600.0
IDLE_S, SYS_S = 3.0, 1
CUTS = [tenth / 10 - 0.05 for tenth in range(1, 11)]  # where an end is disconnected: in each tenth of the way
KILLS = [("device", 0.35), ("gateway", 0.65)]
MAX_RATIO, MAX_GROWTH_MB, MIN_GOODPUT = 1.10, 4.0, 0.8
NAMES = {"up": "up", "down": "down", "big": "reference, up", "gib": "reference, down"}


def run(*command: str) -> None:
    """A command that must work."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{' '.join(command)}: {done.stderr.strip()}", "root and iproute2, or --no-link")


@contextmanager
def link(mbit: float) -> Iterator[dict[str, list[str]]]:
    """A device's and a gateway's namespace, `mbit` Mbit/s between them each way; what goes before their commands."""
    spaces = {end: f"bench-{end}" for end in ("device", "gateway")}
    with ExitStack() as stack:
        for space in spaces.values():
            run("ip", "netns", "add", space)
            stack.callback(run, "ip", "netns", "del", space)
            run("ip", "-n", space, "link", "set", "lo", "up")
        run(
            "ip",
            "link",
            "add",
            "bd",
            "netns",
            spaces["device"],
            "type",
            "veth",
            "peer",
            "bg",
            "netns",
            spaces["gateway"],
        )
        for space, device, address in ((spaces["device"], "bd", "10.99.0.1"), (spaces["gateway"], "bg", "10.99.0.2")):
            run("ip", "-n", space, "address", "add", f"{address}/24", "dev", device)
            run("ip", "-n", space, "link", "set", device, "up")
            shape = ("tbf", "rate", f"{mbit:g}mbit", "burst", "32kb", "latency", "100ms")
            run("tc", "-n", space, "qdisc", "add", "dev", device, "root", *shape)
        yield {end: ["ip", "netns", "exec", space] for end, space in spaces.items()}


@contextmanager
def broker(folder: Path, settings: str, prefix: list[str], host: str) -> Iterator[None]:
    """A mosquitto beside the gateway."""
    folder.mkdir()
    conf = folder / "mosquitto.conf"
    conf.write_text(
        f"listener {PORT} {host}\nallow_anonymous true\nuser root\nset_tcp_nodelay true\n"
        f"sys_interval {SYS_S}\n{settings}\n"
    )
    process = subprocess.Popen([*prefix, "mosquitto", "-c", str(conf)], stderr=subprocess.DEVNULL)
    try:
        time.sleep(1.0)
        if process.poll() is not None:
            raise ConfigError("mosquitto does not start", f"is port {PORT} free?")
        yield
    finally:
        process.terminate()
        process.wait()


class Meter:
    """What the broker took from all its clients, by its own count: no kill of a sender hides what it had sent."""

    def __init__(self, host: str) -> None:
        self._said = 0
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, "meter")
        self._client.on_message = self._heard
        self._client.connect(host, PORT)
        self._client.subscribe("$SYS/broker/bytes/received")
        self._client.loop_start()

    def _heard(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        self._said = int(message.payload)

    def read(self) -> int:
        """Bytes, once its next figures are out."""
        time.sleep(2.5 * SYS_S)
        return self._said

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class End:
    """A worker process that can be killed and started again; its figures add up over its lives."""

    def __init__(self, name: str, command: list[str], status: Path) -> None:
        self.name, self._command, self._status = name, command, status
        self.peak_mb, self._past = 0.0, {"bytes_sent": 0.0, "waited_s": 0.0, "disconnects": 0.0, "cpu_s": 0.0}
        self.start()

    def start(self) -> None:
        self._status.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command)

    def look(self) -> dict[str, Any]:
        """What it last said of itself, with the sums of its earlier lives."""
        if self._process.poll() not in (None, 0):
            raise ConfigError(f"{self.name} has ended with {self._process.returncode}", "see above")
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
            self.peak_mb = max(self.peak_mb, next(int(line.split()[1]) / 1024 for line in lines if "VmHWM" in line))
        said = json.loads(self._status.read_text()) if self._status.exists() else {}
        said = {"connected": False, "done": False, "progress": 0.0, **said}
        return {**said, **{name: said.get(name, 0) + past for name, past in self._past.items()}}

    def kill(self) -> None:
        """kill -9."""
        said = self.look()
        self._past = {name: said[name] for name in self._past}
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self.look()
        self._process.terminate()
        self._process.wait()


def disconnect(prefix: list[str], host: str, client: str) -> None:
    """The broker ends this client's connection: somebody else says that he is it, and leaves at once."""
    code = (
        "import paho.mqtt.client as p\n"
        "from paho.mqtt.properties import Properties\n"
        "keep = Properties(1)\nkeep.SessionExpiryInterval = 3600\n"
        f"c = p.Client(p.CallbackAPIVersion.VERSION2, {client!r}, protocol=p.MQTTv5)\n"
        f"c.connect({host!r}, {PORT}, clean_start=False, properties=keep)\n"
        "while not c.is_connected(): c.loop(0.05)\n"
        "c.disconnect()\nc.loop(0.05)\n"
    )
    run(*prefix, sys.executable, "-c", code)


def idle_mb(way: str, end: str, command: list[str], status: Path) -> float:
    """The peak of the same process, connected, when nobody answers."""
    idle = End(f"idle {way}-{end}", command, status)
    until = time.monotonic() + PATIENCE_S
    while not idle.look()["connected"] and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(IDLE_S)
    idle.stop()
    return idle.peak_mb


def across(
    way: str, folder: Path, data: Path, prefixes: dict[str, list[str]], host: str, *, cuts: bool, kills: bool, seed: int
) -> dict[str, Any]:
    """One object from one end to the other; what it took."""
    sender, receiver = ("device", "gateway") if way in ("up", "big") else ("gateway", "device")
    sha256, size = sha256_of(data), data.stat().st_size
    commands: dict[str, list[str]] = {}
    for end in (sender, receiver):
        (folder / end).mkdir(parents=True)
        words = [str(folder / end), str(folder / f"{end}.json"), host, str(PORT), sha256, str(size)]
        evil = ["--seed", str(seed)] if cuts and end == receiver else []
        commands[end] = [*prefixes[end], sys.executable, "-c", START, f"{way}-{end}", *words, *evil]
    (folder / sender / "object").symlink_to(data)
    idle = {end: idle_mb(way, end, command, folder / f"{end}.json") for end, command in commands.items()}
    for end in (sender, receiver):  # what an idle one left
        for path in (folder / end).glob("*.records"):
            path.unlink()
    meter = Meter(host) if kills else None
    before = meter.read() if meter else 0
    ends = {receiver: End(receiver, commands[receiver], folder / f"{receiver}.json")}
    while not ends[receiver].look()["connected"]:
        time.sleep(0.05)
    ends[sender] = End(sender, commands[sender], folder / f"{sender}.json")
    try:
        began, ended = carry(ends, ends[receiver], prefixes, host, CUTS if cuts else [], KILLS if kills else [])
        time.sleep(0.5)
        said = {end: ends[end].look() for end in ends}
        sent = meter.read() - before if meter else said[sender]["bytes_sent"]
    finally:
        if meter:
            meter.close()
        for each in ends.values():
            each.stop()
    waited_s = sum(each["waited_s"] for each in said.values())
    result = {
        "way": NAMES[way],
        "killed": kills,
        "bytes_over_size": sent / size,
        "seconds": ended - began,
        "waited_s": waited_s,
        "disconnects": sum(each["disconnects"] for each in said.values()),
        "goodput_mbit": size * 8e-6 / (ended - began - waited_s),
        "growth_mb": {end: ends[end].peak_mb - idle[end] for end in ("device", "gateway")},
        "idle_mb": idle,
        "cpu_s": {end: said[end]["cpu_s"] for end in ("device", "gateway")},
    }
    if way in ("up", "down"):
        whole = folder / receiver / sha256
        result["sha256_right"] = whole.exists() and sha256_of(whole) == sha256
        result["left_over"] = sorted(path.name for path in (folder / receiver).iterdir() if path.name != sha256)
    return result


def carry(
    ends: dict[str, End],
    receiver: End,
    prefixes: dict[str, list[str]],
    host: str,
    cuts: list[float],
    kills: list[tuple[str, float]],
) -> tuple[float, float]:
    """When the first byte was there and when the last; ends are disconnected, and killed, where that is due."""
    began, until, cut, killed = 0.0, time.monotonic() + PATIENCE_S, 0, 0
    while True:
        now, said = time.monotonic(), receiver.look()
        began = began or (now if said["progress"] > 0 else 0.0)
        if said["done"]:
            return began, now
        if now > until:
            raise ConfigError(f"not across within {PATIENCE_S:.0f} s, at {said['progress']:.0%}", "a faster link")
        if cut < len(cuts) and said["progress"] > cuts[cut]:
            disconnect(prefixes["gateway"], host, ("ann", "gateway")[cut % 2])
            cut += 1
        if killed < len(kills) and said["progress"] > kills[killed][1]:
            ends[kills[killed][0]].kill()
            ends[kills[killed][0]].start()
            killed += 1
        for end in ends.values():
            end.look()
        time.sleep(0.02)


def tables(result: dict[str, Any]) -> list[list[list[object]]]:
    """Rows for people, the first row the heads."""
    head: list[object] = ["", "SHA-256", "bytes/size", "disconnects", "killed", "waited, s", "Mbit/s", "of reference"]
    rows = [head]
    growth: list[list[object]] = [["MB above an idle process", "device", "gateway", "idle device", "idle gateway"]]
    for run_ in result["runs"]:
        name = f"{run_['way']}, {run_['where']}"
        right = {True: "right", False: "WRONG", None: "-"}[run_.get("sha256_right")]
        share = f"{run_['of_reference']:.0%}" if "of_reference" in run_ else "-"
        rows.append(
            [
                name,
                right,
                f"{run_['bytes_over_size']:.3f}",
                run_["disconnects"],
                "both ends" if run_["killed"] else "-",
                f"{run_['waited_s']:.1f}",
                f"{run_['goodput_mbit']:.2f}",
                share,
            ]
        )
        cells = [f"{run_[kind][end]:.1f}" for kind in ("growth_mb", "idle_mb") for end in ("device", "gateway")]
        growth.append([name, *cells])
    return [rows, growth]


def claims(result: dict[str, Any]) -> list[str]:
    """What does not hold."""
    broken = []
    for run_ in result["runs"]:
        if "sha256_right" not in run_:
            continue
        name = f"{run_['way']}, {run_['where']}"
        if not run_["sha256_right"] or run_["left_over"]:
            broken.append(f"{name}: not the object alone")
        if run_["bytes_over_size"] > MAX_RATIO:
            broken.append(f"{name}: {run_['bytes_over_size']:.3f} times its bytes")
        if max(run_["growth_mb"].values()) >= MAX_GROWTH_MB:
            broken.append(f"{name}: {max(run_['growth_mb'].values()):.1f} MB of memory")
        if run_.get("of_reference", 1.0) < MIN_GOODPUT:
            broken.append(f"{name}: {run_['of_reference']:.0%} of the reference")
    return broken


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Over the link with the reference beside it, then on loopback."""
    data = folder / "data"
    data.write_bytes(np.random.default_rng(options.seed).bytes(int(options.mb * 1e6)))
    local: dict[str, list[str]] = {"device": [], "gateway": []}
    capped, uncapped = f"message_size_limit {CAP}\nmax_packet_size {CAP}", ""
    places = [(f"{options.mbit:g} Mbit/s", "10.99.0.2")] if options.link else []
    runs: list[dict[str, Any]] = []
    for where, host in [*places, ("loopback", "127.0.0.1")]:
        over_link = host != "127.0.0.1"
        with link(options.mbit) if over_link else ExitStack() as prefixes:
            prefixes = prefixes if isinstance(prefixes, dict) else local
            ways = [("big", uncapped), ("up", capped), ("gib", uncapped), ("down", capped)]
            for way, settings in ways if over_link else ways[1::2]:
                name = f"{way}-{where.split()[0]}"
                sys.stderr.write(f"{name}\n")
                with broker(folder / f"broker-{name}", settings, prefixes["gateway"], host):
                    ours = way in ("up", "down")
                    kills, cuts = ours and not over_link, ours and over_link
                    done = across(way, folder / name, data, prefixes, host, cuts=cuts, kills=kills, seed=options.seed)
                runs.append({"where": where, **done})
                if ours and over_link:
                    runs[-1]["of_reference"] = done["goodput_mbit"] / runs[-2]["goodput_mbit"]
                shutil.rmtree(folder / name)
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    return {"setting": setting("paho-mqtt", "numpy"), "bytes": data.stat().st_size, "sha256": digest, "runs": runs}


def write_page(result: dict[str, Any]) -> None:
    """Put the tables into the page."""
    said = result["setting"]
    text = [f"`{said['command']}`; {said['machine']}; " + ", ".join(f"{k} {v}" for k, v in said["versions"].items())]
    for head, *rows in tables(result):
        marks: list[object] = ["---" if i == 0 else "---:" for i in range(len(head))]
        lines = ("| " + " | ".join(str(cell) for cell in row) + " |" for row in (head, marks, *rows))
        text.append("\n".join(lines))
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition("<!-- bench-transfer -->")
    after = rest.partition("<!-- /bench-transfer -->")[2]
    body = "\n\n".join(text)
    PAGE.write_text(f"{before}<!-- bench-transfer -->\n{body}\n<!-- /bench-transfer -->{after}", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=100.0, help="megabytes (10^6) of the object")
    parser.add_argument("--mbit", type=float, default=20.0, help="Mbit/s of the link, each way")
    parser.add_argument("--seed", type=int, default=0, help="of the object, and of what is reordered and doubled")
    parser.add_argument("--link", action=argparse.BooleanOptionalAction, default=True, help="the namespaces too")
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{PAGE.name}")
    options = parse_arguments(parser)
    with tempfile.TemporaryDirectory(prefix="bench-transfer-") as folder:
        result = measure(options, Path(folder))
    print_result(result, tables(result), options.json)
    if options.write:
        write_page(result)
    broken = claims(result)
    for claim in broken:
        sys.stderr.write(f"does not hold: {claim}\n")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
