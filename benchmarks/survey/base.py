"""What the engines of the survey have in common: how one is found, and what it starts from.

An engine is a module `with_NAME.py` that runs under whatever Python has its packages, so it needs NumPy and the
standard library until it is called. It has

PIP, NEEDS       the command that brings it; its packages' import names
FILES            precision → the file in the job's folder that `Network` opens
build            (job, precision): writes it and what belongs to it
Network          (path, precision, threads): ready to run. `version`: of the library and of its converter, for the
                 record. `network`: float32 (1, 3, h, w) → logits float32 (1, classes, h, w), valid until the next call

The job's folder, from `common.sources`, holds the network in the logits form: input float32 (1, 3, h, w), normalised as
it was trained; logits float32 (1, classes, h, w). LOGITS: exported. FRAMES: float32 (frames, 1, 3, h, w), procedural
scenes for calibration and comparison.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from typing import Any, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.benchmarks.common.job import Job

# by the first column of the table; a module may hold more than one
ENGINES = ("onnxruntime", "openvino", "ncnn", "mnn", "litert", "executorch")
LOGITS, FRAMES = "logits.onnx", "frames.npy"


class Alone:
    """A network with nothing before or behind it. See `common.job.Pipeline`."""

    def network(self, frame: Any) -> Any:
        raise NotImplementedError

    def run(self, frame: np.ndarray[Any, Any]) -> Tuple[np.ndarray[Any, Any], Tuple[int, ...]]:
        begin = time.perf_counter_ns()
        logits = self.network(frame)
        return logits, (time.perf_counter_ns() - begin,)


class Unsupported(GradsegError):  # noqa: N818  a row of the table says so
    """What this engine cannot do here; the message is the reason that stands in the result."""


def engine(name: str) -> Any:
    """The module of an engine."""
    return importlib.import_module(f"gradseg.benchmarks.survey.with_{name}")


def open_pipeline(job: Job, variant: str) -> Alone:
    """variant: "ENGINE PRECISION"."""
    name, _, precision = variant.partition(" ")
    network: Alone = engine(name).Network(job.folder / engine(name).FILES[precision], precision, job.threads)
    return network


def frames_of(job: Job) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.load(job.folder / FRAMES, allow_pickle=False)
    return found


def versions(*distributions: str) -> str:
    """ "name 1.2, other 3" of what is installed."""
    texts = []
    for name in distributions:
        try:
            texts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(texts)
