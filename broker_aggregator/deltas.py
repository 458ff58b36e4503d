"""What brings a device from the version that it holds to the one that it wants, made once for all who ask."""

import hashlib
from collections import OrderedDict

import numpy as np

from broker_aggregator.storage import ReadableStore
from fl_protocol.deltas import encode_delta, encode_keyframe
from fl_protocol.messages import Sha256
from fl_protocol.tensors import ModelLayout, Vector

MOST_BYTES = 64 << 20  # of deltas and keyframes held in memory
MOST_FOUND = 4096  # pairs of versions
SURELY_SHORTER = 0.5  # of float32: no keyframe is below that, so that none need be made


class Deltas:
    """Deltas between kept versions, and keyframes. What it holds can be made again: the newest of it stays."""

    def __init__(self, store: ReadableStore, most_bytes: int = MOST_BYTES) -> None:
        self._store, self._most_bytes = store, most_bytes
        self._objects: OrderedDict[Sha256, bytes] = OrderedDict()
        self._found: dict[tuple[Sha256 | None, Sha256], Sha256 | None] = {}  # (base, version) -> the object, if any

    def keep(self, data: bytes) -> Sha256:
        """Have an object at hand; its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._objects[sha256] = data
        self._objects.move_to_end(sha256)
        total = sum(map(len, self._objects.values()))
        while total > self._most_bytes and len(self._objects) > 1:
            gone, dropped = self._objects.popitem(last=False)
            total -= len(dropped)
            self._found = {way: found for way, found in self._found.items() if found != gone}
        return sha256

    def get(self, sha256: Sha256) -> bytes | None:
        """An object that is at hand."""
        return self._objects.get(sha256)

    def between(self, layout: ModelLayout, base: Sha256 | None, version: Sha256) -> tuple[Sha256 | None, bytes] | None:
        """The shorter of delta and keyframe, with what it begins from; None for a version that is not kept."""
        found = self._make(layout, base, version) if base is not None and base != version else None
        if found is not None and len(found) <= SURELY_SHORTER * 4 * layout.size:
            return base, found
        keyframe = self._make(layout, None, version)
        if found is not None and (keyframe is None or len(found) <= len(keyframe)):
            return base, found
        return None if keyframe is None else (None, keyframe)

    def _make(self, layout: ModelLayout, base: Sha256 | None, version: Sha256) -> bytes | None:
        if (base, version) in self._found:
            known = self._found[base, version]
            return self._objects[known] if known else None
        target = self._vector(version, layout)
        if target is None:
            return None
        if base is None:
            made: bytes | None = encode_keyframe(target)
        else:
            vector = self._vector(base, layout)
            if vector is None:
                return None
            made = encode_delta(layout, vector, target)
        if len(self._found) >= MOST_FOUND:
            self._found.clear()
        self._found[base, version] = self.keep(made) if made is not None else None
        return made

    def _vector(self, sha256: Sha256, layout: ModelLayout) -> Vector | None:
        data = self._store.vector_bytes(sha256)
        if data is None or len(data) != 4 * layout.size:
            return None
        return np.frombuffer(data, "<f4").astype(np.float32)
