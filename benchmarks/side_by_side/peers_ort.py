"""ONNX Runtime as its tutorials use it, in float and in INT8 of its own quantiser.

Float after https://docs.pytorch.org/tutorials/advanced/super_resolution_with_onnxruntime.html. INT8 after
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html and the example
https://github.com/microsoft/onnxruntime-inference-examples/tree/main/quantization/image_classification/cpu:
`quant_pre_process`, then `quantize_static` with its defaults (Q/DQ, min-max).
"""

from __future__ import annotations

from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.common.ort_calibration import quantise_static
from gradseg.benchmarks.side_by_side.networks import export_logits, spec_of
from gradseg.benchmarks.side_by_side.peers_tutorial import Tutorial, calibration
from gradseg.benchmarks.survey.base import LOGITS
from gradseg.benchmarks.survey.with_onnxruntime import Network

FILES = {"fp32": LOGITS, "int8": "quantize_static.onnx"}


def build(job: Job, variant: str) -> None:
    """logits.onnx, and for variant "int8" quantize_static.onnx."""
    logits = export_logits(job)
    if variant == "int8":
        quantise_static(logits, job.folder / FILES["int8"], calibration(job))


def open_pipeline(job: Job, variant: str) -> Tutorial:
    """variant: "fp32" or "int8"."""
    return Tutorial(Network(job.folder / FILES[variant], variant, job.threads, plain=True), spec_of(job))
