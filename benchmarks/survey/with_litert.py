"""The survey's LiteRT with XNNPACK: FP32 by litert-torch, INT8 by the AI Edge quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.survey.base import Alone, frames_of, versions

PIP = "pip install litert-torch"
NEEDS = ("litert_torch", "ai_edge_litert", "torch")
FILES = {"fp32": "fp32.tflite", "int8": "int8.tflite"}


def build(job: Job, precision: str) -> None:
    """A .tflite with the frame channels-last, which spares the engine a transposition of every layer's sides."""
    import litert_torch
    import torch

    height, width = job.input_hw
    network = litert_torch.to_channel_last_io(job.load().network, args=[0])
    model = litert_torch.convert(network.eval(), (torch.zeros(1, height, width, 3),))
    float_model = job.folder / FILES["fp32"]
    model.export(str(float_model))
    if precision == "int8":
        _quantised(float_model, job)


def _quantised(float_model: Path, job: Job) -> None:
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe

    worker = quantizer.Quantizer(str(float_model), recipe.static_wi8_ai8())
    for side in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):  # float frames in, float logits out
        worker.update_quantization_recipe(".*", side, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE)
    frames = [{"args_0": np.ascontiguousarray(frame.transpose(0, 2, 3, 1))} for frame in frames_of(job)]
    found = worker.calibrate({"serving_default": frames})
    worker.quantize(found).export_model(str(job.folder / FILES["int8"]), overwrite=True)


class Network(Alone):
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(path), num_threads=threads)  # XNNPACK is its default delegate
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self.version = versions("ai-edge-litert", "litert-torch", "ai-edge-quantizer")

    def network(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._interpreter.tensor(self._input)()[...] = frame.transpose(0, 2, 3, 1)
        self._interpreter.invoke()
        found: np.ndarray[Any, Any] = self._interpreter.get_tensor(self._output)
        return found
