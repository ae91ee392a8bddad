"""The survey's OpenVINO: FP32 and bf16 by its precision hint, INT8 by NNCF's post-training quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable

import numpy as np

from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.survey.base import LOGITS, Alone, Unsupported, frames_of, versions

PIP = "pip install openvino nncf"
NEEDS = ("openvino",)
FILES = {"fp32": LOGITS, "bf16": LOGITS, "int8": "int8.xml"}
WORDS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "f32": "fp32", "bf16": "bf16", "f16": "fp16"}


def build(job: Job, precision: str) -> None:
    """int8: the IR that NNCF makes of the ONNX file."""
    import openvino

    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unsupported("this CPU has no bf16 instructions")
    if precision == "int8":
        frames = frames_of(job)
        out = job.folder / FILES["int8"]
        quantise_nncf(job.folder / LOGITS, out, frames, compress_to_fp16=False, subset_size=len(frames))


def quantise_nncf(
    model: Path, out: Path, frames: Iterable[np.ndarray[Any, Any]], compress_to_fp16: bool = True, **options: Any
) -> None:
    """frames: float32 (1, 3, h, w). options: of `nncf.quantize`."""
    import openvino

    try:
        import nncf
    except ImportError as error:
        raise Unsupported(f"NNCF is missing: pip install nncf ({error})") from error
    quantised = nncf.quantize(openvino.Core().read_model(str(model)), nncf.Dataset(list(frames)), **options)
    openvino.save_model(quantised, str(out), compress_to_fp16=compress_to_fp16)


class Network(Alone):
    """plain: nothing is set but the number of threads; `precision` is what OpenVINO chose (bf16 where the CPU computes
    in it), and the logits are copied out."""

    engine = "openvino"

    def __init__(self, path: Path, precision: str, threads: int, plain: bool = False) -> None:
        import openvino

        settings: Dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        if not plain:
            hint = "bf16" if precision == "bf16" else "f32"
            settings.update(PERFORMANCE_HINT="LATENCY", INFERENCE_PRECISION_HINT=hint)
        self._compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        chosen = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision = "int8" if precision == "int8" else WORDS.get(chosen, chosen)
        self._output, self._shared = self._compiled.output(0), not plain
        self.version = versions("openvino", *(["nncf"] if precision == "int8" else []))

    def network(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits: np.ndarray[Any, Any] = self._compiled([frame], share_outputs=self._shared)[self._output]
        return logits
