"""ncnn the way its documentation has it: converted by pnnx, fed by its own pixel functions.

After https://pypi.org/project/ncnn/ ("PyTorch -> pnnx -> ncnn"),
https://github.com/Tencent/ncnn/blob/master/docs/how-to-use-and-FAQ/use-ncnn-with-pytorch-or-onnx.md and
https://github.com/Tencent/ncnn/blob/master/docs/how-to-use-and-FAQ/use-ncnn-with-opencv.md (`from_pixels_resize`,
`substract_mean_normalize`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.side_by_side.networks import spec_of
from gradseg.benchmarks.side_by_side.peers_tutorial import Tutorial
from gradseg.benchmarks.survey.with_ncnn import Network, converted
from gradseg.models.spec import ModelSpec

FILES = ("net.ncnn.param", "net.ncnn.bin")


class NcnnPeer(Tutorial):
    """A converted network between ncnn's own steps."""

    def __init__(self, net: Network, spec: ModelSpec) -> None:
        super().__init__(net, spec)
        self._mat, self.network = net.ncnn.Mat, net.extracted
        kinds = self._mat.PixelType
        self._pixels = kinds.PIXEL_BGR2RGB if spec.color_order == "rgb" else kinds.PIXEL_BGR
        self._mean = [255 * value for value in spec.mean] if any(spec.mean) else []
        self._scale = [1 / (255 * value) for value in spec.std]

    def preprocess(self, frame: np.ndarray[Any, Any]) -> Any:
        height, width = self.spec.input_hw
        pixels = self._mat.from_pixels_resize(frame, self._pixels, frame.shape[1], frame.shape[0], width, height)
        pixels.substract_mean_normalize(self._mean, self._scale)
        return pixels

    def postprocess(self, logits: Any, frame_hw: tuple[int, int]) -> np.ndarray[Any, Any]:
        return super().postprocess(np.array(logits)[None], frame_hw)


def build(job: Job, variant: str) -> None:
    """net.ncnn.param and net.ncnn.bin by pnnx, whose other files are thrown away."""
    with tempfile.TemporaryDirectory(dir=job.folder) as scratch:
        converted(job.load().network, job, Path(scratch) / "net.pt")
        for name in FILES:
            (Path(scratch) / name).replace(job.folder / name)


def open_pipeline(job: Job, variant: str) -> NcnnPeer:
    """variant: "fp32"."""
    return NcnnPeer(Network(job.folder / FILES[0], variant, job.threads, plain=True), spec_of(job))
