"""A whole image onto a card: written, read back from the card itself, and only then called done."""

import hashlib
import lzma
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fl_protocol.errors import ConfigError

from .tools import run_tool

CHUNK = 4 << 20
Progress = Callable[[int], None]  # bytes more


def image_size(image: Path) -> int:
    """How much the card must hold; of an .xz, what is in it. Raises `ConfigError`."""
    try:
        size = image.stat().st_size
    except OSError as error:
        raise ConfigError(f"--image: cannot read {image}: {error.strerror}", "name an .img or .img.xz file") from None
    if image.suffix == ".xz":
        for line in run_tool("xz", "--robot", "--list", str(image)).decode().splitlines():
            if line.startswith("totals\t"):
                size = int(line.split("\t")[4])
    if size == 0:
        raise ConfigError(f"--image: {image} is empty", "download it again")
    return size


def write_image(image: Path, card: int, size: int, progress: Progress) -> str:
    """Write all of it to the descriptor `card`; its SHA-256. Raises `ConfigError`.

    The first chunk, which has the partition table, is written last: a card that was pulled out is an empty one.
    """
    whole = hashlib.sha256()
    written = 0
    first = b""
    with _opened(image) as source, _told("write"):
        _write_at(card, bytes(min(CHUNK, size)), 0)
        while chunk := source.read(CHUNK):
            if written + len(chunk) > size:
                raise ConfigError(f"--image: {image} has more bytes than it says", "download it again")
            whole.update(chunk)
            if written == 0:
                first = chunk
            else:
                _write_at(card, chunk, written)
            written += len(chunk)
            progress(len(chunk))
        if written != size:
            raise ConfigError(f"--image: {image} ends after {written} of {size} bytes", "download it again")
        os.fsync(card)
        _write_at(card, first, 0)
        os.fsync(card)
    return whole.hexdigest()


def verify_image(card: int, size: int, sha256: str, progress: Progress) -> None:
    """Read it back from the card, not from memory. Raises `ConfigError` where it is not what was written."""
    whole = hashlib.sha256()
    forget(card)
    with _told("read"):
        for offset in range(0, size, CHUNK):
            chunk = os.pread(card, min(CHUNK, size - offset), offset)
            whole.update(chunk)
            progress(len(chunk))
    if whole.hexdigest() != sha256:
        raise ConfigError(
            "what the card gives back is not what was written", "the card is bad or a fake: throw it away"
        )


def forget(card: int) -> None:
    """Let the kernel keep nothing of it in memory, so that the next read asks the medium."""
    os.fsync(card)
    os.posix_fadvise(card, 0, 0, os.POSIX_FADV_DONTNEED)


def _write_at(card: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(card, view, offset)
        view, offset = view[count:], offset + count


@contextmanager
def _opened(image: Path) -> Iterator[BinaryIO]:
    try:
        with lzma.open(image) if image.suffix == ".xz" else image.open("rb") as source:
            yield source  # type: ignore[misc]  # an LZMAFile reads as any other
    except (lzma.LZMAError, EOFError) as error:
        raise ConfigError(f"--image: {image} is damaged: {error}", "download it again") from None


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"the card does not {what}: {error.strerror}", "clean its contacts, or take another"
        ) from None
