"""Counting a built network's convolution weights and multiply-accumulates, as built and by the published rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradseg.models.networks.erfnet import LightUpsampler, SegNetwork


@dataclass(frozen=True)
class Counts:
    """weights: convolution weights without biases and BatchNorm. parameters: everything trainable.

    macs: multiply-accumulates of the convolutions as built. published_macs: by the rule behind the paper's tables,
    where an inner upsampling counts at its output resolution and the last deconvolution at its input resolution.
    """

    weights: int
    parameters: int
    macs: int
    published_macs: int


def count(network: SegNetwork, size_hw: tuple[int, int] = (512, 1024)) -> Counts:
    """Counts on the built network by running it once on the meta device at `size_hw` (height, width), batch 1."""
    network = network.to("meta").eval()
    light = {id(module.conv) for module in network.modules() if isinstance(module, LightUpsampler)}
    totals = {"macs": 0, "published": 0}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        weights, in_px = module.weight.numel(), inputs[0].shape[2] * inputs[0].shape[3]
        out_px = output.shape[2] * output.shape[3]
        built = weights * (in_px if isinstance(module, nn.ConvTranspose2d) else out_px)
        totals["macs"] += built
        if id(module) in light:  # published: 1x1 convolution after the 2x upsampling
            totals["published"] += weights * out_px * 4
        else:
            totals["published"] += built if module is network.decoder.output_conv else weights * out_px

    predictor = network.encoder.output_conv
    convs = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) and m is not predictor]
    handles = [m.register_forward_hook(hook) for m in convs]
    with torch.no_grad():
        network(torch.empty(1, 3, *size_hw, device="meta"))
    for handle in handles:
        handle.remove()
    skipped = sum(p.numel() for p in predictor.parameters()) if predictor is not None else 0
    return Counts(
        weights=sum(m.weight.numel() for m in convs),
        parameters=sum(p.numel() for p in network.parameters()) - skipped,
        macs=totals["macs"],
        published_macs=totals["published"],
    )
