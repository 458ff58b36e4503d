"""Releases of the agent, for this machine unless told otherwise."""

import hashlib
import platform
import sys
from collections.abc import Mapping

from fl_protocol.messages import AgentRelease
from fl_protocol.signing import SigningKey

FLEET, KEY = "demo", SigningKey(bytes(range(32)))
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
PYTHON = ".".join(map(str, sys.version_info[:2]))


def manifest_of(files: Mapping[str, bytes], number: int, **changes: object) -> AgentRelease:
    """The manifest of these files."""
    fields = {
        "version": "2",
        "arch": ARCH,
        "python": PYTHON,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "sizes": {name: len(data) for name, data in files.items()},
        "counter": number,
    }
    return AgentRelease(**{**fields, **changes})  # type: ignore[arg-type]
