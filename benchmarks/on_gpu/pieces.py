"""Writes ONNX files into one file for `on_gpu.index` to put together again: common parts lie there once."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.on_gpu.index import HALVED, PLAIN

LEAST = 4096  # bytes of a weight from which on it is a piece of its own


class Pieces:
    """The file at `path`, while entered. Pieces are compressed; float16 weights that another file has in float32 are
    that piece, to be rounded when it is read."""

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, 0
        self._known: dict[str, list[int]] = {}

    def __enter__(self) -> Pieces:
        self._stream = open(self.path, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, model: Any) -> dict[str, Any]:
        """Adds an onnx.ModelProto: {"sha256", "bytes", "pieces": [[start, size, PLAIN or HALVED], …]}."""
        data = model.SerializeToString()
        pieces, at = [], 0
        for start, end in cuts(data, [tensor.raw_data for tensor in model.graph.initializer]):
            pieces += [self._piece(data[at:start])] if start > at else []
            pieces.append(self._piece(data[start:end]))
            at = end
        pieces += [self._piece(data[at:])] if at < len(data) else []
        return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "pieces": pieces}

    def _piece(self, data: bytes) -> list[int]:
        key = _key(data)
        if key not in self._known:
            packed = zlib.compress(data, 9)
            self._stream.write(packed)
            self._known[key] = [self._at, len(packed), PLAIN]
            if len(data) % 4 == 0:  # it may be float32
                with np.errstate(over="ignore", invalid="ignore"):
                    halved = np.frombuffer(data, "<f4").astype("<f2").tobytes()
                self._known.setdefault(_key(halved), [self._at, len(packed), HALVED])
            self._at += len(packed)
        return self._known[key]


def _key(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def cuts(data: bytes, weights: list[bytes]) -> list[tuple[int, int]]:
    """Where the large weights lie in a serialised file, in order, without overlap."""
    found, at = [], 0
    for raw in (raw for raw in weights if len(raw) >= LEAST):
        start = data.find(raw, at)  # initialisers are serialised in their order
        if start >= 0:
            found.append((start, start + len(raw)))
            at = start + len(raw)
    return found
