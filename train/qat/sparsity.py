"""Weight sparsity trained in: magnitude pruning to a given share, or 2 zeros in every 4 weights for TensorRT.

Mathew et al., "Sparse, Quantized, Full Frame CNN for Low Power Embedded Devices", CVPR-W 2017, prune by magnitude while
they fine-tune, layer by layer; the share rises as in Zhu & Gupta, "To prune, or not to prune", 2017. The 2:4 pattern is
that of NVIDIA's sparse tensor cores (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021): of every 4
weights along the input channels the 2 smaller ones are zero, from the first step on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from gradseg.base.errors import GradsegError
from gradseg.models.networks.erfnet import SegNetwork

TWO_OF_FOUR = "2:4"
MOST_SPARSE = 0.99
Convolution = Union[nn.Conv2d, nn.ConvTranspose2d]
FIRST, HEAD, PREDICTOR = "encoder.initial_block.conv", "decoder.output_conv", "encoder.output_conv"


@dataclass(frozen=True)
class Sparsity:
    """What was asked for. share: of zeros in every pruned layer. pattern: 2:4, along the input channels."""

    text: str
    share: float
    pattern: bool

    @classmethod
    def parse(cls, text: str) -> Sparsity:
        """'0.6' or '2:4'; GradsegError for anything else."""
        if text.strip() == TWO_OF_FOUR:
            return cls(TWO_OF_FOUR, 0.5, True)
        try:
            share = float(text)
        except ValueError:
            share = math.nan
        if not 0 < share <= MOST_SPARSE:
            raise GradsegError(
                f"--sparsity {text!r}: write a share of zeros above 0 and at most {MOST_SPARSE}, such as 0.6, or 2:4"
            )
        return cls(f"{share:g}", share, False)

    def at(self, progress: float) -> float:
        """The share at `progress` 0..1 of the pruning: share * (1 - (1 - progress)^3), rising fast and settling."""
        return self.share * (1 - (1 - min(1.0, max(0.0, progress))) ** 3)

    def mask(self, weight: Tensor, progress: float = 1.0) -> Tensor:
        """float32 ones, and zeros where a convolution's weight (O, I / groups, kH, kW) is to be zero."""
        size = weight.detach().abs()
        if self.pattern:
            return _two_of_four(size)
        mask = torch.ones(size.numel())
        mask[size.reshape(-1).argsort(stable=True)[: round(self.at(progress) * size.numel())]] = 0.0
        return mask.reshape(size.shape)


def _two_of_four(size: Tensor) -> Tensor:
    outputs, inputs, height, width = size.shape
    fours = size.permute(0, 2, 3, 1).reshape(-1, 4)
    kept = torch.ones_like(fours).scatter_(1, fours.argsort(dim=1, stable=True)[:, :2], 0.0)
    return kept.reshape(outputs, height, width, inputs).permute(0, 3, 1, 2).contiguous()


def has_pattern(weight: Tensor) -> bool:
    """Whether of every 4 weights along the input channels, for each output and kernel place, at least 2 are zero."""
    rows = weight.detach().permute(0, 2, 3, 1).reshape(-1, 4)
    return bool(((rows == 0).sum(1) >= 2).all())


def _convolutions(network: SegNetwork) -> dict[str, Convolution]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return {name: m for name, m in network.named_modules() if isinstance(m, kinds) and name != PREDICTOR}


def prunable(network: SegNetwork, pattern: bool = False) -> dict[str, Convolution]:
    """The convolutions that are pruned, by module name.

    Not the first one and the head, which have few weights and do much harm, nor depthwise ones. The 2:4 pattern is for
    ordinary convolutions whose input channels per group are a multiple of 4.
    """
    found = {}
    for name, module in _convolutions(network).items():
        depthwise = module.groups == module.in_channels
        fits = not pattern or (isinstance(module, nn.Conv2d) and module.weight.shape[1] % 4 == 0)
        if name not in (FIRST, HEAD) and not depthwise and fits:
            found[name] = module
    return found


def left_dense(network: SegNetwork, sparsity: Sparsity) -> list[str]:
    """The convolutions that pruning would touch but the pattern does not fit."""
    fitting = prunable(network, sparsity.pattern)
    return [name for name in prunable(network) if name not in fitting]


def measured_sparsity(network: SegNetwork, asked: Optional[Sparsity] = None) -> dict[str, Any]:
    """What is in the weights of a finished network.

    {"asked": text or None, "achieved": share of zeros over the convolutions that pruning touches, "overall": over the
    weights of all convolutions, "two_of_four": whether all that the 2:4 pattern fits have it, "layers": module name →
    share, "dense": those that were asked for but left dense}. Shares are fractions of 1.
    """
    everything = _convolutions(network)
    chosen = prunable(network, asked is not None and asked.pattern)
    zeros = {name: int((module.weight == 0).sum()) for name, module in everything.items()}
    sizes = {name: module.weight.numel() for name, module in everything.items()}
    patterned = prunable(network, pattern=True).values()
    return {
        "asked": None if asked is None else asked.text,
        "achieved": sum(zeros[name] for name in chosen) / max(1, sum(sizes[name] for name in chosen)),
        "overall": sum(zeros.values()) / max(1, sum(sizes.values())),
        "two_of_four": bool(patterned) and all(has_pattern(module.weight) for module in patterned),
        "layers": {name: zeros[name] / sizes[name] for name in chosen},
        "dense": [] if asked is None else left_dense(network, asked),
    }
