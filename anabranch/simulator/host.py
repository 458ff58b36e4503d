"""A machine: its program runs, dies in the middle of what it does, and starts again on what its disk holds."""

import errno
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from anabranch.simulator.link import KEEPALIVE_S, LinkedTransport
from anabranch.simulator.power import Death, PowerCut
from anabranch.simulator.trace import Speaker, Trace
from anabranch.simulator.world import Alarm, World

FALLEN_S = 5.0  # after which a program that ended by itself is started again, as systemd does


@dataclass(frozen=True)
class Scene:
    """What all machines of one run share."""

    world: World
    trace: Trace
    speaker: Speaker
    complain: Callable[[str], None]  # a broken invariant


class Host(ABC):
    """One machine; what runs on it is the subclass's. All its times are virtual seconds."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene, self.world, self.name = scene, scene.world, name
        self.transport: LinkedTransport | None = None
        self.up = False
        self.gone = False  # for good
        self.files_fail = False
        self.boots = 0
        self._alarm = Alarm(self.world, self._turn)
        self._held = 0  # reasons for which the machine stands still
        self._held_since = 0.0  # the last of them
        self._boots_on_waking = False
        self._countdown: int | None = None
        self._death: Death = "kill"
        self._down_s = 0.0

    # --- what a subclass does ---

    @abstractmethod
    def start(self) -> None:
        """Start the program. It may die of it."""

    @abstractmethod
    def work(self) -> float:
        """Let the program do what is due; returns when it wants to be woken."""

    @abstractmethod
    def fall(self, death: Death, *, noticed: bool) -> None:
        """The program is gone: let go of it, and let the disk lose what it loses. `noticed`: by the broker, at once."""

    @abstractmethod
    def excuse(self, error: Exception) -> bool:
        """Whether a program may end by this error, here and now."""

    # --- life and death ---

    @property
    def runs(self) -> bool:
        """Whether the program can do anything now."""
        return self.up and not self._held

    def crash_point(self, label: str) -> None:
        """See `power.CrashPoint`."""
        if self._countdown is not None:
            self._countdown -= 1
            if self._countdown < 0:
                raise PowerCut(label)

    def file_fault(self, label: str) -> int:
        """See `files.Fault`."""
        return errno.EIO if self.files_fail and not label.startswith("mkdir") else 0

    def boot(self) -> None:
        """Start, unless it runs or is gone for good."""
        if self.up or self.gone:
            return
        if self._held:
            self._boots_on_waking = True
            return
        self.boots += 1
        self.up = True
        self.scene.trace.line(self.name, f"starts ({self.boots})")
        self._guarded(self.start)
        self.news()

    def kill(self, death: Death, *, after: int = 0, down_s: float = 1.0) -> None:
        """Die after so many more effects, and start again `down_s` later; infinity: never."""
        if not self.up:
            self.scene.trace.line(self.name, "is down already")
            return
        self._death, self._down_s = death, down_s
        if after:
            self._countdown = after
        else:
            self._dies(f"at rest, {death}")

    def spare(self) -> None:
        """A death that has not come yet will not."""
        self._countdown = None

    def leave(self) -> None:
        """Die, and never come back."""
        self.gone = True
        if self.up:
            self.kill("power", down_s=float("inf"))

    def sleep(self) -> None:
        """Stand still without a word, as a machine that sleeps or a process that is stopped.

        The broker notices when the keep-alive is over, and this end when it wakes.
        """
        self._held += 1
        self._held_since = since = self.world.now
        if (transport := self.transport) and transport.connected:
            self.world.after(1.5 * KEEPALIVE_S, lambda: self._missed(transport, since))

    def wake(self) -> None:
        """Go on, where nothing else holds it; a machine that died meanwhile starts."""
        self._held -= 1
        if self._boots_on_waking and not self._held:
            self._boots_on_waking = False
            self.boot()
        self.news()

    def _missed(self, transport: LinkedTransport, since: float) -> None:
        if self._held and self._held_since == since and transport is self.transport:
            transport.timed_out()

    def news(self) -> None:
        """Something has come for the program."""
        self._alarm.set(self.world.now)

    def wake_at(self, time: float) -> None:
        """Something that the program waits for will be there at `time`."""
        self.world.at(time, lambda: self._alarm.set(self.world.now))

    def _turn(self) -> None:
        if self.runs:
            self._guarded(self._work)

    def _work(self) -> None:
        time = self.work()
        if self.up and time < float("inf"):
            self._alarm.set(time)

    def _guarded(self, action: Callable[[], None]) -> None:
        self.scene.speaker.name = self.name
        try:
            action()
        except PowerCut as cut:
            self._dies(f"before «{cut}», {self._death}")
        except Exception as error:
            if not self.excuse(error):
                self.scene.complain(f"{self.name} fell: {type(error).__name__}: {error}")
                self.scene.trace.said(self.name, traceback.format_exc())
            self._death, self._down_s = "kill", FALLEN_S
            self._dies(f"by itself: {type(error).__name__}: {error}")

    def _dies(self, how: str) -> None:
        self.scene.trace.line(self.name, f"dies {how}")
        self._countdown = None
        self.up = False
        self.fall(self._death, noticed=self._death == "kill")
        if self._down_s < float("inf") and not self.gone:
            self.world.after(self._down_s, self.boot)
