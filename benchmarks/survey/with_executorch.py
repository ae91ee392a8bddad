"""The survey's ExecuTorch with XNNPACK: FP32, and INT8 by the XNNPACK quantiser of PyTorch's export flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.survey.base import Alone, frames_of, versions

PIP = "pip install executorch"
NEEDS = ("executorch", "torch")
FILES = {"fp32": "fp32.pte", "int8": "int8.pte"}


def build(job: Job, precision: str) -> None:
    """network.pte; what XNNPACK does not take runs in ExecuTorch's portable kernels."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    sample = (torch.zeros(1, 3, *job.input_hw),)
    exported = torch.export.export(job.load().network, sample)
    if precision == "int8":
        exported = torch.export.export(_quantised(exported.module(), job), sample)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    with open(job.folder / FILES[precision], "wb") as stream:
        lowered.write_to_file(stream)


def _quantised(module: Any, job: Job) -> Any:
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    settings = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(module, settings)
    with torch.no_grad():
        for frame in frames_of(job):
            prepared(torch.from_numpy(frame))
    return convert_pt2e(prepared)


class Network(Alone):
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import torch
        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(threads)
        self._torch, self._module = torch, portable_lib._load_for_executorch(str(path))
        self.version = versions("executorch", "torch")

    def network(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._module.forward([self._torch.from_numpy(frame)])[0].numpy()
        return found
