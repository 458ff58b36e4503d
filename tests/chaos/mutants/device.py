"""What a careless colleague might write on the device, and in what both sides share; see gateway.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

from edge_agent import intake
from edge_agent.agent import Agent
from edge_agent.events import Settle
from edge_agent.sending import RESEND_S
from fl_protocol import chunks
from fl_protocol.messages import Result
from fl_protocol.tensors import Vector
from fl_protocol.topics import Kind


@contextmanager
def folded_back_after_timeout() -> Iterator[None]:
    """After a minute or two of silence the device settles as if refused, and trains on: ledgers agree.

    What the gateway may have accepted meanwhile is in the residual too, and will be counted twice.
    """
    look = Agent._next

    def look_impatiently(self: Agent, now: float) -> None:
        for task in self._tasks:
            if task.pending and task.sending and task.sending._patience_s >= 4 * RESEND_S[0]:
                pending, task.sending = task.pending, None
                refused = Result(task=task.name, incarnation=pending.incarnation, seq=pending.seq, verdict="stale")
                self._effects.append(Settle(pending, refused, self._identity.topic(Kind.RESULT)))
        look(self, now)

    with patch.object(Agent, "_next", look_impatiently):
        yield


@contextmanager
def bitmap_off_by_one() -> Iterator[None]:
    """The last chunk that a bitmap names is never sent: releases come again, and verdicts in time."""
    decode = chunks.decode_bitmap

    def decode_but_last(bitmap: bytes, count: int) -> chunks.Flags:
        flags = decode(bitmap, count)
        flags[count - 1 :] = False
        return flags

    with patch.object(chunks, "decode_bitmap", decode_but_last):
        yield


@contextmanager
def unverified_version() -> Iterator[None]:
    """A version is used as it comes, its SHA-256 not looked at: only released versions are trained."""

    def read(sha256: str, data: bytes) -> Vector:
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)

    def data(self: chunks.Incoming) -> bytes:
        return self._part.read()

    with patch.object(intake, "_read_version", read), patch.object(chunks.Incoming, "data", data):
        yield
