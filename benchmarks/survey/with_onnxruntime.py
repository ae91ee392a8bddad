"""The survey's ONNX Runtime: the logits form as exported, and INT8 by ONNX Runtime's own static quantiser."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.common.ort_calibration import reader_of
from gradseg.benchmarks.survey.base import Source, versions

PIP = "pip install onnxruntime onnx"
NEEDS = ("onnxruntime", "onnx")
PRECISIONS = ("fp32", "int8")


def convert(source: Source, precision: str, folder: Path) -> Path:
    """fp32: the file itself. int8: Q/DQ, uint8 activations and int8 weights per channel."""
    out = folder / f"{precision}.onnx"
    if precision == "fp32":
        shutil.copyfile(source.onnx, out)
        return out
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(source.onnx, str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(out),
        reader_of("input", (frame[None] for frame in source.load_frames())),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out


class Runner:
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self.version = versions("onnxruntime")

    def run(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._session.run(None, {self._input: frame})[0]
        return found
