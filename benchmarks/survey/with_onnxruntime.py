"""The survey's ONNX Runtime: the logits form as exported, and INT8 by ONNX Runtime's own static quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.common.ort_calibration import quantise_static
from gradseg.benchmarks.survey.base import LOGITS, Alone, frames_of, versions

PIP = "pip install onnxruntime onnx"
NEEDS = ("onnxruntime", "onnx")
FILES = {"fp32": LOGITS, "int8": "quantised.onnx"}


def build(job: Job, precision: str) -> None:
    """int8: Q/DQ, uint8 activations and int8 weights per channel."""
    if precision == "int8":
        from onnxruntime.quantization import QuantFormat, QuantType

        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ}
        out = job.folder / FILES["int8"]
        quantise_static(job.folder / LOGITS, out, frames_of(job), symbolic=False, per_channel=True, **kinds)


class Network(Alone):
    """plain: nothing is set but the number of threads."""

    engine = "onnxruntime"

    def __init__(self, path: Path, precision: str, threads: int, plain: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if not plain:
            options.log_severity_level = 3
            options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input, self.precision = self._session.get_inputs()[0].name, precision
        self.version = versions("onnxruntime")

    def network(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._session.run(None, {self._input: frame})[0]
        return found
