"""Where the doctor tries things: topics and sessions of its own, all of which it clears away."""

import contextlib
import secrets
from typing import Any

from anabranch.doctor.probe import Probe, RefusedError, Version, Where

CLEAN_S = 5.0


class Lab:
    """Topics below `root`, and client ids that no other program has."""

    def __init__(self, where: Where, version: Version, root: str, *, answer_s: float) -> None:
        self.where, self.version, self.answer_s = where, version, answer_s
        self._id = secrets.token_hex(4)
        self.root = f"{root}/{self._id}"
        self._sessions: set[str] = set()
        self._retained: set[str] = set()

    def probe(self, name: str, **options: Any) -> Probe:
        """A client, not yet connected; of one that is not clean the session is deleted in the end."""
        client_id = f"anabranch-doctor-{self._id}-{name}"
        if not options.get("clean", True):
            self._sessions.add(client_id)
            options.setdefault("expiry_s", 600)
        return Probe(self.where, client_id, version=self.version, answer_s=self.answer_s, **options)

    def topic(self, name: str, *, retained: bool = False) -> str:
        """A topic of ours; a retained one is cleared in the end."""
        topic = f"{self.root}/{name}"
        if retained:
            self._retained.add(topic)
        return topic

    def clean(self) -> list[str]:
        """Delete sessions and clear retained topics; what is left of these."""
        version: Any = self.version
        for client_id in self._sessions:
            with contextlib.suppress(OSError, RefusedError), Probe(self.where, client_id, version=version):
                pass  # a clean start without an expiry
        with self.probe("clean") as probe:
            for topic in self._retained:
                probe.publish(topic, b"", retain=True)
        with self.probe("check") as probe:
            for topic in self._retained:
                probe.subscribe(topic)
            probe.wait(lambda: probe.messages, min(CLEAN_S, 1.0))
            return [said.topic for said in probe.messages if said.payload]
