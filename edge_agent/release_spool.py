"""Releases that were fetched over the air, on the disk: checked, left for root's side, and what that said of them.

update/SHA.part -> update/SHA, checked -> update/release.tar -> root's side takes it away when it has reported
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.events import ReleaseKept, ReleaseSpooled, UpdateSeen
from edge_agent.objects import PARTS_TTL_S
from edge_agent.updating import INSTALLED, ROOTS, SPOOL, UPDATER, check_fits, has_updater, read_installed, read_report
from fl_protocol.agent_release import check_release
from fl_protocol.device_commands import MAX_RELEASE_BYTES
from fl_protocol.durable import OS_FILES, Files, make_directory, write_durably
from fl_protocol.errors import Code, ConfigError, ProtocolError
from fl_protocol.file_source import sha256_of
from fl_protocol.parts import FileParts

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ReleaseSpool:
    """The folder `update` of a state directory. `root` is where root's side lies: `/`, or a test's tree.

    Raises `ConfigError` for a folder that cannot be read. Nothing else here raises: the event says what cannot be done.
    """

    def __init__(
        self,
        state_dir: Path,
        fleet: str,
        root: Path = Path("/"),
        *,
        files: Files = OS_FILES,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._spool, self._fleet, self._files = state_dir / SPOOL, fleet, files
        self._folder = self._spool.parent
        self._roots, self._updater, self._installed = (root / p.relative_to("/") for p in (ROOTS, UPDATER, INSTALLED))
        self.parts = FileParts(self._folder, files, now_s=now_s, max_bytes=MAX_RELEASE_BYTES)
        self.parts.expire(PARTS_TTL_S)

    @property
    def installed(self) -> int | None:
        """The number of the installed release, 0 for the kit; None where nothing can be installed from afar."""
        try:
            return read_installed(self._installed).number if has_updater(self._updater) else None
        except ConfigError:
            return None

    def keep(self, sha256: str, fleet_key: str, data: bytes) -> ReleaseKept:
        """Check what has come, or lies here already, and keep it; all others go."""
        if not has_updater(self._updater):
            why = f"there is no {UPDATER.name} on this device; its kit is older, or its agent was installed by hand"
            return ReleaseKept(sha256, code=Code.COMMAND, why=why)
        path = self._folder / sha256
        try:
            make_directory(self._folder, self._files)
            for name in self._files.names(self._folder):
                if _SHA256.fullmatch(name) and name != sha256:
                    self._files.remove(self._folder / name)
            if data:
                write_durably(path, data, files=self._files)
            else:
                self.parts.finish(sha256, path)
            if not self._files.is_file(path):
                return ReleaseKept(sha256)
            if sha256_of(path, self._files) != sha256:
                self._files.remove(path)
                return ReleaseKept(sha256)
        except OSError as error:
            return ReleaseKept(sha256, code=Code.DISK, why=f"the release cannot be kept: {error.strerror}")
        try:
            with path.open("rb") as file:
                checked = check_release(file, fleet_key, self._fleet)
            check_fits(checked, read_installed(self._installed), self._roots)
        except (ProtocolError, ConfigError, OSError) as error:
            path.unlink(missing_ok=True)
            code = error.code if isinstance(error, ProtocolError) else Code.DISK
            why = error.message if isinstance(error, ProtocolError | ConfigError) else str(error)
            return ReleaseKept(sha256, code=code, why=f"the release is refused: {why}")
        manifest = checked.manifest
        return ReleaseKept(sha256, manifest.counter, checked.digest, manifest.version)

    def spool(self, sha256: str) -> ReleaseSpooled:
        """Give a kept release the name that root's side waits for."""
        try:
            self._files.rename(self._folder / sha256, self._spool)
            self._files.sync_directory(self._folder)
        except OSError as error:
            return ReleaseSpooled(sha256, f"the release cannot be spooled: {error.strerror}")
        return ReleaseSpooled(sha256)

    def look(self, sha256: str) -> UpdateSeen:
        """How far root's side is."""
        spooled, kept = self._files.is_file(self._spool), self._files.is_file(self._folder / sha256)
        try:
            report = read_report(self._roots / "report")
        except ConfigError:
            report = None
        return UpdateSeen(sha256, report, spooled, kept)
