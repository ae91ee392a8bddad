"""The survey's ncnn: through pnnx from the traced network, as its documentation advises; FP32 and bf16 storage."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.survey.base import Alone, Unsupported, versions

PIP = "pip install ncnn pnnx torch"
NEEDS = ("ncnn", "pnnx", "torch")
FILES = {"fp32": "fp32.ncnn.param", "bf16": "bf16.ncnn.param", "int8": ""}


def build(job: Job, precision: str) -> None:
    """NAME.ncnn.param, with NAME.ncnn.bin beside it. Weights stay float32; bf16 is a matter of the options."""
    if precision == "int8":
        raise Unsupported("its quantiser (ncnn2table, ncnn2int8) is no part of the Python packages")
    converted(job.load().network, job, job.folder / f"{precision}.pt", fp16=False)


def converted(network: Any, job: Job, traced: Path, **options: Any) -> None:
    """NAME.ncnn.param, NAME.ncnn.bin and other files of pnnx beside NAME.pt."""
    import pnnx
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it traces the network in a way that PyTorch calls old
        pnnx.export(network, str(traced), (torch.zeros(1, 3, *job.input_hw),), **options)
    if not traced.with_suffix(".ncnn.param").is_file():
        raise Unsupported("pnnx wrote no file")


class Network(Alone):
    """plain: nothing is set but the number of threads."""

    engine = "ncnn"

    def __init__(self, path: Path, precision: str, threads: int, plain: bool = False) -> None:
        import ncnn

        self.ncnn, self._net, self.precision = ncnn, ncnn.Net(), precision
        options = self._net.opt
        options.num_threads = threads
        if not plain:  # the weights are float32 above; so are the sums, unless bf16 is asked for
            options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
            options.use_bf16_storage = options.use_bf16_packed = precision == "bf16"
        if self._net.load_param(str(path)) or self._net.load_model(str(path.with_suffix(".bin"))):
            raise Unsupported(f"ncnn cannot load {path.name}")
        self._input, self._output = self._net.input_names()[0], self._net.output_names()[0]
        self.version = versions("ncnn", "pnnx")

    def network(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(self.extracted(self.ncnn.Mat(frame[0])))[None]

    def extracted(self, given: Any) -> Any:
        """ncnn.Mat (3, h, w) → ncnn.Mat of the logits."""
        extractor = self._net.create_extractor()
        extractor.input(self._input, given)
        code, found = extractor.extract(self._output)
        if code:
            raise RuntimeError(f"ncnn: extract returned {code}")
        return found
