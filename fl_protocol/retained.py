"""What a broker retains, and which of it a topic filter takes: quick for thousands of devices that ask the same."""

from collections.abc import Iterator
from functools import lru_cache


@lru_cache(maxsize=4096)
def _levels(pattern: str) -> tuple[str, tuple[str, ...]]:
    """What a topic must begin with, and the filter's levels."""
    first = min((at for at in (pattern.find("+"), pattern.find("#")) if at >= 0), default=len(pattern))
    # `a/#` takes `a` too, and what stands before a wildcard ends with a slash.
    return pattern[: max(0, first - 1)], tuple(pattern.split("/"))


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic filter takes a topic. Source: MQTT 5, section 4.7; `#` and `+` in front spare `$` topics."""
    prefix, wanted = _levels(pattern)
    if not topic.startswith(prefix):
        return False
    levels = topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for i, want in enumerate(wanted):
        if want == "#":
            return True
        if i == len(levels) or want not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)


def has_wildcard(pattern: str) -> bool:
    """Whether a topic filter may take more than one topic."""
    return "+" in pattern or "#" in pattern


class Retained:
    """Payload and QoS by topic. For each filter with wildcards that was ever asked for it knows what that takes."""

    def __init__(self) -> None:
        self._messages: dict[str, tuple[bytes, int]] = {}
        self._taken: dict[str, dict[str, None]] = {}  # filter -> topics, in the order of their coming

    def __len__(self) -> int:
        return len(self._messages)

    def __getitem__(self, topic: str) -> tuple[bytes, int]:
        return self._messages[topic]

    def put(self, topic: str, payload: bytes, qos: int) -> None:
        """Retain a message; an empty one clears the topic."""
        if not payload:
            if self._messages.pop(topic, None) is not None:
                for topics in self._taken.values():
                    topics.pop(topic, None)
            return
        if topic not in self._messages:
            for pattern, topics in self._taken.items():
                if matches(pattern, topic):
                    topics[topic] = None
        self._messages[topic] = payload, qos

    def under(self, pattern: str) -> Iterator[tuple[str, bytes, int]]:
        """(topic, payload, QoS) of what a filter takes, as it is now."""
        if not has_wildcard(pattern):
            return iter([(pattern, *self._messages[pattern])] if pattern in self._messages else [])
        if pattern not in self._taken:
            self._taken[pattern] = {topic: None for topic in self._messages if matches(pattern, topic)}
        return iter([(topic, *self._messages[topic]) for topic in self._taken[pattern]])
