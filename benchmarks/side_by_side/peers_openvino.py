"""OpenVINO as its tutorials use it, in its default precision and in INT8 of NNCF.

Float after https://docs.openvino.ai/2024/notebooks/hello-segmentation-with-output.html. INT8 after "Basic Quantization
Flow" (https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/
basic-quantization-flow.html): `nncf.quantize` with its defaults. The number of threads is set, nothing else.
"""

from __future__ import annotations

from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.side_by_side.networks import export_logits, spec_of
from gradseg.benchmarks.side_by_side.peers_tutorial import Tutorial, calibration
from gradseg.benchmarks.survey.base import LOGITS
from gradseg.benchmarks.survey.with_openvino import Network, quantise_nncf

FILES = {"default": LOGITS, "int8": "nncf.xml"}


def build(job: Job, variant: str) -> None:
    """logits.onnx, and for variant "int8" nncf.xml with its weights."""
    logits = export_logits(job)
    if variant == "int8":
        quantise_nncf(logits, job.folder / FILES["int8"], calibration(job))


def open_pipeline(job: Job, variant: str) -> Tutorial:
    """variant: "default" or "int8"."""
    return Tutorial(Network(job.folder / FILES[variant], variant, job.threads, plain=True), spec_of(job))
