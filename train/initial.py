"""Starting from another checkpoint's weights: other data, other classes, or a dense network that is to be grouped."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gradseg.base.errors import GradsegError
from gradseg.models.checkpoint import load_checkpoint
from gradseg.models.networks.erfnet import SegNetwork

HEADS = ("encoder.output_conv.", "decoder.output_conv.")


def dense_from_grouped(weight: Tensor, in_channels: int) -> Tensor:
    """A grouped weight (C_out, C_in / g, kH, kW) as the dense one (C_out, C_in, kH, kW) of the same function.

    Zero outside the diagonal blocks. C_in must be a multiple of the grouped width.
    """
    width = weight.shape[1]
    rows = enumerate(weight.chunk(in_channels // width))
    return torch.cat([F.pad(row, (0, 0, 0, 0, g * width, in_channels - (g + 1) * width)) for g, row in rows])


def initialise(network: SegNetwork, path: str | Path) -> str:
    """Loads a finalised checkpoint's weights into `network`, in place; returns a sentence on what was taken over.

    Prediction layers are taken over only if the classes are the same, in order; a predictor that the checkpoint lacks
    stays as it is. Grouped weights go into the diagonal blocks of dense ones. Raises GradsegError if anything else does
    not fit (another architecture).
    """
    source = load_checkpoint(path)
    theirs, mine = source.network.state_dict(), network.state_dict()
    same_classes = source.spec.classes == network.spec.classes
    fresh, wrong = [], []
    for name, tensor in mine.items():
        other = theirs.get(name)
        if name.startswith(HEADS) and (other is None or not same_classes):
            fresh.append(name)
        elif name.endswith(".alpha"):
            continue
        elif other is not None and other.shape == tensor.shape:
            tensor.copy_(other)
        elif other is not None and _grouped_form(other, tensor):
            tensor.copy_(dense_from_grouped(other, tensor.shape[1]))
        else:
            wrong.append(name)
    if wrong:
        raise GradsegError(
            f"--init {path}: its architecture {source.spec.arch!r} does not fit {network.spec.arch!r} "
            f"({len(wrong)} tensors, first {wrong[0]})"
        )
    with torch.no_grad():
        network.load_state_dict(mine)
    heads = f"; new prediction layers ({len(fresh)} tensors)" if fresh else ""
    return f"started from {path}: {len(mine) - len(fresh)} tensors taken over{heads}"


def _grouped_form(grouped: Tensor, dense: Tensor) -> bool:
    same = grouped.dim() == dense.dim() == 4 and grouped.shape[0] == dense.shape[0]
    return same and grouped.shape[2:] == dense.shape[2:] and dense.shape[1] % grouped.shape[1] == 0
