"""From what a training came to, to the sealed bytes of an update and the two futures of its residual."""

from collections.abc import Callable
from dataclasses import dataclass

from numpy.random import Generator

from edge_agent.events import LocalVector, PendingUpdate, SaveUpdate, Train
from edge_agent.identity import Identity
from edge_agent.intake import Model, Work
from edge_agent.task import Task
from edge_agent.training import TrainingResult
from fl_protocol.compression.feedback import prepare
from fl_protocol.compression.float16 import encode_statistics
from fl_protocol.compression.pipeline import make_compressor
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import Update
from fl_protocol.signing import seal_update
from fl_protocol.topics import Kind

HEADER = 600  # bytes of an update around its payload and statistics: some 500 with topic and signature, long ids aside


@dataclass(frozen=True)
class Training:
    """A training in hand: what it works for, the version that it began with, and the slot that it is for, if any."""

    task: Task
    work: Work
    base: Model
    slot: str = ""

    def begin(self, rng: Generator) -> Train:
        """What the trainer is asked to do; it draws from its own generator."""
        work, personal = self.work, self.task.personal_for(self.work.bundle)
        return Train(self.task.name, work.bundle, self.base.vector, work.order, personal, rng.spawn(1)[0])

    def make_update(
        self,
        result: TrainingResult,
        identity: Identity,
        seq: int,
        rng: Generator,
        max_bytes: int | None = None,
        never: Callable[[int], str] | None = None,
    ) -> SaveUpdate:
        """The update, by the plan's codec.

        Raises `ValueError` for a result that is not finite, and `ProtocolError(E_QUOTA)` for an update which could not
        be sent on any day: `never` says why not, by its size. Nothing of it is kept then, for a training of the same
        version would owe it twice.

        With `max_bytes` the codec is asked for a payload that leaves the whole update, its header and statistics
        included, at most so many bytes; it comes as near as its range allows. How it is read does not depend on that.
        """
        plan, layout, name = self.work.plan, self.work.bundle.layout, self.task.name
        delta = result.parameters - self.base.vector[: layout.num_parameters]
        residual = self.task.residual_for(self.work)
        statistics = encode_statistics(result.statistics)
        compressor = self.work.compressor
        if max_bytes is not None:
            compressor = make_compressor(plan.codec, layout, max(1, max_bytes - len(statistics) - HEADER))
        prepared = prepare(compressor, delta, residual, clip_norm=self.work.clip_norm, rng=rng)
        if never and (why := never(len(prepared.payload) + len(statistics) + HEADER)):
            raise ProtocolError(Code.QUOTA, f"{why}; nothing of this training is kept")
        update = Update(
            device=identity.device,
            incarnation=identity.incarnation,
            seq=seq,
            task=name,
            plan_revision=plan.revision,
            base_version=self.base.version,
            fingerprint=layout.fingerprint,
            num_examples=result.num_examples,
            local_steps=result.local_steps,
            codec=dict(plan.codec),
            payload=prepared.payload,
            statistics=statistics,
            train_seconds=round(result.train_seconds, 4),
            metrics=dict(result.metrics),
            slot=self.slot,
        )
        pending = PendingUpdate(
            task=name,
            incarnation=identity.incarnation,
            seq=seq,
            base_version=self.base.version,
            fingerprint=layout.fingerprint,
            num_examples=result.num_examples,
            sealed=seal_update(update, identity.key, identity.fleet, identity.topic(Kind.UPDATE)),
            if_accepted=prepared.if_accepted,
            if_refused=prepared.if_refused,
            origin=plan.origin,
        )
        return SaveUpdate(pending, LocalVector(layout.fingerprint, result.personal, plan.origin))
