"""GradSeg's own pipelines: one per class of engine and precision, and the engine that tune.py chose.

What is timed is the video loop's own step, `gradseg.runtime.inference.Inference`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Optional

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.side_by_side.jobs import ENGINE_SUFFIXES, engine_in
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.protocol import Engine
from gradseg.runtime.loop.inference import Inference, Slot

TUNE_SECONDS, TUNE_FRAMES = 180, 32


class OwnPipeline:
    """An engine file behind the video loop's inference step. See `common.job.Pipeline`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine.backend.split()[0].replace("gradseg-", "")
        self.precision = engine.precision
        self._engine, self._slot = engine, Slot()
        self._frame_hw, self._inference = engine.frame_hw, Inference(engine, engine.frame_hw)

    def run(self, frame: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], tuple[int, int, int]]:
        """uint8 BGR (H, W, 3) → uint8 labels (H, W), valid until the next call, and nanoseconds of the stages."""
        frame_hw = (int(frame.shape[0]), int(frame.shape[1]))
        if frame_hw != self._frame_hw:  # as the loop does it, once it knows its source
            self._frame_hw, self._inference = frame_hw, Inference(self._engine, frame_hw)
        slot = self._slot
        slot.frame, slot.t_capture = frame, time.perf_counter_ns()
        self._inference.run(slot)
        return slot.labels, (slot.preprocess, slot.infer, slot.postprocess)


def open_pipeline(job: Job, variant: str) -> OwnPipeline:
    """variant: "tuned", or a file's name, ENGINE.PRECISION.SUFFIX."""
    path: Optional[Path] = job.folder / variant
    if variant == "tuned":
        path = job.tuned or engine_in(job.folder / variant, "engine")
    if path is None:
        raise GradsegError(f"{job.folder / variant}: no engine with one of the suffixes {', '.join(ENGINE_SUFFIXES)}")
    return OwnPipeline(open_engine(path, job.threads))


def build(job: Job, variant: str) -> None:
    """Makes the engine of a variant in the job's folder, by the script that its users call. tune.py's own folder is
    kept, so that it measures nothing twice."""
    from gradseg.export import to_native, to_openvino, to_ort, tune

    words = [str(job.checkpoint), "--size", f"{job.input_hw[0]}x{job.input_hw[1]}", "-o", str(job.folder / variant)]
    calib = ["--calib", job.calib, "--calib-frames", str(job.calib_frames)]
    if variant == "tuned":
        words += [*calib, "--data", job.val if job.val and job.trained else job.calib, "--limit", str(TUNE_FRAMES)]
        code = tune.main([*words, "--threads", str(job.threads), "--time-budget", str(TUNE_SECONDS)])
        if code:
            raise GradsegError(f"export/tune.py failed with exit code {code}")
        return
    engine, precision, _ = variant.split(".")
    words += calib if precision == "int8" else []
    if engine == "native":
        to_native.main(words)
    elif engine == "openvino":
        to_openvino.main([*words, "--precision", precision])
    else:
        to_ort.main([*words, "--precision", precision, "--no-timing"])
