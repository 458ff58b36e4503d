"""What a board has, as limits of a container."""

import difflib
from dataclasses import dataclass

from fl_protocol.errors import ConfigError

# The agent plans with less than the wall that the kernel's killer stands at.
PLANNED = 0.85


@dataclass(frozen=True)
class Profile:
    """`cpus`: what one training thread gets of one x86 core; `memory_mb`: what a headless system leaves of the board.

    `cpus` are rough: they order the boards as single-thread benchmarks do, and are no benchmark themselves.
    """

    name: str
    board: str
    cpus: float
    memory_mb: int

    @property
    def planned_mb(self) -> int:
        """What the agent is told that it may use, `[training] memory_mb`."""
        return int(self.memory_mb * PLANNED)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("pi-zero-2", "Raspberry Pi Zero 2 W, 512 MB", 0.12, 384),
        Profile("pi-4", "Raspberry Pi 4, 2 GB", 0.3, 1792),
        Profile("pi-5", "Raspberry Pi 5, 4 GB", 0.75, 3840),
        Profile("jetson-orin-nano", "Jetson Orin Nano, 8 GB, without its GPU", 0.7, 7168),
    )
}


def profile_of(name: str) -> Profile:
    """The profile of that name. Raises `ConfigError`."""
    if name in PROFILES:
        return PROFILES[name]
    near = difflib.get_close_matches(name, PROFILES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"profiles: {', '.join(PROFILES)}"
    raise ConfigError(f"--profile {name}: there is no such board", hint)
