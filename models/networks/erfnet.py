"""The ERFNet family as one parametrised definition.

Macro architecture: Romera et al., "ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation",
T-ITS 2018. Conv-modules, selective and full replacement, light decoder: Vallurupalli et al., "Efficient Semantic
Segmentation using Gradual Grouping", CVPR-W 2018. Module names follow the public ERFNet checkpoints.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradseg.models.spec import ModelSpec

BN_EPS = 1e-3  # the public ERFNet's value; its checkpoints were trained with it
DILATIONS = (2, 4, 8, 16, 2, 4, 8, 16)


class NonBottleneck1d(nn.Module):
    """ERFNet's residual block of two factorised 3x3 pairs; the second pair is dilated. (N, C, H, W) → same."""

    def __init__(self, channels: int, dropout: float, dilation: int) -> None:
        super().__init__()
        self.conv3x1_1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.bn1 = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.conv3x1_2 = nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1))
        self.conv1x3_2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation))
        self.bn2 = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv3x1_1(x))
        y = F.relu(self.bn1(self.conv1x3_1(y)))
        y = F.relu(self.conv3x1_2(y))
        y = self.bn2(self.conv1x3_2(y))
        return F.relu(self.dropout(y) + x)


class ConvModule(nn.Module):
    """Depthwise-separable residual block of the gradual-grouping paper (its Figure 2). (N, C, H, W) → same.

    3x3 depthwise → ReLU → 1x1 (grouped) [→ shuffle] → BN → ReLU → 3x3 dilated depthwise → ReLU → 1x1 (grouped)
    [→ shuffle] → BN → + input → ReLU.
    """

    def __init__(self, channels: int, groups: int, shuffle: bool, dropout: float, dilation: int) -> None:
        super().__init__()
        self.dw1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pw1 = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.dw2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels)
        self.pw2 = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.shuffle = nn.ChannelShuffle(groups) if shuffle and groups > 1 else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.dw1(x))
        y = F.relu(self.bn1(self.shuffle(self.pw1(y))))
        y = F.relu(self.dw2(y))
        y = self.bn2(self.shuffle(self.pw2(y)))
        return F.relu(self.dropout(y) + x)


class Downsampler(nn.Module):
    """Halves the resolution: 3x3 stride-2 convolution, with a 2x2 max-pool branch concatenated if `pool_concat`."""

    def __init__(self, in_channels: int, out_channels: int, pool_concat: bool) -> None:
        super().__init__()
        conv_channels = out_channels - in_channels if pool_concat else out_channels
        self.conv = nn.Conv2d(in_channels, conv_channels, 3, stride=2, padding=1)
        self.pool: Optional[nn.MaxPool2d] = nn.MaxPool2d(2) if pool_concat else None
        self.bn = nn.BatchNorm2d(out_channels, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.pool is not None:
            y = torch.cat([y, self.pool(x)], 1)
        return F.relu(self.bn(y))


class Upsampler(nn.Module):
    """Doubles the resolution by a 3x3 stride-2 deconvolution (ERFNet)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.bn = nn.BatchNorm2d(out_channels, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class LightUpsampler(nn.Module):
    """Doubles the resolution by a 1x1 convolution and bilinear interpolation.

    Convolution and BatchNorm run before the interpolation: both are linear per pixel and the interpolation weights
    sum to one, so it is the same function as the other order with a quarter of its multiply-accumulates.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return F.relu(F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False))


class Encoder(nn.Module):
    """(N, 3, H, W) → (N, 128, H/8, W/8). `output_conv` is the 1/8-resolution predictor of phase 1, or None."""

    def __init__(self, spec: ModelSpec, predictor: bool, dropout_scale: float) -> None:
        super().__init__()
        pool_concat = spec.downsampler == "pool-concat"
        dense = {"dense": (5, 8), "selective": (3, 4), "all": (0, 0)}[spec.blocks]

        def block(index: int, first_module: int, channels: int, dropout: float, dilation: int) -> nn.Module:
            dropout *= dropout_scale
            if index < first_module:
                return NonBottleneck1d(channels, dropout, dilation)
            return ConvModule(channels, spec.groups, spec.shuffle, dropout, dilation)

        self.initial_block = Downsampler(3, 16, pool_concat)
        layers: list[nn.Module] = [Downsampler(16, 64, pool_concat)]
        layers += [block(i, dense[0], 64, 0.03, 1) for i in range(5)]
        layers.append(Downsampler(64, 128, pool_concat))
        layers += [block(i, dense[1], 128, 0.3, dilation) for i, dilation in enumerate(DILATIONS)]
        self.layers = nn.ModuleList(layers)
        self.output_conv: Optional[nn.Conv2d] = nn.Conv2d(128, spec.num_classes, 1) if predictor else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.initial_block(x)
        for layer in self.layers:
            y = layer(y)
        return y

    def predict(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) → logits (N, classes, H/8, W/8) from the encoder's own predictor (phase 1)."""
        if self.output_conv is None:
            raise RuntimeError("this network was built without the encoder's predictor")
        return self.output_conv(self(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """(N, 128, H/8, W/8) → logits (N, classes, H, W)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        light = spec.light_decoder
        for in_channels, channels in ((128, 64), (64, 16)):
            layers.append((LightUpsampler if light else Upsampler)(in_channels, channels))
            for _ in range(spec.decoder_blocks):
                layers.append(ConvModule(channels, 1, False, 0.0, 1) if light else NonBottleneck1d(channels, 0.0, 1))
        self.layers = nn.ModuleList(layers)
        self.output_conv = nn.ConvTranspose2d(16, spec.num_classes, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.output_conv(x)  # type: ignore[no-any-return]


class SegNetwork(nn.Module):
    """Normalised float images (N, 3, H, W) in the spec's colour order → float logits (N, classes, H, W).

    predictor: whether the encoder keeps its 1/8-resolution predictor. dropout_scale: factor on ERFNet's dropout rates
    (0.03 in the 64-channel blocks, 0.3 in the 128-channel ones); matters in training only.
    """

    def __init__(self, spec: ModelSpec, predictor: bool = False, dropout_scale: float = 1.0) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec, predictor, dropout_scale)
        self.decoder = Decoder(spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]


def encoder_pointwise(network: SegNetwork) -> dict[str, nn.Conv2d]:
    """The 1x1 convolutions of the encoder's Conv-modules, by name: those that gradual grouping works on."""
    found: dict[str, nn.Conv2d] = {}
    for name, module in network.named_modules():
        if name.startswith("encoder.") and isinstance(module, ConvModule):
            found[f"{name}.pw1"] = module.pw1
            found[f"{name}.pw2"] = module.pw2
    return found
