"""PyTorch as peers: eager with channels last, and torch.compile with the weights frozen. Needs torch.

After https://pytorch.org/hub/pytorch_vision_deeplabv3_resnet101/ (argmax of the output in PyTorch),
https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html (channels last),
https://docs.pytorch.org/docs/stable/torch.compiler_get_started.html and, for frozen weights,
https://github.com/pytorch/pytorch/pull/100652.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradseg.benchmarks.side_by_side.jobs import Job
from gradseg.benchmarks.side_by_side.peers_tutorial import Tutorial, resized
from gradseg.models.checkpoint import Checkpoint, load_checkpoint

OPSET = 17


class TorchPeer(Tutorial):
    """The network as trained, in float32. compiled: by torch.compile, with its weights as constants."""

    engine = "torch"

    def __init__(self, checkpoint: Checkpoint, threads: int, compiled: bool) -> None:
        super().__init__(checkpoint.spec)
        torch.set_num_threads(threads)
        network: Any = checkpoint.network.eval()
        self._network: Any = network.to(memory_format=torch.channels_last)
        if compiled:
            from torch._inductor import config

            self.engine = "torch.compile"
            config.freezing = True
            self._network = torch.compile(self._network)

    def network(self, pixels: np.ndarray[Any, Any]) -> torch.Tensor:
        with torch.no_grad():
            given = torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last)
            logits: torch.Tensor = self._network(given)
        return logits

    def postprocess(self, logits: torch.Tensor, frame_hw: tuple[int, int]) -> np.ndarray[Any, Any]:
        return resized(logits.argmax(1)[0].to(torch.uint8).numpy(), frame_hw)


def build(job: Job, variant: str) -> None:
    """Nothing to do: the checkpoint is all there is. torch.compile keeps its own cache, in the job's folder."""


def open_pipeline(job: Job, variant: str) -> TorchPeer:
    """variant: "eager" or "compile"."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.folder / "inductor")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes that would stay
    return TorchPeer(checkpoint_of(job), job.threads, variant == "compile")


def checkpoint_of(job: Job) -> Checkpoint:
    """The job's network at the size that is measured."""
    checkpoint = load_checkpoint(job.checkpoint)
    checkpoint.spec = checkpoint.spec.with_size(job.input_hw)
    return checkpoint


def export_logits(job: Job) -> Path:
    """The network as PyTorch's exporter writes it, float32 `input` (1, 3, h, w) → `logits` (1, C, h, w), kept as
    logits.onnx. BatchNorm is folded by the exporter where it can; nothing of GradSeg's is in it."""
    path = job.folder / "logits.onnx"
    if not path.is_file():
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        network = checkpoint_of(job).network.eval()
        temporary = path.with_suffix(".part")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (torch.zeros(1, 3, *job.input_hw),),
                str(temporary),
                dynamo=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["logits"],
            )
        temporary.replace(path)
    return path
