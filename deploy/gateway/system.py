"""The system's own programs: started by name, with their last words where they fail."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from fl_protocol.errors import ConfigError


def has_systemd() -> bool:
    """Whether systemd is this machine's init, as sd_booted(3) says."""
    return Path("/run/systemd/system").is_dir()


def run(command: Sequence[str]) -> str:
    """Run a program of the system's; its output. Raises `ConfigError` with its last words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    except FileNotFoundError:
        raise ConfigError(f"there is no {command[0]} here", "install it, or do without this --how") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"`{' '.join(command)}` did not end in two minutes", "see `journalctl -xe`") from None
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout or "").strip().splitlines()
        raise ConfigError(
            f"`{' '.join(command)}` failed: {words[-1] if words else f'status {error.returncode}'}",
            "see `journalctl -xe`",
        ) from None
    return done.stdout
