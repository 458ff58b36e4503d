"""A release's reader: what is brought to it is what the signature says, or a ProtocolError; little is read at once."""

import contextlib
import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_protocol import agent_release
from fl_protocol.agent_release import MANIFEST, check_release, pack_release, sink_to
from fl_protocol.codec import MAX_JSON_BYTES
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import MAX_OBJECT_BYTES, AgentRelease
from fl_protocol.signing import SigningKey, seal
from tests.support.releases import FLEET, KEY, manifest_of

FILES = {"anabranch-2-py3-none-any.whl": b"ours" * 300, "numpy-1.whl": bytes(513), "pip-1-py3-none-any.whl": b"p"}
MANIFEST_OF = manifest_of(FILES, 7)
WHOLE = pack_release(MANIFEST_OF, FILES, KEY, FLEET)


class Watched(io.BytesIO):
    """Remembers how much was read, in all and at once."""

    total = most = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0, "all of it"
        data = super().read(size)
        self.total, self.most = self.total + len(data), max(self.most, size)
        return data


def check(data: bytes, folder: Path | None = None) -> AgentRelease:
    """Read it; no more than its bytes, a bounded piece at a time."""
    file = Watched(data)
    try:
        return check_release(file, KEY.public, FLEET, sink_to(folder) if folder else None).manifest
    finally:
        assert file.total <= len(data)
        assert file.most <= max(agent_release._PIECE, MAX_JSON_BYTES)


def refused(data: bytes, folder: Path | None = None) -> ProtocolError:
    with pytest.raises(ProtocolError) as error:
        check(data, folder)
    return error.value


def test_what_is_packed_is_read(tmp_path: Path) -> None:
    """And any tar reads it, too: a person may look."""
    assert check(WHOLE, tmp_path).files == MANIFEST_OF.files
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        assert tar.getnames() == [MANIFEST, *sorted(FILES)]
        assert {(i.mode, i.mtime, i.uid, i.uname, i.isreg()) for i in tar.getmembers()} == {(0o644, 0, 0, "", True)}


def test_the_same_makes_the_same() -> None:
    """Bytes for bytes, in whatever order the files are named."""
    again = dict(reversed(FILES.items()))
    assert pack_release(manifest_of(again, 7), again, KEY, FLEET) == WHOLE
    named = check_release(io.BytesIO(WHOLE), KEY.public, FLEET).digest
    size = int(WHOLE[124:135], 8)
    assert named == hashlib.sha256(WHOLE[512 : 512 + size]).hexdigest()


@given(st.integers(0, len(WHOLE) - 1))
@settings(max_examples=300)
def test_cut_off_anywhere_it_is_refused(length: int) -> None:
    assert refused(WHOLE[:length]).code in (Code.SIZE, Code.SCHEMA)


@example(958, 32)  # an upper-case letter in the signature: the same one, and another digest, which is its name
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
@settings(max_examples=600)
def test_a_changed_byte_is_refused(at: int, change: int) -> None:
    """In headers, manifest, files, padding and end."""
    damaged = bytearray(WHOLE)
    damaged[at] ^= change
    refused(bytes(damaged))


@given(st.binary(max_size=2000), st.integers(0, len(WHOLE)), st.integers(0, 2000))
@settings(max_examples=400)
def test_bytes_put_in_or_taken_out_are_refused(more: bytes, at: int, less: int) -> None:
    damaged = WHOLE[:at] + more + WHOLE[at + less :]
    if damaged != WHOLE:
        refused(damaged)


@given(st.binary(max_size=5000))
def test_noise_is_refused(data: bytes) -> None:
    refused(data)


blocks = st.lists(st.sampled_from([WHOLE[i : i + 512] for i in range(0, len(WHOLE), 512)]), max_size=14)


@given(blocks)
@settings(max_examples=400)
def test_its_own_blocks_in_another_order_are_refused(parts: list[bytes]) -> None:
    data = b"".join(parts)
    if data != WHOLE:
        refused(data)


