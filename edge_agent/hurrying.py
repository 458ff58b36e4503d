"""`train-now`: what a device need not wait for, and what it cannot go without."""

from collections.abc import Iterable

from edge_agent.task import Task


def hurry(tasks: Iterable[Task], unable: str, now: float) -> tuple[bool, str]:
    """Have every task that can train do so without waiting for its turn, a slot, or patience after a failure.

    True, and what it waits for still; or False, and why nothing can be trained: the gate, the budget, or no version to
    train from.
    """
    reasons, waits = [], []
    for task in tasks:
        why = unable or _blocked(task)
        task.hurried = not why
        if why:
            reasons.append(f"{task.name}: {why}" if not unable else why)
        else:
            task.train_at = min(task.train_at, now)
            waits.append(f"{task.name}: {task.situation()[1]}")
    return bool(waits), "; ".join(dict.fromkeys(waits or reasons)) or "no task"


def rest(tasks: Iterable[Task]) -> None:
    """Nobody asks for haste any more."""
    for task in tasks:
        task.hurried = False


def _blocked(task: Task) -> str:
    """What only the gateway or a person can change; empty for what comes by itself, or is here."""
    intake, model = task.intake, task.intake.model
    if task.pending is not None:
        return f"its update from version {task.pending.base_version} waits for a verdict"
    if intake.plan is not None and intake.plan.state != "running":
        return f"the task is {intake.plan.state}"
    if task.examples_for and not task.num_examples and task.examples_why:
        return f"no examples: {task.examples_why}"
    newest = max(model.version if model else -1, intake.manifest.version if intake.manifest else -1)
    if 0 <= newest <= task.trained:
        return f"version {task.trained} has been trained from already, and none is newer"
    return ""
