"""A signing key on disk: 32 bytes of seed in hex, mode 0600, written durably."""

import os
from pathlib import Path

from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError
from fl_protocol.signing import SigningKey


def write_key(path: Path, seed: bytes) -> None:
    """Replace the key at `path`; on the disk when this returns. Raises `OSError`."""
    write_durably(path, seed.hex().encode() + b"\n", mode=0o600)


def load_or_create_key(path: Path) -> SigningKey:
    """The key at `path`, made there first if there is none. Raises `ConfigError` for a file that is no key."""
    try:
        if not path.exists():
            write_key(path, os.urandom(32))
        return SigningKey(bytes.fromhex(path.read_text().strip()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a readable Ed25519 key: {error}", "restore it from a backup, or delete it to make a new one"
        ) from None
