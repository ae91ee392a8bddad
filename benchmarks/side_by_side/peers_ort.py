"""ONNX Runtime as its tutorials use it, in float and in INT8 of its own quantiser.

Float after https://docs.pytorch.org/tutorials/advanced/super_resolution_with_onnxruntime.html. INT8 after
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html and the example
https://github.com/microsoft/onnxruntime-inference-examples/tree/main/quantization/image_classification/cpu:
`quant_pre_process`, then `quantize_static` with its defaults (Q/DQ, min-max).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.common.ort_calibration import reader_of
from gradseg.benchmarks.side_by_side.jobs import Job, spec_of
from gradseg.benchmarks.side_by_side.peers_tutorial import Tutorial, preprocess
from gradseg.graphs.frames import open_frames
from gradseg.models.spec import ModelSpec


class OrtPeer(Tutorial):
    """An ONNX file that takes float32 (1, 3, h, w) and gives logits."""

    engine = "onnxruntime"

    def __init__(self, path: Path, spec: ModelSpec, threads: int, precision: str) -> None:
        super().__init__(spec)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input, self.precision = self._session.get_inputs()[0].name, precision

    def network(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits: np.ndarray[Any, Any] = self._session.run(None, {self._input: pixels})[0]
        return logits


def calibration(job: Job, spec: ModelSpec) -> Iterator[np.ndarray[Any, Any]]:
    """The frames to calibrate on as float32 (1, 3, h, w), the same for every quantiser."""
    for frame in open_frames(job.calib, job.calib_frames):
        yield preprocess(frame, spec)


def build(job: Job, variant: str) -> None:
    """logits.onnx, and for variant "int8" quantize_static.onnx."""
    from gradseg.benchmarks.side_by_side.peers_torch import checkpoint_of, export_logits

    logits = export_logits(job)
    if variant == "int8":
        _quantise(logits, job, checkpoint_of(job).spec)


def _quantise(logits: Path, job: Job, spec: ModelSpec) -> None:
    from onnxruntime.quantization import quant_pre_process, quantize_static

    prepared, out = job.folder / "prepared.onnx", job.folder / "quantize_static.onnx"
    quant_pre_process(str(logits), str(prepared))
    temporary = out.with_suffix(".part.onnx")
    quantize_static(str(prepared), str(temporary), reader_of("input", calibration(job, spec)))
    prepared.unlink()
    temporary.replace(out)


def open_pipeline(job: Job, variant: str) -> OrtPeer:
    """variant: "fp32" or "int8"."""
    name = "quantize_static.onnx" if variant == "int8" else "logits.onnx"
    return OrtPeer(job.folder / name, spec_of(job), job.threads, variant)
