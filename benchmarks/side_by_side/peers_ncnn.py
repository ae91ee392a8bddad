"""ncnn the way its documentation has it: converted by pnnx, fed by its own pixel functions.

After https://pypi.org/project/ncnn/ ("PyTorch -> pnnx -> ncnn"),
https://github.com/Tencent/ncnn/blob/master/docs/how-to-use-and-FAQ/use-ncnn-with-pytorch-or-onnx.md and
https://github.com/Tencent/ncnn/blob/master/docs/how-to-use-and-FAQ/use-ncnn-with-opencv.md (`from_pixels_resize`,
`substract_mean_normalize`).
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.side_by_side.jobs import Job, spec_of
from gradseg.benchmarks.side_by_side.peers_tutorial import Tutorial, postprocess
from gradseg.models.spec import ModelSpec

FILES = ("net.ncnn.param", "net.ncnn.bin")


class NcnnPeer(Tutorial):
    """A converted network, blobs `in0` → `out0`."""

    engine = "ncnn"

    def __init__(self, folder: Path, spec: ModelSpec, threads: int) -> None:
        super().__init__(spec)
        import ncnn

        self._ncnn: Any = ncnn
        self._net = ncnn.Net()
        self._net.opt.num_threads = threads
        for code in (self._net.load_param(str(folder / FILES[0])), self._net.load_model(str(folder / FILES[1]))):
            if code:
                raise RuntimeError(f"ncnn cannot load {folder}: code {code}")
        kinds = ncnn.Mat.PixelType
        self._pixels = kinds.PIXEL_BGR2RGB if spec.color_order == "rgb" else kinds.PIXEL_BGR
        self._mean = [255 * value for value in spec.mean] if any(spec.mean) else []
        self._scale = [1 / (255 * value) for value in spec.std]

    def preprocess(self, frame: np.ndarray[Any, Any]) -> Any:
        height, width = self.spec.input_hw
        given = (frame.shape[1], frame.shape[0])
        pixels = self._ncnn.Mat.from_pixels_resize(frame, self._pixels, *given, width, height)
        pixels.substract_mean_normalize(self._mean, self._scale)
        return pixels

    def network(self, pixels: Any) -> Any:
        extractor = self._net.create_extractor()
        extractor.input("in0", pixels)
        code, logits = extractor.extract("out0")
        if code:
            raise RuntimeError(f"ncnn: extract gave code {code}")
        return logits

    def postprocess(self, logits: Any, frame_hw: tuple[int, int]) -> np.ndarray[Any, Any]:
        return postprocess(np.array(logits)[None], frame_hw)


def build(job: Job, variant: str) -> None:
    """net.ncnn.param and net.ncnn.bin by pnnx, whose other files are thrown away."""
    import pnnx
    import torch

    from gradseg.benchmarks.side_by_side.peers_torch import checkpoint_of

    network = checkpoint_of(job).network.eval()
    with tempfile.TemporaryDirectory(dir=job.folder) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it traces the network in a way that PyTorch calls old
        pnnx.export(network, str(Path(scratch) / "net.pt"), (torch.zeros(1, 3, *job.input_hw),))
        for name in FILES:
            (Path(scratch) / name).replace(job.folder / name)


def open_pipeline(job: Job, variant: str) -> NcnnPeer:
    """variant: "fp32"."""
    return NcnnPeer(job.folder, spec_of(job), job.threads)
