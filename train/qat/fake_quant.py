"""Fake quantisation: float tensors rounded as ONNX's QuantizeLinear and DequantizeLinear do, with gradients.

Straight-through gradients: rounding counts as the identity, a clipped value has no gradient. A learned step gets the
gradient of Esser et al., "Learned Step Size Quantization", ICLR 2020; it is learned as its logarithm, and as a power of
two the logarithm is rounded, straight-through (Jain et al., "Trained Quantization Thresholds", MLSys 2020).
"""

from __future__ import annotations

import math
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn

from gradseg.calibration.qdq.targets import SMALLEST_SCALE, Quantisation


class _FakeQuantise(torch.autograd.Function):
    """scale * (clip(round(x / scale) + zero, low, high) - zero); `scale` broadcasts against x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: int, low: int, high: int) -> Tensor:
        result = x.div(scale).round_()
        if zero:
            result.add_(zero).clamp_(low, high).sub_(zero)
        else:
            result.clamp_(low, high)
        result.mul_(scale)
        ctx.save_for_backward(x, scale, result if ctx.needs_input_grad[1] else None)
        ctx.limits = (low - zero - 0.5, high - zero + 0.5)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Optional[Tensor], ...]:
        x, scale, result = ctx.saved_tensors
        below, above = ctx.limits
        inside = (x >= below * scale) & (x <= above * scale)
        passed = grads[0] * inside
        if result is None:
            return passed, None, None, None, None
        # d/d scale: (rounded - x) / scale inside, the bound itself where clipped
        slope = (grads[0] * result).sub_(passed * x).div_(scale)
        summed = slope.sum_to_size(scale.shape) if scale.dim() else slope.sum()
        size = slope.numel() / max(1, scale.numel())
        return passed, summed / math.sqrt(size * (above - 0.5)), None, None, None


def fake_quantise(x: Tensor, scale: Tensor, zero_point: int = 0, low: int = -128, high: int = 127) -> Tensor:
    """What Quantize- and DequantizeLinear make of `x`, bit for bit, with straight-through gradients.

    scale: float32, a single element or shaped to broadcast against `x`. Its gradient is scaled by 1 / sqrt(elements *
    high), as learned step sizes need it.
    """
    return _FakeQuantise.apply(x, scale, zero_point, low, high)  # type: ignore[no-any-return, no-untyped-call]


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def round_through(x: Tensor) -> Tensor:
    """Rounded half to even; the gradient passes as if it were not."""
    return _Round.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class Step(nn.Module):
    """One or more quantisation steps (scales), fixed or learned.

    Learned steps are kept as their base-2 logarithm, so that they stay positive and one learning rate fits all; with
    `power_of_two` the logarithm is rounded.
    """

    fixed: Tensor

    def __init__(self, scales: np.ndarray[Any, Any], power_of_two: bool, learned: bool) -> None:
        super().__init__()
        start = torch.from_numpy(np.array(np.maximum(scales, SMALLEST_SCALE), np.float32))
        self.power_of_two = power_of_two
        self.log2: Optional[nn.Parameter] = nn.Parameter(start.double().log2().float()) if learned else None
        self.register_buffer("fixed", start)

    def forward(self) -> Tensor:
        """float32 scales in the shape that they were given."""
        if self.log2 is None:
            return self.fixed
        return torch.exp2(round_through(self.log2)) if self.power_of_two else torch.exp2(self.log2)


class ActivationQuantiser(nn.Module):
    """Fake quantisation of one tensor; starts from `start` and gives what it ended at by `quantisation`."""

    def __init__(self, start: Quantisation, power_of_two: bool, learned: bool) -> None:
        super().__init__()
        self.start = start
        self.step = Step(np.asarray(start.scale), power_of_two, learned)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantise(x, self.step(), self.start.zero_point, *self.start.limits)

    def quantisation(self) -> Quantisation:
        with torch.no_grad():
            return Quantisation(float(self.step()), self.start.zero_point, self.start.signed)


class WeightQuantiser(nn.Module):
    """Fake quantisation of a convolution's weights within ±most, and of its bias where the target wants that.

    scales: one per index of `axis`, or a single one for None.
    """

    def __init__(
        self, scales: np.ndarray[Any, Any], axis: Optional[int], most: int, power_of_two: bool, learned: bool
    ) -> None:
        super().__init__()
        self.axis, self.most = axis, most
        self.step = Step(scales.ravel(), power_of_two, learned)

    def forward(self, weight: Tensor) -> Tensor:
        """float32 (O, I, kH, kW), or (I, O, kH, kW) of a deconvolution → the same on the grid."""
        view = [-1 if index == self.axis else 1 for index in range(weight.dim())]
        return fake_quantise(weight, self.step().reshape(view), 0, -self.most, self.most)

    def bias(self, bias: Tensor, input_scale: Tensor) -> Tensor:
        """The bias (O,) rounded to multiples of input scale times weight scale; no gradient reaches the scales."""
        unit: Tensor = (self.step() * input_scale).detach()
        return round_through(bias / unit) * unit

    def scales(self) -> np.ndarray[Any, Any]:
        """float32 (O,) or (1,)."""
        with torch.no_grad():
            return self.step().cpu().numpy().copy()  # type: ignore[no-any-return]
