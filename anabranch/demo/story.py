"""Who plays which part in the demo, and when: drawn from the seed, decided from what is seen, no clock and no I/O."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from anabranch.fleet_view import FleetView

# When, as a share of the training that is planned.
JOIN_AT = 0.25
KILL_AT = 0.15
LEAVE_AT = 0.5
KILL_GATEWAY_AT = 0.4
AWAY = 0.1  # how long a killed device stays away

Deed = Literal["kill", "restart", "leave", "join", "kill gateway", "restart gateway"]


@dataclass(frozen=True)
class Cast:
    """The parts; everybody else just trains."""

    slow: tuple[str, ...] = ()
    killed: str = ""
    leaves: str = ""
    late: str = ""

    def part(self, device: str) -> str:
        """A device's part in a word or two; empty for one that just trains."""
        parts = {self.killed: "killed", self.leaves: "leaves", self.late: "late", **dict.fromkeys(self.slow, "slow")}
        return parts.get(device, "")


def draw_cast(devices: Sequence[str], seed: int) -> Cast:
    """Draw the parts; in a small fleet the last ones stay empty, so that somebody is left to train."""
    drawn = [devices[i] for i in np.random.default_rng(seed).permutation(len(devices))][: max(0, len(devices) - 1)]
    killed, late, leaves, *slow = [*drawn, "", "", ""][: max(3, min(5, len(drawn)))]
    return Cast(tuple(name for name in slow if name), killed, leaves, late)


@dataclass(frozen=True)
class Act:
    """Something to be done now."""

    deed: Deed
    who: str = ""


@dataclass
class Story:
    """What happens to the fleet; `next` is asked again and again, and tells each act once."""

    cast: Cast
    kill_gateway: bool = False
    _done: dict[Deed, float] = field(default_factory=dict)  # deed -> progress at which it was done

    def next(self, view: FleetView, progress: float) -> Iterator[Act]:
        """What is due; `progress` is the share of the planned training that lies behind, 0..1."""
        cast, done = self.cast, self._done
        killed = view.devices.get(cast.killed)
        if cast.late and self._due("join", progress >= JOIN_AT, progress):
            yield Act("join", cast.late)
        if killed is not None:
            in_training = killed.state == "training"
            if self._due("kill", in_training and progress >= KILL_AT, progress):
                yield Act("kill", cast.killed)
            back = killed.state == "lost" and progress >= done.get("kill", 1.0) + AWAY
            if "kill" in done and self._due("restart", back, progress):
                yield Act("restart", cast.killed)
        if cast.leaves and self._due("leave", progress >= LEAVE_AT, progress):
            yield Act("leave", cast.leaves)
        if self.kill_gateway:
            if self._due("kill gateway", progress >= KILL_GATEWAY_AT, progress):
                yield Act("kill gateway")
            gone = view.gateway is not None and view.gateway.state == "lost"
            if "kill gateway" in done and self._due("restart gateway", gone, progress):
                yield Act("restart gateway")

    @property
    def owes_the_gateway(self) -> bool:
        """Whether the gateway was killed and has not come back: what it said last may have been that all is done."""
        return "kill gateway" in self._done and "restart gateway" not in self._done

    def _due(self, deed: Deed, now: bool, progress: float) -> bool:
        if deed in self._done or not now:
            return False
        self._done[deed] = progress
        return True
