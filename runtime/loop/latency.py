"""Latency of engines in one run and in turn, from a frame to labels of its size, every stage timed."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Sequence

import numpy as np

from gradseg.data.scenes.frames import SceneVideo
from gradseg.runtime.engines.protocol import Engine
from gradseg.runtime.loop.inference import Entry
from gradseg.runtime.loop.report import engine_facts

STAGES = ("preprocess", "infer", "postprocess")


TURN, SETTLE = 10, 3  # timed frames of a turn, untimed ones before them
FRAMES = 8  # different frames in turn: a constant input would flatter caches


class Timed:
    """One engine with its buffers and the nanoseconds measured so far, (samples, stages)."""

    def __init__(self, engine: Engine, frame_hw: Sequence[int]) -> None:
        self.engine, self.entry = engine, Entry(engine)
        self.labels: np.ndarray[Any, Any] = np.empty((engine.batch, int(frame_hw[0]), int(frame_hw[1])), np.uint8)
        self.samples: List[Sequence[int]] = []

    def step(self, frame: np.ndarray[Any, Any], keep: bool) -> None:
        """Runs one batch of a frame, uint8 BGR (H, W, 3), repeated; keeps its stage times if asked."""
        clock = time.perf_counter_ns
        begin = clock()
        batch = self.entry.prepare([frame] * self.engine.batch)
        prepared = clock()
        labels = self.entry.infer(batch)
        inferred = clock()
        for small, large in zip(labels, self.labels):
            self.entry.enlarge(small, (large.shape[0], large.shape[1]), large)
        done = clock()
        if keep:
            self.samples.append((prepared - begin, inferred - prepared, done - inferred))

    def row(self) -> Dict[str, Any]:
        """Percentiles in milliseconds per batch over the whole samples, and the frame rate of their mean."""
        stages = np.asarray(self.samples, np.float64) / 1e6
        total = stages.sum(axis=1)
        p50, p90, p99 = (float(v) for v in np.percentile(total, (50, 90, 99)))
        return {
            **engine_facts(self.engine),
            "threads": self.engine.threads,
            "batch": self.engine.batch,
            "p50_ms": p50,
            "p90_ms": p90,
            "p99_ms": p99,
            "mean_ms": float(total.mean()),
            "max_ms": float(total.max()),
            "fps": 1000.0 * self.engine.batch / float(total.mean()),
            "stages_p50_ms": {name: float(v) for name, v in zip(STAGES, np.percentile(stages, 50, axis=0))},
            "samples": len(total),
        }


def measure(engines: Sequence[Engine], frame_hw: Sequence[int], warmup: int, samples: int) -> List[Dict[str, Any]]:
    """A row per engine; `samples` timed frames each, after `warmup` untimed ones.

    The engines take turns of `TURN` frames, so that drift of the clocks hits all alike. The first frames of a turn are
    not timed: caches and worker threads still belong to the engine before.
    """
    video = SceneVideo((int(frame_hw[0]), int(frame_hw[1])), 1)
    frames = [video.frame(5 * i).image for i in range(FRAMES)]
    timed = [Timed(engine, frame_hw) for engine in engines]
    for each in timed:
        for index in range(warmup):
            each.step(frames[index % FRAMES], False)
    for start in range(0, samples, TURN):
        for each in timed:
            settle = SETTLE if len(timed) > 1 else 0
            for index in range(-settle, min(TURN, samples - start)):
                each.step(frames[(start + index) % FRAMES], index >= 0)
    return [each.row() for each in timed]
