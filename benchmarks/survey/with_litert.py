"""The survey's LiteRT with XNNPACK: FP32 by litert-torch, INT8 by the AI Edge quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.survey.base import Source, versions

PIP = "pip install litert-torch"
NEEDS = ("litert_torch", "ai_edge_litert", "torch")
PRECISIONS = ("fp32", "int8")


def convert(source: Source, precision: str, folder: Path) -> Path:
    """network.tflite with the frame channels-last, which spares the engine a transposition of every layer's sides."""
    import litert_torch
    import torch

    height, width = source.input_hw
    network = litert_torch.to_channel_last_io(source.load_network(), args=[0])
    model = litert_torch.convert(network.eval(), (torch.zeros(1, height, width, 3),))
    out = folder / "fp32.tflite"
    model.export(str(out))
    return out if precision == "fp32" else _quantised(out, source, folder / "int8.tflite")


def _quantised(float_model: Path, source: Source, out: Path) -> Path:
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe

    worker = quantizer.Quantizer(str(float_model), recipe.static_wi8_ai8())
    for side in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):  # float frames in, float logits out
        worker.update_quantization_recipe(".*", side, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE)
    frames = [{"args_0": np.ascontiguousarray(frame.transpose(1, 2, 0))[None]} for frame in source.load_frames()]
    found = worker.calibrate({"serving_default": frames})
    worker.quantize(found).export_model(str(out), overwrite=True)
    return out


class Runner:
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(path), num_threads=threads)  # XNNPACK is its default delegate
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self.version = versions("ai-edge-litert", "litert-torch", "ai-edge-quantizer")

    def run(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._interpreter.tensor(self._input)()[...] = frame.transpose(0, 2, 3, 1)
        self._interpreter.invoke()
        found: np.ndarray[Any, Any] = self._interpreter.get_tensor(self._output)
        return found
