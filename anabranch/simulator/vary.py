"""Other settings for other seeds, so that a storm meets more than one way of working."""

from dataclasses import replace
from random import Random

from anabranch.simulator.experiment import Experiment

CODECS = ({"name": "uq", "step": "1.0"}, {"name": "float16"}, {"name": "none"})
PACKETS = (1024, 4096, 268_435_455)  # bytes: everything in chunks, the bundle only, nothing


def varied(experiment: Experiment, rng: Random) -> Experiment:
    """The experiment with mode, codecs, clipping, packets, predictions and availability drawn."""
    plan = {**experiment.plan, "codec": dict(rng.choice(CODECS))}
    if rng.random() < 0.25:
        plan |= {"mode": "synchronous", "quorum": 1}
    if rng.random() < 0.25:
        plan["clip_norm"] = "0.5"
    if rng.random() < 0.5:
        plan["downlink"] = {"name": "uq", "step": "1.5"}
    availability = experiment.availability
    if rng.random() < 0.2:
        availability = replace(availability, kind="turns", awake_s=60.0, asleep_s=30.0)
    return replace(
        experiment,
        plan=plan,
        availability=availability,
        broker=replace(experiment.broker, max_packet=rng.choice(PACKETS)),
        agent=replace(experiment.agent, predict_s=7.0 if rng.random() < 0.25 else 0.0),
    )
