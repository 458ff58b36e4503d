"""A stream that only a passphrase opens: scrypt makes the key, AES-256-GCM seals it in blocks of bounded size.

    magic (16) | format (1) | log2 of scrypt's n (1) | salt (16) | blocks of at most 64 KiB, each with its tag (16)

A block's nonce is its number and whether it is the last one, so that none can be left out, moved or cut off (the STREAM
construction, Hoang et al. 2015); the header is authenticated with each. The key is this file's alone: its salt is.
"""

import os
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fl_protocol.errors import ConfigError

MAGIC = b"anabranch-backup"
FORMAT = 1
LOG_N, MAX_LOG_N = 17, 20  # 128 MiB of memory to make the key; a file may ask for 1 GiB at most
BLOCK, TAG, SALT = 64 << 10, 16, 16
HEADER = len(MAGIC) + 2 + SALT
MIN_PASSPHRASE = 12
DAMAGED = ConfigError("the backup does not open", "see that the passphrase is its own; else the file is damaged")


def check_passphrase(passphrase: bytes) -> bytes:
    """Without the newline at its end. Raises `ConfigError` for one that is too short."""
    passphrase = passphrase.rstrip(b"\r\n")
    if len(passphrase) < MIN_PASSPHRASE:
        raise ConfigError(
            f"a passphrase of {len(passphrase)} bytes",
            f"at least {MIN_PASSPHRASE}: `openssl rand -base64 24 > FILE` makes a good one; keep it elsewhere",
        )
    return passphrase


def _key(passphrase: bytes, header: bytes) -> AESGCM:
    log_n, salt = header[len(MAGIC) + 1], header[-SALT:]
    return AESGCM(Scrypt(salt=salt, length=32, n=1 << log_n, r=8, p=1).derive(passphrase))


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


class SealingWriter:
    """Seals what is written into `file`. Only `close` makes it whole."""

    def __init__(self, file: BinaryIO, passphrase: bytes, log_n: int = LOG_N) -> None:
        self._file, self._pending, self._number = file, bytearray(), 0
        self._header = MAGIC + bytes([FORMAT, log_n]) + os.urandom(SALT)
        self._cipher = _key(passphrase, self._header)
        file.write(self._header)

    def write(self, data: bytes) -> int:
        """All of it is taken."""
        self._pending += data
        while len(self._pending) > BLOCK:  # the last block is never empty unless everything is
            self._block(BLOCK, last=False)
        return len(data)

    def close(self) -> None:
        """Write the last block; `file` stays open."""
        self._block(len(self._pending), last=True)

    def _block(self, size: int, *, last: bool) -> None:
        plain = bytes(self._pending[:size])
        self._file.write(self._cipher.encrypt(_nonce(self._number, last=last), plain, self._header))
        del self._pending[:size]
        self._number += 1


class OpeningReader:
    """The inverse of `SealingWriter`. Raises `ConfigError` for another passphrase, and for what is damaged or cut off.

    What was read is authentic, but whole only at the end.
    """

    def __init__(self, file: BinaryIO, passphrase: bytes) -> None:
        self._file, self._open, self._number = file, bytearray(), 0
        self._header = file.read(HEADER)
        if len(self._header) < HEADER or not self._header.startswith(MAGIC):
            raise ConfigError("not a sealed backup", "name a file that `python -m deploy backup` wrote")
        form, log_n = self._header[len(MAGIC)], self._header[len(MAGIC) + 1]
        if form != FORMAT or not 10 <= log_n <= MAX_LOG_N:
            raise ConfigError(f"a backup of format {form}, scrypt 2^{log_n}", "read it with the software that wrote it")
        self._cipher = _key(passphrase, self._header)
        self._next = file.read(BLOCK + TAG)
        self._ended = False

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer at the end only."""
        while len(self._open) < size and not self._ended:
            self._block()
        data = bytes(self._open[:size])
        del self._open[:size]
        return data

    def _block(self) -> None:
        sealed, self._next = self._next, self._file.read(BLOCK + TAG)
        self._ended = not self._next
        try:
            self._open += self._cipher.decrypt(_nonce(self._number, last=self._ended), sealed, self._header)
        except (InvalidTag, ValueError):
            raise DAMAGED from None
        self._number += 1


def is_sealed(file: BinaryIO) -> bool:
    """Whether a passphrase is needed; the file is at its beginning before and after."""
    begins = file.read(len(MAGIC))
    file.seek(0)
    return begins == MAGIC
