"""A release of the agent in one file: a tar of the signed manifest and the wheels that it names, nothing else.

The writer is deterministic, so the reader takes no header's word: it makes each from the manifest and compares. What is
in no manifest, such as a link, a path or a longer file, is therefore another header, and refused before it is read.
"""

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from fl_protocol.codec import MAX_JSON_BYTES, parse_json
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import MAX_OBJECT_BYTES, AgentRelease
from fl_protocol.signing import SigningKey, canonical, seal, unseal
from fl_protocol.succession import newest_key

MANIFEST = "release.json"
BOUND_TO = "agent-release"  # stands where other signatures have a topic
_BLOCK, _PIECE = 512, 1 << 18
_END = bytes(2 * _BLOCK)


class Sink(Protocol):
    """Where a file goes while it is checked."""

    def __call__(self, name: str, piece: bytes, /) -> None:
        """The next bytes of the file `name`."""


@dataclass(frozen=True)
class Checked:
    """A release that is what its signature says; `digest` is the SHA-256 of the signed manifest, and names it.

    `key` is the fleet's that signed it: the one that was believed, or one that it has handed over to.
    """

    manifest: AgentRelease
    digest: str
    key: str


def pack_release(manifest: AgentRelease, files: Mapping[str, bytes], key: SigningKey, fleet: str) -> bytes:
    """The release's bytes: the same for the same manifest and key. Raises `ProtocolError(E_SIZE)`: too many files."""
    sealed = seal(manifest, key, fleet, BOUND_TO)
    if len(sealed) > MAX_JSON_BYTES:
        raise ProtocolError(Code.SIZE, f"a manifest of {len(sealed)} bytes; at most {MAX_JSON_BYTES} are read")
    members = [(MANIFEST, sealed), *((name, files[name]) for name in sorted(manifest.files))]
    return b"".join(_header(name, len(data)) + data + _padding(len(data)) for name, data in members) + _END


def check_release(file: BinaryIO, public_key: str, fleet: str, sink: Sink | None = None) -> Checked:
    """Read all of it, once; each file goes to `sink` as it comes, which is worth nothing until this returns.

    Raises `ProtocolError`: E_SIG, E_SHA, E_SIZE, E_SCHEMA; and `OSError`.
    """
    start = _exactly(file, _BLOCK)
    try:
        size = int(start[124:135], 8)
    except ValueError:
        raise ProtocolError(Code.SCHEMA, "this is no release of the agent") from None
    if not 0 < size <= MAX_JSON_BYTES:
        raise ProtocolError(Code.SIZE, f"a manifest of {size} bytes; at most {MAX_JSON_BYTES} are read")
    _expect(start, _header(MANIFEST, size), MANIFEST)
    sealed = _exactly(file, size)
    key = newest_key(sealed, public_key, fleet)
    manifest = unseal(AgentRelease, sealed, key, fleet, BOUND_TO)
    plain = parse_json(sealed)
    assert isinstance(plain, dict)  # as it was unsealed
    # One release, one name: else one that failed here would come again in other letters.
    _expect(sealed, canonical({**plain, "sig": plain["sig"].lower()}), MANIFEST)
    if manifest.files.keys() != manifest.sizes.keys():
        raise ProtocolError(Code.SCHEMA, "the manifest's files and sizes have different names")
    if sum(manifest.sizes.values()) > MAX_OBJECT_BYTES:
        raise ProtocolError(Code.SIZE, f"more than {MAX_OBJECT_BYTES} bytes of files")
    _expect(_exactly(file, len(_padding(size))), _padding(size), MANIFEST)
    for name in sorted(manifest.files):
        _check_file(file, name, manifest.sizes[name], manifest.files[name], sink)
    if file.read(len(_END) + 1) != _END:
        raise ProtocolError(Code.SIZE, "the release does not end after its last file")
    return Checked(manifest, hashlib.sha256(sealed).hexdigest(), key)


def _check_file(file: BinaryIO, name: str, size: int, sha256: str, sink: Sink | None) -> None:
    _expect(_exactly(file, _BLOCK), _header(name, size), name)
    seen, left = hashlib.sha256(), size
    while left:
        piece = _exactly(file, min(left, _PIECE))
        seen.update(piece)
        left -= len(piece)
        if sink is not None:
            sink(name, piece)
    if seen.hexdigest() != sha256:
        raise ProtocolError(Code.SHA, f"{name} is not what the manifest says")
    _expect(_exactly(file, len(_padding(size))), _padding(size), name)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ProtocolError(Code.SIZE, "the release is cut off")
    return data


def _expect(found: bytes, expected: bytes, name: str) -> None:
    if found != expected:
        raise ProtocolError(Code.SCHEMA, f"{name}: not written as a release writes it")


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def sink_to(folder: Path) -> Sink:
    """Files into a folder that is there and empty; not synced."""

    def sink(name: str, piece: bytes) -> None:
        with (folder / name).open("ab") as out:
            out.write(piece)

    return sink
