"""The survey's ncnn: through pnnx from the traced network, as its documentation advises; FP32 and bf16 storage."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.survey.base import Source, Unsupported, versions

PIP = "pip install ncnn pnnx torch"
NEEDS = ("ncnn", "pnnx", "torch")
PRECISIONS = ("fp32", "bf16", "int8")


def convert(source: Source, precision: str, folder: Path) -> Path:
    """NAME.ncnn.param, with NAME.ncnn.bin beside it. Weights stay float32; bf16 is a matter of the options."""
    if precision == "int8":
        raise Unsupported("its quantiser (ncnn2table, ncnn2int8) is no part of the Python packages")
    import pnnx
    import torch

    height, width = source.input_hw
    network = source.load_network()
    traced = folder / "network.pt"
    with torch.no_grad():
        traced_network: Any = torch.jit.trace(network, torch.zeros(1, 3, height, width))  # type: ignore[no-untyped-call]
        traced_network.save(str(traced))
    done = subprocess.run(
        [pnnx.EXEC_PATH, str(traced), f"inputshape=[1,3,{height},{width}]f32", "fp16=0"],
        cwd=str(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    out = folder / "network.ncnn.param"
    if done.returncode or not out.is_file():
        raise Unsupported(f"pnnx ended with exit code {done.returncode}: {done.stderr[-200:]}")
    return out


class Runner:
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import ncnn

        self._ncnn, self._net = ncnn, ncnn.Net()
        options = self._net.opt
        options.num_threads = threads
        # the weights are float32 above; so are the sums, unless bf16 is asked for
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = options.use_bf16_packed = precision == "bf16"
        if self._net.load_param(str(path)) or self._net.load_model(str(path.with_suffix(".bin"))):
            raise Unsupported(f"ncnn cannot load {path.name}")
        self._input, self._output = self._net.input_names()[0], self._net.output_names()[0]
        self.version = versions("ncnn", "pnnx")

    def run(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        extractor = self._net.create_extractor()
        extractor.input(self._input, self._ncnn.Mat(frame[0]))
        code, found = extractor.extract(self._output)
        if code:
            raise RuntimeError(f"ncnn: extract returned {code}")
        return np.asarray(found)[None]
