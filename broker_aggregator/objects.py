"""What is fetched by its SHA-256: bundles and releases on disk, versions in the store; and evaluators of bundles."""

import hashlib
import logging
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from broker_aggregator.deltas import Deltas
from broker_aggregator.evaluation import Evaluator, Examples
from broker_aggregator.storage import ReadableStore
from fl_protocol.bundle import MAX_BUNDLE_BYTES, Bundle
from fl_protocol.durable import OS_FILES, Files, write_durably
from fl_protocol.errors import Code, ConfigError, ProtocolError
from fl_protocol.file_source import FileSource, sha256_of
from fl_protocol.messages import Chunk
from fl_protocol.transfer import Outgoing, Source

log = logging.getLogger("aggregator")
CACHED = 32  # objects being sent
CACHED_BYTES = 128 << 20  # of those that are held in memory
_SHA256 = re.compile(r"[0-9a-f]{64}")


def add_bundle(folder: Path, source: Path, files: Files = OS_FILES) -> Bundle:
    """Verify a bundle file and keep it under its SHA-256. Raises `ConfigError`."""
    try:
        if files.size(source) > MAX_BUNDLE_BYTES:
            raise ConfigError(f"{source} is larger than a bundle may be", f"at most {MAX_BUNDLE_BYTES} bytes")
        data = files.read(source)
        bundle = Bundle.read(data)
    except OSError as error:
        raise ConfigError(
            f"cannot read the bundle {source}: {error}", "`python -m models build NAME` makes one"
        ) from None
    except ProtocolError as error:
        raise ConfigError(f"{source} is not a sound bundle: {error}", "build it again") from None
    kept = folder / bundle.sha256
    if not files.is_file(kept) or hashlib.sha256(files.read(kept)).hexdigest() != bundle.sha256:
        write_durably(kept, data, files=files)
    else:  # whoever wrote it may have been killed before its name was on the disk
        files.sync_directory(folder)
    return bundle


class Objects:
    """The gateway's shelf. Not thread-safe but for `evaluator`, which only the evaluation thread calls."""

    def __init__(
        self, bundles: Path, store: ReadableStore, files: Files = OS_FILES, *, releases: Path | None = None
    ) -> None:
        self._folder, self._store, self._files = bundles, store, files
        self._releases = releases or bundles  # of the agent
        self._outgoing: OrderedDict[tuple[str, int], Outgoing] = OrderedDict()
        self._in_memory: dict[tuple[str, int], int] = {}  # bytes
        self.deltas = Deltas(store)
        self._evaluators: dict[tuple[str, str], Evaluator] = {}

    def bundle(self, sha256: str) -> Bundle | None:
        """A bundle that lies here, None for one that does not. Raises `ProtocolError` where the disk has rotted."""
        if not _SHA256.fullmatch(sha256) or not self._files.is_file(self._folder / sha256):
            return None
        return Bundle.read(self._files.read(self._folder / sha256), sha256)

    def _source(self, sha256: str) -> bytes | Source | None:
        """A bundle or a release is read as it is sent, having been verified once; what the store makes is held."""
        path = self._folder / sha256
        if not self._files.is_file(path):
            path = self._releases / sha256
        if not self._files.is_file(path):
            return self.deltas.get(sha256) or self._store.vector_bytes(sha256)
        if sha256_of(path, self._files) == sha256:
            return FileSource(path, sha256, self._files)
        log.error("%s is damaged: copy it there again, or name its file to `task change` or `release add`", path)
        return None

    def chunks(self, sha256: str, chunk_size: int, missing: bytes | None, window: int) -> Iterator[Chunk]:
        """The first `window` chunks whose bit is set, or all; none of an object not here or a bitmap not its own."""
        key = (sha256, chunk_size)
        if key not in self._outgoing:
            source = self._source(sha256) if _SHA256.fullmatch(sha256) else None
            if source is None:
                return
            try:
                self._outgoing[key] = Outgoing(source, chunk_size)
            except ProtocolError:
                return
            self._in_memory[key] = len(source) if isinstance(source, bytes) else 0
            while len(self._outgoing) > CACHED or (
                sum(self._in_memory.values()) > CACHED_BYTES and len(self._outgoing) > 1
            ):
                oldest, _ = self._outgoing.popitem(last=False)
                del self._in_memory[oldest]
        outgoing = self._outgoing[key]
        self._outgoing.move_to_end(key)
        try:
            if missing is None:
                yield from (outgoing.chunk(i) for i in range(outgoing.count))
            else:
                yield from outgoing.chunks(missing, window)
        except ProtocolError as error:
            if error.code == Code.DISK:
                log.error("%s", error)
                self._outgoing.pop(key, None)
                self._in_memory.pop(key, None)  # it is looked at again when it is next asked for

    def evaluator(self, bundle_sha256: str, path: str) -> Evaluator:
        """An evaluator, made once for a bundle and a file. Raises `ConfigError`, `ProtocolError`."""
        key = (bundle_sha256, path)
        if key not in self._evaluators:
            bundle = self.bundle(bundle_sha256)
            if bundle is None:
                raise ConfigError(
                    f"bundle {bundle_sha256:.12} is not in {self._folder}", "`task change` it to one that is"
                )
            self._evaluators.clear()
            self._evaluators[key] = Evaluator(bundle, Examples(Path(path), bundle))
        return self._evaluators[key]

    def quarantine(self, digest: str, topic: str, payload: bytes) -> None:
        """Put a delivery aside that the process does not survive."""
        path = self._folder.parent / "quarantine" / digest
        write_durably(path, topic.encode() + b"\n" + payload, files=self._files)
