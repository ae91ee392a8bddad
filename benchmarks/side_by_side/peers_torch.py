"""PyTorch as peers: eager with channels last, and torch.compile with the weights frozen. Needs torch.

After https://pytorch.org/hub/pytorch_vision_deeplabv3_resnet101/ (argmax of the output in PyTorch),
https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html (channels last),
https://docs.pytorch.org/docs/stable/torch.compiler_get_started.html and, for frozen weights,
https://github.com/pytorch/pytorch/pull/100652.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.side_by_side.peers_tutorial import Tutorial, resized
from gradseg.models.checkpoint import Checkpoint


class Network:
    """The network as trained, in float32. compiled: by torch.compile, with its weights as constants."""

    precision = "fp32"

    def __init__(self, checkpoint: Checkpoint, threads: int, compiled: bool) -> None:
        torch.set_num_threads(threads)
        self.engine = "torch.compile" if compiled else "torch"
        network: Any = checkpoint.network.eval()
        self._network: Any = network.to(memory_format=torch.channels_last)
        if compiled:
            from torch._inductor import config

            config.freezing = True
            self._network = torch.compile(self._network)

    def network(self, pixels: np.ndarray[Any, Any]) -> torch.Tensor:
        with torch.no_grad():
            given = torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last)
            logits: torch.Tensor = self._network(given)
        return logits


class TorchPeer(Tutorial):
    def postprocess(self, logits: torch.Tensor, frame_hw: tuple[int, int]) -> np.ndarray[Any, Any]:
        return resized(logits.argmax(1)[0].to(torch.uint8).numpy(), frame_hw)


def build(job: Job, variant: str) -> None:
    """Nothing to do: the checkpoint is all there is. torch.compile keeps its own cache, in the job's folder."""


def open_pipeline(job: Job, variant: str) -> TorchPeer:
    """variant: "eager" or "compile"."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.folder / "inductor")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes that would stay
    checkpoint = job.load()
    return TorchPeer(Network(checkpoint, job.threads, variant == "compile"), checkpoint.spec)
