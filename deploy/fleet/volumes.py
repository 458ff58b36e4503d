"""A fleet's volumes: made and filled through the engine, never left half-filled. All raise the engine's own errors."""

import io
import tarfile
from collections.abc import Iterator, Mapping

from docker import DockerClient
from docker.errors import NotFound
from docker.models.containers import Container

from fl_protocol.errors import ConfigError

from .specs import FLEET_LABEL, MEMBER_LABEL, ROLE_LABEL, USER, Volume, labels_of

FILLING = "filling"  # the role of a container that only lends its volume while files are laid into it


def make_volume(client: DockerClient, fleet: str, volume: Volume, image: str) -> None:
    """Files get into a volume by a container that never runs: no path of this machine, no user of it, is needed.

    Another such container is there from before the volume until it is full, and tells of an interruption.
    """
    # v=True below takes along the anonymous volumes that the image itself asks for.
    labels = {**labels_of(fleet), MEMBER_LABEL: volume.name, ROLE_LABEL: FILLING}
    try:
        owner = (client.volumes.get(volume.name).attrs["Labels"] or {}).get(FLEET_LABEL)
        if owner != fleet:
            raise ConfigError(
                f"the name {volume.name} is taken by a volume that is not this fleet's",
                "remove that volume, or take another --name",
            )
        if not volume.read_only:
            return
        note = None
    except NotFound:
        note = client.containers.create(image, labels=labels)
        client.volumes.create(volume.name, labels=labels_of(fleet))
    if volume.files:
        mount = {volume.name: {"bind": volume.path, "mode": "rw"}}
        lender = client.containers.create(image, labels=labels, volumes=mount)
        lender.put_archive(volume.path, packed(volume.files))
        lender.remove(v=True)
    if note is not None:
        note.remove(v=True)


def clear_unfinished(client: DockerClient, fleet: str) -> None:
    """What an interrupted `up` left half-filled goes, and then the word of it; a volume that is used is whole."""
    of_fleet = f"{FLEET_LABEL}={fleet}"
    containers = client.containers.list(all=True, filters={"label": of_fleet})
    left = [c for c in containers if c.labels[ROLE_LABEL] == FILLING]
    half = {c.labels[MEMBER_LABEL] for c in left} - {v for c in containers if c not in left for v in _mounted(c)}
    for lender in [c for c in left if _mounted(c) & half]:
        left.remove(lender)
        lender.remove(force=True, v=True)
    for volume in client.volumes.list(filters={"label": of_fleet}):
        if volume.name in half:
            volume.remove()
    for note in left:
        note.remove(force=True, v=True)


def _mounted(container: Container) -> set[str]:
    return {mount["Name"] for mount in container.attrs["Mounts"] if mount["Type"] == "volume"}


def packed(files: Mapping[str, bytes]) -> bytes:
    """Files as a tar: all the image's user's, mode 0600, their directories 0700."""
    out = io.BytesIO()
    folders = sorted({str(parent) for name in files for parent in _parents(name)})
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in folders:
            tar.addfile(_member(name, tarfile.DIRTYPE, 0o700))
        for name, data in files.items():
            entry = _member(name, tarfile.REGTYPE, 0o600)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")[:-1]
    return ("/".join(parts[: i + 1]) for i in range(len(parts)))


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid = kind, mode, USER, USER
    return entry
