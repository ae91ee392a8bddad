"""Networks with random weights whose activations and labels behave like a trained network's. Needs torch."""

from __future__ import annotations

from typing import Optional

import torch

from gradseg.data.scenes.frames import ScenesData
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.models.spec import ModelSpec
from gradseg.runtime.preprocess import normalised_chw

FRAMES = 2


def untrained_network(spec: ModelSpec, seed: int) -> SegNetwork:
    """A network in eval mode: its BatchNorms hold the statistics of procedural scenes, all its classes occur."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        network = SegNetwork(spec, dropout_scale=0.0)
        vary_norms(network, None)  # a plain mean over the frames
    finally:
        torch.random.set_rng_state(state)
    height, width = spec.input_hw
    data = ScenesData(FRAMES, (max(32, height), max(32, width)), seed)
    frames = [torch.from_numpy(normalised_chw(data[index].image[None], spec)) for index in range(FRAMES)]
    with torch.no_grad():
        network.train()
        for frame in frames:
            network(frame)
        even_classes(network, network.eval()(frames[0]))
    return network


def vary_norms(network: SegNetwork, momentum: Optional[float]) -> None:
    """Random BatchNorm weights, and how their statistics are gathered (torch's `momentum`), in place."""
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # a small residual branch: without training, depth would otherwise turn rounding into noise
            torch.nn.init.uniform_(module.weight, *((0.1, 0.3) if name.endswith("bn2") else (0.5, 1.5)))
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
            module.momentum = momentum


def even_classes(network: SegNetwork, logits: torch.Tensor) -> None:
    """Scales the last layer, in place, so that each class has mean 0 and deviation 1 in these logits (N, C, H, W).

    Without gradients: call it under torch.no_grad().
    """
    last = network.decoder.output_conv
    scale = logits.std(dim=(0, 2, 3))
    last.weight /= scale[None, :, None, None]
    assert last.bias is not None
    last.bias.copy_((last.bias - logits.mean(dim=(0, 2, 3))) / scale)
