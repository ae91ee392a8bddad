"""The survey's OpenVINO: FP32 and bf16 by its precision hint, INT8 by NNCF's post-training quantiser."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.survey.base import Source, Unsupported, versions

PIP = "pip install openvino nncf"
NEEDS = ("openvino",)
PRECISIONS = ("fp32", "bf16", "int8")


def convert(source: Source, precision: str, folder: Path) -> Path:
    """The ONNX file as it is; int8: the IR that NNCF makes of it."""
    import openvino

    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unsupported("this CPU has no bf16 instructions")
    if precision != "int8":
        out = folder / f"{precision}.onnx"
        shutil.copyfile(source.onnx, out)
        return out
    try:
        import nncf
    except ImportError as error:
        raise Unsupported(f"NNCF is missing: pip install nncf ({error})") from error
    frames = source.load_frames()
    model = openvino.Core().read_model(source.onnx)
    quantised = nncf.quantize(model, nncf.Dataset([frame[None] for frame in frames]), subset_size=len(frames))
    out = folder / "int8.xml"
    openvino.save_model(quantised, str(out), compress_to_fp16=False)
    return out


class Runner:
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import openvino

        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        self._request = compiled.create_infer_request()
        self.version = versions("openvino", "nncf") if precision == "int8" else versions("openvino")

    def run(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = self._request.infer({0: frame}, share_inputs=True, share_outputs=True)
        return np.asarray(found[0])
