"""The fleet's key on disk, and the chain that leads to it from the keys before.

`fleet.key` alone says which key is the fleet's: replacing it is the moment of a rotation. `fleet.chain`, beside it, is
written before; a last link that leads to no key of ours was never announced, and is dropped.
"""

import os
from pathlib import Path

from fl_protocol.codec import decode_as, encode
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.keyfile import load_or_create_key, write_key
from fl_protocol.messages import FleetKeys
from fl_protocol.signing import SigningKey
from fl_protocol.succession import hand_over

CHAIN = "fleet.chain"


class Keyring:
    """The key that signs now; without a `path` it is kept in memory alone."""

    def __init__(self, key: SigningKey, chain: FleetKeys | None = None, path: Path | None = None) -> None:
        self.key, self.chain, self._path = key, chain, path

    @classmethod
    def load(cls, path: Path) -> "Keyring":
        """The keyring of the key file `path`, made there if there is none. Raises `ConfigError`."""
        return cls(load_or_create_key(path), load_chain(path), path)

    def rotate(self, fleet: str) -> None:
        """The next key is the fleet's: on the disk when this returns. Raises `OSError`; then the old one still is."""
        seed = os.urandom(32)
        following = SigningKey(seed)
        chain = hand_over(self.chain, self.key, following, fleet)
        if self._path is not None:
            write_durably(self._path.with_name(CHAIN), encode(chain))
            write_key(self._path, seed)
        self.key, self.chain = following, chain


def load_chain(path: Path) -> FleetKeys | None:
    """The chain that leads to the key in the file `path`; None before the first rotation. Raises `ConfigError`."""
    beside = path.with_name(CHAIN)
    if not beside.exists():
        return None
    public = load_or_create_key(path).public
    try:
        chain = decode_as(FleetKeys, beside.read_bytes())
        if chain.keys[-1] != public and len(chain.signatures) > 0:  # a rotation ended before its key was on the disk
            chain = FleetKeys(first=chain.first, keys=chain.keys[:-1], signatures=chain.signatures[:-1])
    except (OSError, ProtocolError) as error:
        raise ConfigError(f"cannot read {beside}: {error}", "restore it from a backup, with fleet.key") from None
    if chain.keys[-1] != public:
        raise ConfigError(f"{beside} does not lead to {path.name}", "restore both from one backup")
    return chain if chain.signatures else None
