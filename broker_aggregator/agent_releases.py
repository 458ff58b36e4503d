"""Releases of the agent on the gateway's shelf: files named by their SHA-256, which devices fetch like any object."""

import shutil
from contextlib import suppress
from pathlib import Path

from broker_aggregator.rollout import KeptRelease
from fl_protocol.agent_release import check_release
from fl_protocol.device_commands import MAX_RELEASE_BYTES
from fl_protocol.durable import OS_FILES
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.file_source import sha256_of


def read_release(path: Path, public_key: str, fleet: str) -> KeptRelease:
    """What a file is, all of it checked. Raises `ConfigError` for one that is no release of this fleet's key."""
    try:
        size = _check_size(path)
        with path.open("rb") as file:
            manifest = check_release(file, public_key, fleet).manifest
        sha256 = sha256_of(path)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", "`python -m deploy release make` makes a release"
        ) from None
    except ProtocolError as error:
        raise ConfigError(
            f"{path} is no release for this fleet: {error}", "`python -m deploy release make` with this configuration"
        ) from None
    return KeptRelease(sha256, size, manifest.counter, manifest.version, manifest.arch, manifest.python)


def _check_size(path: Path) -> int:
    size = path.stat().st_size
    if size > MAX_RELEASE_BYTES:
        raise ConfigError(
            f"{path} has {size} bytes; devices fetch {MAX_RELEASE_BYTES} at most",
            "name the devices' kit with `deploy release make --base`: what did not change stays out",
        )
    return size


def add_release(folder: Path, source: Path, public_key: str, fleet: str) -> KeptRelease:
    """Check a release and keep it, on the disk when this returns; what is kept is what was checked.

    Raises `ConfigError`.
    """
    temporary = OS_FILES.temporary(folder / "release")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_size(source)
        shutil.copyfile(source, temporary)
        kept = read_release(temporary, public_key, fleet)
        OS_FILES.sync(temporary)
        OS_FILES.rename(temporary, folder / kept.sha256)
        OS_FILES.sync_directory(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot keep {source}: {error.strerror}", "see that the file is there, and the disk has room"
        ) from None
    except ConfigError as error:
        raise ConfigError(error.message.replace(str(temporary), str(source)), error.hint) from None
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return kept


def kept_releases(folder: Path, public_key: str, fleet: str) -> tuple[list[KeptRelease], dict[str, str]]:
    """All that are sound, the newest first; and by SHA-256 why others are not."""
    sound, damaged = [], {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        try:
            kept = read_release(path, public_key, fleet)
            if kept.sha256 != path.name:
                raise ConfigError(f"{path} has another SHA-256 than its name", "add it again")
            sound.append(kept)
        except ConfigError as error:
            damaged[path.name] = error.message
    return sorted(sound, key=lambda kept: -kept.number), damaged


def find_release(folder: Path, word: str, public_key: str, fleet: str) -> KeptRelease:
    """The one that a person means: its number, its version, or the beginning of its SHA-256. Raises `ConfigError`."""
    sound, damaged = kept_releases(folder, public_key, fleet)
    found = [k for k in sound if word in (str(k.number), k.version) or (len(word) >= 6 and k.sha256.startswith(word))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{word} may be {len(found)} releases", f"name one by its number: {_numbers(found)}")
    for sha256, why in damaged.items():
        if len(word) >= 6 and sha256.startswith(word):
            raise ConfigError(why, "`release remove` it, and add it again")
    raise ConfigError(
        f"there is no release {word}", f"`release add FILE` keeps one; here are: {_numbers(sound) or 'none'}"
    )


def _numbers(releases: list[KeptRelease]) -> str:
    return ", ".join(f"{k.number} ({k.version}, {k.arch})" for k in releases[:10])
