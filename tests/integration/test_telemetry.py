"""What onnxruntime would tell its maker: nothing, from no program of ours. By real processes that load it."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BUNDLE = REPOSITORY / "anabranch" / "data" / "fan_vibration.bundle"
# Prints how many sockets the process has, once it has made a session and used it.
SCRIPT = """\
import os, sys
from pathlib import Path
{imports}
from fl_protocol.bundle import Bundle
graph = Bundle.read(Path(sys.argv[1]).read_bytes()).graph("float")
{opening}
assert "onnxruntime" in sys.modules
fds = [f"/proc/self/fd/{{n}}" for n in os.listdir("/proc/self/fd")]
print(sum(os.readlink(fd).startswith("socket:") for fd in fds if os.path.lexists(fd)))
"""
PROGRAMS = {
    "agent": ("from edge_agent.runtime import open_session", "session = open_session(graph, 1)"),
    "gateway": ("from broker_aggregator.evaluation import open_session", "session = open_session(graph)"),
    "workshop": (
        "import models.gates.bench as bench",
        "session = bench.onnxruntime.InferenceSession(graph, providers=['CPUExecutionProvider'])",
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_id_of_the_device_is_made_and_nobody_is_talked_to(program: str, tmp_path: Path) -> None:
    """onnxruntime 1.32 writes an id and a queue of events into the user's home when it is imported."""
    imports, opening = PROGRAMS[program]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}  # no CI: it is quiet
    script = SCRIPT.format(imports=imports, opening=opening)
    done = subprocess.run(
        [sys.executable, "-c", script, str(BUNDLE)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0\n"
    assert [path for path in tmp_path.rglob("*") if "onnxruntime" in str(path).lower()] == []
