"""The network in each of the three phases, and the averaged weights that are evaluated and saved."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Iterator, Mapping, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradseg.base.errors import GradsegError
from gradseg.models.checkpoint import load_checkpoint
from gradseg.models.grouping import finalise
from gradseg.models.networks.erfnet import Encoder, SegNetwork


class CoarseNetwork(nn.Module):
    """Phase 1: the encoder with its own predictor, (N, 3, H, W) → logits (N, C, H/8, W/8)."""

    def __init__(self, network: SegNetwork) -> None:
        super().__init__()
        self.encoder: Encoder = network.encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.predict(x)


class HeldEncoderNetwork(nn.Module):
    """Phase 2: the decoder learns on the features of an encoder that is held still.

    The paper gives the encoder a learning rate of 5e-20; here it gets none: evaluation mode, no gradients.
    """

    def __init__(self, network: SegNetwork) -> None:
        super().__init__()
        self.encoder, self.decoder = network.encoder, network.decoder

    def train(self, mode: bool = True) -> HeldEncoderNetwork:
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.encoder(x)
        return self.decoder(features)  # type: ignore[no-any-return]


def leave_encoder_phase(network: SegNetwork) -> None:
    """Turns the network into its final form: true grouped convolutions, no predictor. Raises if α is not 0."""
    finalise(network)
    network.encoder.output_conv = None


def phase_module(network: SegNetwork, phase: str) -> nn.Module:
    """The module that phase "encoder", "decoder" or "joint" trains; only what learns requires gradients."""
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    if phase == "decoder":
        network.encoder.requires_grad_(False)
        return HeldEncoderNetwork(network)
    return CoarseNetwork(network) if phase == "encoder" else network


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for convolution weights only, not for biases, BatchNorm or depthwise filters of 9 weights."""
    decayed, plain = list[Tensor](), list[Tensor]()
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if parameter.dim() == 4 and parameter.shape[1] > 1 else plain).append(parameter)
    both = ((plain, 0.0), (decayed, weight_decay))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in both if parameters]


class Average:
    """Exponential moving average of a network's parameters and BatchNorm statistics (float tensors; others copied).

    The decay rises with the number of updates, min(decay, (1 + n) / (10 + n)), so that a young average follows.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = copied(network.state_dict())

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        for name, tensor in network.state_dict().items():
            mine = self.state[name]
            if tensor.is_floating_point() and not name.endswith(".alpha"):
                mine.lerp_(tensor, 1 - decay)
            else:
                mine.copy_(tensor)


@contextlib.contextmanager
def swapped(network: nn.Module, average: Average) -> Iterator[None]:
    """Within, `network` holds the average's weights; its own come back at the end."""
    own = copied(network.state_dict())
    network.load_state_dict(average.state)
    try:
        yield
    finally:
        network.load_state_dict(own)


def copied(state: Mapping[str, Tensor], device: Optional[str] = None) -> dict[str, Tensor]:
    """Detached copies of a state dict's tensors, on `device` if one is named."""
    return {name: tensor.detach().to(device, copy=True) for name, tensor in state.items()}


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
