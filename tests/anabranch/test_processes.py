"""The demo's programs: started, ended gently or not, and none left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anabranch.demo.processes import Processes
from fl_protocol.errors import ConfigError
from tests.support.waiting import wait_until

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
WITH_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
{SLEEPER}
"""
POLITE = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("up", flush=True)
signal.pause()
"""
PARENT = """
import sys
from pathlib import Path
from anabranch.demo.processes import Processes
processes = Processes(Path(sys.argv[1]))
processes.__enter__()
processes.start("child", [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
print(processes.pid("child"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def processes(tmp_path):
    """Programs that end with the test."""
    with Processes(tmp_path / "logs") as programs:
        yield programs


def python(code: str) -> list[str]:
    """A command that runs `code`."""
    return [sys.executable, "-c", code]


def up(processes: Processes, name: str) -> int:
    """The pid of a program, once it has said that it is up."""
    wait_until(lambda: processes.last_words(name) == "up", what=f"{name} is up")
    return processes.pid(name)


def alive(pid: int) -> bool:
    """Whether there is such a process, a zombie not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_leaving_the_context_ends_all(tmp_path):
    """Whatever happened inside."""
    pids = []

    def run_into_trouble(processes: Processes) -> None:
        for name in ("a", "gateway", "broker"):
            processes.start(name, python(SLEEPER))
            pids.append(up(processes, name))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Processes(tmp_path) as processes:
        run_into_trouble(processes)
    assert len(pids) == 3
    assert not any(alive(pid) for pid in pids)


def test_a_program_and_its_children_die_together(processes):
    """`kill` takes the whole group that the program leads."""
    processes.start("a", python(WITH_CHILD))
    up(processes, "a")
    child = int(processes.log("a").read_text().split()[0])
    assert alive(child)
    processes.kill("a")
    wait_until(lambda: not alive(child), what="the grandchild is gone")


def test_a_gentle_end_is_told_with_its_code(processes):
    """SIGTERM reaches the program, and its exit code comes back."""
    processes.start("a", python(POLITE))
    up(processes, "a")
    (ended,) = processes.stop(["a", "never started"])
    assert (ended.name, ended.code, ended.last_words) == ("a", 7, "up")


def test_one_that_does_not_end_is_killed(processes, monkeypatch):
    """After the grace period there is no more asking."""
    monkeypatch.setattr("anabranch.demo.processes.GRACE_S", 0.2)
    processes.start("a", python(STUBBORN))
    pid = up(processes, "a")
    (ended,) = processes.stop(["a"])
    assert ended.code == -signal.SIGKILL
    assert not alive(pid)


def test_a_program_that_falls_is_noticed_once(processes):
    """With its code and its last words."""
    processes.start("a", python("print('first'); print('the reason'); raise SystemExit(3)"))
    (fallen,) = wait_until(processes.fallen, what="the fall is noticed")
    assert (fallen.name, fallen.code, fallen.last_words) == ("a", 3, "the reason")
    assert processes.fallen() == []
    assert not processes.runs("a")


def test_a_command_that_fails_or_hangs_is_the_operators_to_know(processes):
    """`run` raises with the last words; success says nothing."""
    processes.run("good", python("print('done')"), timeout=30)
    with pytest.raises(ConfigError, match="exit code 4: the reason"):
        processes.run("bad", python("print('the reason'); raise SystemExit(4)"), timeout=30)
    with pytest.raises(ConfigError, match="no end within 0 s"):
        processes.run("slow", python(SLEEPER), timeout=0.2)
    assert not processes.runs("slow")


def test_usage_is_what_proc_says(processes):
    """Peak memory in megabytes, and seconds of processor that grow with work."""
    processes.start("a", python(f"sum(range(3_000_000)); data = b'x' * 50_000_000; del data; {SLEEPER}"))
    up(processes, "a")
    usage = processes.usage("a")
    assert 50 < usage.peak_mb < 200
    assert 0.01 < usage.cpu_s < 30
    assert processes.usage("never started") is None


def test_settings_of_another_fleet_do_not_reach_the_programs(processes, monkeypatch):
    """ANABRANCH_SECTION__KEY in the environment would win over the demo's own files."""
    monkeypatch.setenv("ANABRANCH_BROKER__HOST", "elsewhere")
    monkeypatch.setenv("ANABRANCH_DATASETS", "here")
    processes.run("env", python("import os; print(*(k for k in os.environ if k.startswith('ANABRANCH')))"), timeout=30)
    assert processes.last_words("env") == "ANABRANCH_DATASETS"


def test_ctrl_c_does_not_reach_the_programs_by_itself(processes):
    """Each leads a session of its own: the demo decides who ends, and in which order."""
    processes.start("a", python(SLEEPER))
    pid = up(processes, "a")
    assert os.getsid(pid) == pid != os.getsid(0)


def test_kill_9_of_the_parent_ends_the_children(tmp_path):
    """Nobody is left even when there was no time for a goodbye (PR_SET_PDEATHSIG)."""
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        wait_until(lambda: not alive(pid), what="the child is gone")