def evil(kind: bytes = tarfile.REGTYPE, name: str = MANIFEST, size: int | None = None, link: str = "") -> bytes:
    """The release with another header in front of its first wheel, or of its manifest."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    length = int(WHOLE[124:135], 8)
    first = 512 + length + -length % 512
    at = 0 if name == MANIFEST else first
    info.size = int(WHOLE[at + 124 : at + 135], 8) if size is None else size
    return WHOLE[:at] + info.tobuf(tarfile.GNU_FORMAT) + WHOLE[at + 512 :]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("name", [MANIFEST, "anabranch-2-py3-none-any.whl"])
def test_a_link_or_a_device_is_refused(kind: bytes, name: str, tmp_path: Path) -> None:
    """Whatever it is called."""
    refused(evil(kind, name, link="/etc/passwd"), tmp_path)
    assert all(path.is_file() and not path.is_symlink() for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../escape.whl", "/tmp/escape.whl", "a/b.whl", ".hidden.whl", "-x.whl", "x.sh"])
def test_no_name_leads_outside(name: str, tmp_path: Path) -> None:
    """Neither in a header nor in a manifest that the fleet's key signed."""
    refused(evil(name=name), tmp_path)
    files = {**FILES, name: b"x"}
    manifest = manifest_of(files, 7)
    assert refused(pack_release(manifest, files, KEY, FLEET), tmp_path).code == Code.SCHEMA
    assert not list(tmp_path.iterdir())
    assert not (tmp_path.parent / "escape.whl").exists()


@pytest.mark.parametrize("size", [0, MAX_JSON_BYTES + 1, 1 << 40])
def test_a_manifest_of_another_size_is_not_read(size: int) -> None:
    """Before anything of it is."""
    file = Watched(evil(size=size))
    with pytest.raises(ProtocolError):
        check_release(file, KEY.public, FLEET)
    assert file.total == 512


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sizes": {**MANIFEST_OF.sizes, "more.whl": 5}}, Code.SCHEMA),
        ({"sizes": dict.fromkeys(FILES, MAX_OBJECT_BYTES)}, Code.SIZE),
        ({"sizes": dict.fromkeys(FILES, MAX_OBJECT_BYTES + 1)}, Code.SCHEMA),
        ({"files": {}, "sizes": {}}, Code.SCHEMA),
        ({"files": {f"{i}.whl": "0" * 64 for i in range(49)}}, Code.SCHEMA),
        ({"version": "1 2"}, Code.SCHEMA),
        ({"python": "3"}, Code.SCHEMA),
        ({"arch": "../x"}, Code.SCHEMA),
    ],
)
def test_a_signed_manifest_is_bounded_too(changes: dict, code: Code) -> None:
    """Whoever has the fleet's key may err."""
    sealed = seal(replace(MANIFEST_OF, **changes), KEY, FLEET, agent_release.BOUND_TO)
    header = tarfile.TarInfo(MANIFEST)
    header.size = len(sealed)
    data = header.tobuf(tarfile.USTAR_FORMAT) + sealed + bytes(-len(sealed) % 512)
    assert refused(data + bytes(100_000)).code == code


@pytest.mark.parametrize(
    ("key", "fleet", "bound_to"),
    [(SigningKey(bytes(32)), FLEET, agent_release.BOUND_TO), (KEY, "other", agent_release.BOUND_TO), (KEY, FLEET, "x")],
)
def test_another_signature_is_refused(key: SigningKey, fleet: str, bound_to: str, monkeypatch) -> None:
    """Another key's, another fleet's, and one that was made for something else."""
    with monkeypatch.context() as patch:
        patch.setattr(agent_release, "BOUND_TO", bound_to)
        data = pack_release(MANIFEST_OF, FILES, key, fleet)
    assert refused(data).code == Code.SIG


def test_too_many_files_are_not_packed() -> None:
    files = {f"{i:080}.whl": b"x" for i in range(48)}
    with contextlib.suppress(ProtocolError):
        pack_release(manifest_of(files, 7), files, KEY, FLEET)
    files |= {f"{i:090}.whl": b"x" for i in range(40)}
    with pytest.raises(ProtocolError, match="E_SIZE"):
        pack_release(manifest_of(files, 7), files, KEY, FLEET)
