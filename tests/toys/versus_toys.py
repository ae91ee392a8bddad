"""Pipelines that take known times, for versus.py's tests: a worker imports this module by its name."""

from __future__ import annotations

import os
from typing import Any, Optional

import numpy as np

from gradseg.benchmarks.common.job import Job

MS = 1_000_000
NETWORK_MS = {"fast": 10, "slow": 50, "late": 20}


class Toy:
    """Labels by the blue value. "late" ends its process on its tenth frame."""

    engine, precision = "toy", "fp32"

    def __init__(self, variant: str) -> None:
        self._variant, self._left = variant, 9
        self._labels: Optional[np.ndarray[Any, Any]] = None

    def run(self, frame: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], tuple[int, int, int]]:
        if self._variant == "late":
            self._left -= 1
            if self._left < 0:
                os._exit(11)
        if self._labels is None or self._labels.shape != frame.shape[:2]:
            self._labels = np.empty(frame.shape[:2], np.uint8)
        np.copyto(self._labels, frame[..., 0] // 32)  # its own until the next call, as an engine's
        return self._labels, (2 * MS, NETWORK_MS[self._variant] * MS, MS)


def build(job: Job, variant: str) -> None:
    (job.folder / "toy.txt").write_text(variant)


def open_pipeline(job: Job, variant: str) -> Toy:
    if variant == "absent":
        raise ValueError("no such thing\nas this")
    return Toy(variant)
