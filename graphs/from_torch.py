"""Checkpoint → ONNX in the deployment form (uint8 frame in, uint8 labels out) or the logits form. Needs torch."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Optional, Tuple

import onnx
import torch

from gradseg.graphs.deployment import deployment_from_logits, finished, simplified
from gradseg.graphs.graph import rewritten
from gradseg.graphs.passes.fold_batchnorm import fold_batchnorm
from gradseg.graphs.passes.relu_before_concat import relu_before_concat
from gradseg.models import metadata
from gradseg.models.checkpoint import Checkpoint
from gradseg.models.spec import ModelSpec

OPSET = 17


def onnx_from_checkpoint(
    ckpt: Checkpoint, size_hw: Optional[Tuple[int, int]] = None, logits: bool = False
) -> onnx.ModelProto:
    """A checked, simplified ONNX model with its spec in the metadata, not yet verified against the network.

    Args:
        ckpt: a loaded, finalised checkpoint.
        size_hw: (height, width) in place of the spec's; GradsegError, naming sizes that fit, if not divisible by 8.
        logits: False: `frame` uint8 BGR (1, H, W, 3) → `labels` uint8 (1, H, W).
            True: `input` float32 (1, 3, H, W), normalised as the spec says → `logits` float32 (1, C, H, W).
    """
    spec = ckpt.spec if size_hw is None else ckpt.spec.with_size(size_hw)
    model = simplified(rewritten(onnx_from_torch(ckpt.network, spec), fold_batchnorm, relu_before_concat))
    return finished(model, spec, metadata.LOGITS) if logits else deployment_from_logits(model, spec)


def onnx_from_torch(network: torch.nn.Module, spec: ModelSpec, fold: bool = False) -> onnx.ModelProto:
    """The network as PyTorch's exporter writes it (`input` → `logits`, opset 17), weights inside. fold: whatever it
    folds by itself, else nothing.

    The TorchScript exporter is used: it writes opset 17 natively and keeps BatchNormalization for our float64 folding,
    where the newer exporter needs a down-conversion that stops at opset 18 for some networks.
    """
    network = _exportable(network)
    example = torch.zeros(1, 3, *spec.input_hw)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        path = Path(folder) / "network.onnx"
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            network,
            (example,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            training=torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=fold,
        )
        return onnx.load(str(path))


class _Shuffle(torch.nn.Module):
    """`torch.nn.ChannelShuffle` in operators that the exporter knows."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = (int(size) for size in x.shape)  # plain numbers: the exported shapes are constants
        return x.reshape(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def _exportable(network: torch.nn.Module) -> torch.nn.Module:
    network = copy.deepcopy(network).eval()
    for name, module in list(network.named_modules()):
        if isinstance(module, torch.nn.ChannelShuffle):
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, _Shuffle(module.groups))
    return network
