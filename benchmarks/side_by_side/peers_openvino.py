"""OpenVINO as its tutorials use it, in its default precision and in INT8 of NNCF.

Float after https://docs.openvino.ai/2024/notebooks/hello-segmentation-with-output.html. INT8 after "Basic Quantization
Flow" (https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/
basic-quantization-flow.html): `nncf.quantize` with its defaults. The number of threads is set, nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.side_by_side.jobs import Job, spec_of
from gradseg.benchmarks.side_by_side.peers_ort import calibration
from gradseg.benchmarks.side_by_side.peers_tutorial import Tutorial
from gradseg.models.spec import ModelSpec

WORDS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "f32": "fp32", "bf16": "bf16", "f16": "fp16"}


class OpenvinoPeer(Tutorial):
    """An ONNX or IR file that takes float32 (1, 3, h, w) and gives logits, on the CPU.

    precision: "int8", or what OpenVINO chose by itself (bfloat16 where the CPU computes in it).
    """

    engine = "openvino"

    def __init__(self, path: Path, spec: ModelSpec, threads: int, int8: bool) -> None:
        super().__init__(spec)
        import openvino

        core = openvino.Core()
        model = core.read_model(str(path))
        self._compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads})
        chosen = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision = "int8" if int8 else WORDS.get(chosen, chosen)
        self._output = self._compiled.output(0)

    def network(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits: np.ndarray[Any, Any] = self._compiled([pixels])[self._output]
        return logits


def build(job: Job, variant: str) -> None:
    """logits.onnx, and for variant "int8" nncf.xml with its weights."""
    from gradseg.benchmarks.side_by_side.peers_torch import checkpoint_of, export_logits

    logits = export_logits(job)
    if variant == "int8":
        import nncf
        import openvino

        frames = nncf.Dataset(list(calibration(job, checkpoint_of(job).spec)))
        quantised = nncf.quantize(openvino.Core().read_model(str(logits)), frames)
        openvino.save_model(quantised, str(job.folder / "nncf.xml"))


def open_pipeline(job: Job, variant: str) -> OpenvinoPeer:
    """variant: "default" or "int8"."""
    name = "nncf.xml" if variant == "int8" else "logits.onnx"
    return OpenvinoPeer(job.folder / name, spec_of(job), job.threads, variant == "int8")
