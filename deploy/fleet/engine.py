"""The engine: makes specs real through the Docker SDK, and finds by label what belongs to a fleet."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound
from docker.models.containers import Container as Running
from docker.models.networks import Network

from fl_protocol.errors import ConfigError

from .specs import (
    DIGEST_LABEL,
    DOCKERFILES,
    FLEET_LABEL,
    IMAGES,
    MEMBER_LABEL,
    ROLE_LABEL,
    Container,
    create_options,
    labels_of,
    network_of,
)
from .volumes import clear_unfinished, make_volume

Say = Callable[[str], None]
STOP_S = 10
END_S = 120  # what a killed process gets on a machine that has no time for it


class Engine:
    """One fleet on a Docker engine. Everything raises `ConfigError` where the engine refuses."""

    def __init__(self, fleet: str, say: Say = lambda _: None) -> None:
        self.fleet, self._say = fleet, say
        try:
            self.client = docker.from_env(timeout=120)
            self._cores = float(self.client.info()["NCPU"])
        except (DockerException, requests.RequestException) as error:
            raise ConfigError(
                f"no container engine answers: {error!s:.200}",
                "start it (`systemctl start docker`), or name it with DOCKER_HOST",
            ) from None

    # --- what is there ---

    def members(self) -> dict[str, Running]:
        """The containers of the fleet by short name, the broker and the gateway first."""
        with _refusals():
            found = self.client.containers.list(all=True, filters={"label": f"{FLEET_LABEL}={self.fleet}"})
        named = {c.labels[MEMBER_LABEL]: c for c in found if c.labels.get(ROLE_LABEL) in IMAGES}
        order = list(IMAGES)
        return dict(sorted(named.items(), key=lambda item: (order.index(item[1].labels[ROLE_LABEL]), natural(item[0]))))

    def member(self, name: str) -> Running:
        """One of them. Raises `ConfigError`."""
        there = self.members()
        if name not in there:
            names = ", ".join(there) or f"none: `python -m deploy fleet up --name {self.fleet}` makes them"
            raise ConfigError(f"{name} is no member of the fleet {self.fleet}", f"members: {names}")
        return there[name]

    def connected(self, container: Running) -> bool:
        """Whether it is on the fleet's network."""
        return network_of(self.fleet) in container.attrs["NetworkSettings"]["Networks"]

    # --- up ---

    def up(self, wanted: Sequence[Container]) -> dict[str, list[str]]:
        """Make the fleet what `wanted` says; returns what was `created`, `changed`, `started`, `removed`, `left`."""
        self._check(wanted)
        done: dict[str, list[str]] = {what: [] for what in ("created", "changed", "started", "removed", "left")}
        self._make_network()
        with _refusals():
            clear_unfinished(self.client, self.fleet)
        there = self.members()
        for name in there.keys() - {container.member for container in wanted}:
            self._remove(there[name])
            done["removed"].append(name)
        for number, container in enumerate(wanted, 1):
            what = self._make(container, there.get(container.member))
            done[what].append(container.member)
            if what != "left":
                self._say(f"{number}/{len(wanted)} {container.member} {what}")
        return done

    def fill(self, wanted: Sequence[Container]) -> None:
        """The volumes alone, for containers that somebody else makes."""
        self._check(wanted)
        with _refusals():
            clear_unfinished(self.client, self.fleet)
        for number, container in enumerate(wanted, 1):
            with _refusals():
                for volume in container.volumes:
                    make_volume(self.client, self.fleet, volume, container.image)
            self._say(f"{number}/{len(wanted)} {container.member} filled")

    def _check(self, wanted: Sequence[Container]) -> None:
        """Everything that can be known to fail is, before anything changes."""
        with _refusals():
            for role in dict.fromkeys(container.role for container in wanted):
                try:
                    self.client.images.get(IMAGES[role])
                except ImageNotFound:
                    build = f"docker build -f deploy/docker/{DOCKERFILES[role]}.Dockerfile -t {IMAGES[role]} ."
                    raise ConfigError(
                        f"the engine has no image {IMAGES[role]}", f"in a checkout: `{build}`; all: `make images`"
                    ) from None
            taken = {c.name: c.labels.get(FLEET_LABEL) for c in self.client.containers.list(all=True)}
            for container in wanted:
                if taken.get(container.name, self.fleet) != self.fleet:
                    raise ConfigError(
                        f"the name {container.name} is taken by a container that is not this fleet's",
                        "remove that container, or take another --name",
                    )

    def _make_network(self) -> None:
        name = network_of(self.fleet)
        with _refusals():
            there = self.client.networks.list(names=[name])
            if not any(network.name == name for network in there):
                self.client.networks.create(name, driver="bridge", labels=labels_of(self.fleet))

    def _make(self, wanted: Container, there: Running | None) -> str:
        """Returns what was done, in a word."""
        with _refusals():
            image = self.client.images.get(wanted.image).id
            if there is not None:
                if there.labels[DIGEST_LABEL] == wanted.digest and there.attrs["Image"] == image:
                    if there.status in ("running", "paused", "restarting"):
                        return "left"
                    there.start()
                    return "started"
                self._remove(there)
            for volume in wanted.volumes:
                make_volume(self.client, self.fleet, volume, wanted.image)
            network = network_of(self.fleet)
            alias = self.client.api.create_endpoint_config(aliases=[wanted.member])
            self.client.containers.create(
                **create_options(wanted, self._cores), network=network, networking_config={network: alias}
            ).start()
            return "created" if there is None else "changed"

    def _remove(self, container: Running) -> None:
        if container.status == "paused":
            container.unpause()
        container.stop(timeout=STOP_S)
        _remove(container)

    # --- down ---

    def down(self, keep: bool = False) -> dict[str, int]:
        """Remove what carries the fleet's label, volumes too unless they are kept; how many of each."""
        filters: dict[str, str | list[str] | bool] = {"label": f"{FLEET_LABEL}={self.fleet}"}
        with _refusals():
            containers = self.client.containers.list(all=True, filters=filters)
            for number, container in enumerate(containers, 1):
                _remove(container)
                self._say(f"{number}/{len(containers)} {container.name} removed")
            networks = self.client.networks.list(filters=filters)
            for network in networks:
                network.remove()
            volumes = [] if keep else self.client.volumes.list(filters=filters)
            for volume in volumes:
                volume.remove()
        return {"containers": len(containers), "networks": len(networks), "volumes": len(volumes)}

    # --- chaos ---

    def pause(self, name: str) -> bool:
        """Freeze it where it is; False where it does not run."""
        return self._if(name, lambda c: c.status == "running", lambda c: c.pause())

    def resume(self, name: str) -> bool:
        """Thaw it, or start it where it was killed; False where it runs."""
        if self._if(name, lambda c: c.status == "paused", lambda c: c.unpause()):
            return True
        return self._if(name, lambda c: c.status in ("exited", "created", "dead"), lambda c: c.start())

    def kill(self, name: str) -> bool:
        """SIGKILL, as a power cut: nothing of it is told to anybody; False where it is dead already."""
        self._if(name, lambda c: c.status == "paused", lambda c: c.unpause())
        return self._if(name, lambda c: c.status in ("running", "restarting"), _kill)

    def partition(self, name: str) -> bool:
        """Take its network away while it runs; False where it has none."""
        return self._if(name, self.connected, lambda c: self._network.disconnect(c, force=True))

    def heal(self, name: str) -> bool:
        """Give its network back; False where it has it."""
        return self._if(name, lambda c: not self.connected(c), lambda c: self._network.connect(c, aliases=[name]))

    @property
    def _network(self) -> Network:
        return self.client.networks.get(network_of(self.fleet))

    def _if(self, name: str, condition: Callable[[Running], bool], act: Callable[[Running], object]) -> bool:
        container = self.member(name)
        if not condition(container):
            return False
        with _refusals():
            act(container)
        return True

    # --- looking ---

    def logs(self, name: str, tail: int, follow: bool) -> Iterator[bytes]:
        """What a member wrote, oldest first."""
        container = self.member(name)
        with _refusals():
            if follow:
                yield from container.logs(stream=True, follow=True, tail=tail)
            else:
                yield container.logs(tail=tail)

    def run(self, name: str, command: Sequence[str]) -> tuple[int, str, str]:
        """Run a command in a member: exit code, output, errors."""
        with _refusals():
            result: Any = self.member(name).exec_run(list(command), demux=True)
        out, err = result.output
        return int(result.exit_code), (out or b"").decode(), (err or b"").decode()


def _kill(container: Running) -> None:
    """SIGKILL. The engine calls it a failure when the end takes ten seconds; a busy machine's takes longer."""
    try:
        container.kill()
    except APIError:
        container.wait(timeout=END_S)


def _remove(container: Running) -> None:
    """Kill what runs, and remove it with its anonymous volumes."""
    container.reload()
    if container.status in ("running", "restarting"):
        _kill(container)
    container.remove(force=True, v=True)


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts fan-20 before fan-100."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split("-")]


@contextmanager
def _refusals() -> Iterator[None]:
    """What the engine refuses, as a `ConfigError`."""
    try:
        yield
    except APIError as error:
        raise ConfigError(f"the engine refuses: {_words(error)}", "`docker ps --all` shows what is there") from None
    except (DockerException, requests.RequestException) as error:
        raise ConfigError(f"the engine is gone: {error!s:.200}", "start it, and repeat the command") from None


def _words(error: APIError) -> Any:
    return error.explanation or str(error)
