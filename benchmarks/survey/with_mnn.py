"""The survey's MNN: converted from ONNX; FP32, its low-precision mode, and INT8 by its offline quantiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.survey.base import Source, Unsupported, versions

PIP = "pip install mnn"
NEEDS = ("MNN", "_tools")
PRECISIONS = ("fp32", "bf16", "int8")
MODES = {"fp32": "high", "bf16": "Low_BF16", "int8": "low"}


def convert(source: Source, precision: str, folder: Path) -> Path:
    """network.mnn, or int8.mnn. `_tools` is what the wheel's own commands call; those also send statistics."""
    import _tools

    out = folder / "network.mnn"
    arguments = ["mnnconvert", "-f", "ONNX", "--modelFile", source.onnx, "--MNNModel", str(out), "--bizCode", "gradseg"]
    _tools.mnnconvert(arguments)
    if not out.is_file():
        raise Unsupported("MNN's converter wrote no file")
    return out if precision != "int8" else _quantised(out, source, folder)


def _quantised(float_model: Path, source: Source, folder: Path) -> Path:
    """By its offline quantiser, from frames as text: MNN's form for inputs that are no image files."""
    import _tools

    frames = source.load_frames()
    for index, frame in enumerate(frames):
        sample = folder / "samples" / f"input_{index}"
        sample.mkdir(parents=True)
        shape = [1, *frame.shape]
        (sample / "input.json").write_text(json.dumps({"inputs": [{"name": "input", "shape": shape}]}), "utf-8")
        np.savetxt(str(sample / "input.txt"), frame.reshape(-1), fmt="%.6g")
    settings = {
        "path": f"{folder / 'samples'}/",
        "used_sample_num": len(frames),
        "input_type": "sequence",
        "feature_quantize_method": "KL",
        "weight_quantize_method": "MAX_ABS",
    }
    config, out = folder / "settings.json", folder / "int8.mnn"
    config.write_text(json.dumps(settings), "utf-8")
    _tools.mnnquant(["mnnquant", str(float_model), str(out), str(config)])  # its command passes three strings: a crash
    if not out.is_file():
        raise Unsupported("MNN's quantiser wrote no file")
    return out


class Runner:
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

    def run(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._input.copyFrom(self._tensor(frame))
        self._interpreter.runSession(self._session)
        self._output.copyToHostTensor(self._host)
        return np.asarray(self._host.getNumpyData()).reshape(self._host.getShape())
