"""Someone who follows a page of the docs: writes its files, runs its commands, in their order."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT, Block
from tests.support.mosquitto import free_port

PORT = "1884"  # on the pages
PROGRAMS = {"anabranch": "anabranch", "edge-agent": "edge_agent", "broker-aggregator": "broker_aggregator"}


class Reader:
    """Someone who follows the page in a folder of their own; all that they started ends with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, str(free_port())
        commands = folder.parent / "bin"
        commands.mkdir()
        for name, package in PROGRAMS.items():  # as installed; the tests may run from a checkout that is not
            (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {package} "$@"\n')
            (commands / name).chmod(0o755)
        path = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"]
        self.environment = {**os.environ, "PATH": ":".join(path), "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        # The group that every command joins; it ends when we close its input.
        self.leader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, process_group=0)

    def follow(self, block: Block, seconds: float = 60) -> str:
        """Write the block's file or run its commands; what they print."""
        body = block.body.replace(PORT, self.port)
        if block.file:
            (self.folder / block.file).write_text(body)
        if not block.runs:
            return ""
        return self.run(body, seconds)

    def run(self, commands: str, seconds: float = 60) -> str:
        """What the commands print; each must end well."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            process_group=self.leader.pid,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def leave(self) -> None:
        """End all that was started."""
        os.killpg(self.leader.pid, signal.SIGKILL)
        self.leader.wait()
