"""The survey's MNN: converted from ONNX; FP32, its low-precision mode, and INT8 by its offline quantiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.survey.base import LOGITS, Alone, Unsupported, frames_of, versions

PIP = "pip install mnn"
NEEDS = ("MNN", "_tools")
FILES = {"fp32": "fp32.mnn", "bf16": "bf16.mnn", "int8": "int8.mnn"}
MODES = {"fp32": "high", "bf16": "Low_BF16", "int8": "low"}


def build(job: Job, precision: str) -> None:
    """`_tools` is what the wheel's own commands call; those also send statistics."""
    import _tools

    out = job.folder / ("float.mnn" if precision == "int8" else FILES[precision])
    arguments = ["--modelFile", str(job.folder / LOGITS), "--MNNModel", str(out), "--bizCode", "gradseg"]
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *arguments])
    if not out.is_file():
        raise Unsupported("MNN's converter wrote no file")
    if precision == "int8":
        _quantise(out, job.folder / FILES["int8"], job)


def _quantise(float_model: Path, out: Path, job: Job) -> None:
    """By its offline quantiser, from frames as text: MNN's form for inputs that are no image files."""
    import _tools

    frames, folder = frames_of(job), job.folder
    for index, frame in enumerate(frames):
        sample = folder / "samples" / f"input_{index}"
        sample.mkdir(parents=True)
        about = {"inputs": [{"name": "input", "shape": list(frame.shape)}]}
        (sample / "input.json").write_text(json.dumps(about), "utf-8")
        np.savetxt(str(sample / "input.txt"), frame.reshape(-1), fmt="%.6g")
    settings = {
        "path": f"{folder / 'samples'}/",
        "used_sample_num": len(frames),
        "input_type": "sequence",
        "feature_quantize_method": "KL",
        "weight_quantize_method": "MAX_ABS",
    }
    config = folder / "settings.json"
    config.write_text(json.dumps(settings), "utf-8")
    _tools.mnnquant(["mnnquant", str(float_model), str(out), str(config)])  # its command passes three strings: a crash
    if not out.is_file():
        raise Unsupported("MNN's quantiser wrote no file")


class Network(Alone):
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import MNN

        self._mnn = MNN
        settings = {"backend": "CPU", "numThread": threads, "precision": MODES[precision]}
        self._interpreter = MNN.Interpreter(str(path))
        self._session = self._interpreter.createSession(settings)
        self._input = self._interpreter.getSessionInput(self._session)
        self._output = self._interpreter.getSessionOutput(self._session)
        # lives as long as this object: the array that a Tensor gives out does not keep the Tensor alive
        self._host = self._tensor(np.zeros(self._output.getShape(), np.float32))
        self.version = versions("mnn")

    def _tensor(self, array: np.ndarray[Any, Any]) -> Any:
        mnn = self._mnn
        return mnn.Tensor(array.shape, mnn.Halide_Type_Float, array, mnn.Tensor_DimensionType_Caffe)

    def network(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._input.copyFrom(self._tensor(frame))
        self._interpreter.runSession(self._session)
        self._output.copyToHostTensor(self._host)
        return np.asarray(self._host.getNumpyData()).reshape(self._host.getShape())
