"""What each INT8 target wants of scales and zero points. NumPy only.

cpu   ONNX Runtime, OpenVINO: activations uint8 with a zero point, weights int8, one scale per output channel.
trt   TensorRT: activations int8, symmetric; weights int8, one scale per output channel.
tidl  TI's low-power devices (Mathew et al., "Sparse, Quantized, Full Frame CNN for Low Power Embedded Devices",
      CVPR-W 2017): int8, symmetric, one power-of-two scale per tensor, for weights too; biases are multiples of the
      accumulator's step, the product of input and weight scale, so that all sums are those of integers.
native  GradSeg's own engine: the scales of `cpu`. It is no key of TARGETS, since what is kept per target (ranges files,
      reports, fine-tuning) would hold the same numbers twice.
openvino  OpenVINO's CPU plugin: the scales of `cpu`, and no key of TARGETS either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.calibration.ranges.observers import Range

SMALLEST_SCALE = 1e-12
MOST = 127  # weights are within ±127: symmetric, and -128 * -128 does not occur
REDUCED = 63  # within ±63 two products of uint8 and int8 fit int16


@dataclass(frozen=True)
class Target:
    """signed: activations int8 symmetric, else uint8 with a zero point. per_channel: of weights. power_of_two: all
    scales; also, biases are rounded to the accumulator's step."""

    name: str
    signed: bool
    per_channel: bool
    power_of_two: bool


TARGETS: Dict[str, Target] = {
    "cpu": Target("cpu", signed=False, per_channel=True, power_of_two=False),
    "trt": Target("trt", signed=True, per_channel=True, power_of_two=False),
    "tidl": Target("tidl", signed=True, per_channel=False, power_of_two=True),
}

NATIVE = Target("native", signed=False, per_channel=True, power_of_two=False)
OPENVINO = Target("openvino", signed=False, per_channel=True, power_of_two=False)
SCALES_OF_CPU = {target.name: target for target in (NATIVE, OPENVINO)}


def target_named(name: str) -> Target:
    """GradsegError for a name that is none."""
    if name in SCALES_OF_CPU:
        return SCALES_OF_CPU[name]
    if name not in TARGETS:
        raise GradsegError(f"INT8 target {name!r}; one of {', '.join((*TARGETS, *SCALES_OF_CPU))}")
    return TARGETS[name]


@dataclass(frozen=True)
class Quantisation:
    """real = scale * (integer - zero_point), integers of 8 bits, `signed` or not. scale is a float32's value."""

    scale: float
    zero_point: int
    signed: bool

    @property
    def limits(self) -> Tuple[int, int]:
        """The lowest and highest integer."""
        return (-128, 127) if self.signed else (0, 255)

    @property
    def zero_type(self) -> Any:
        return np.int8 if self.signed else np.uint8


def activation_quantisation(
    limits: Range, target: Target, power_of_two: bool = False, error: Optional[Callable[[float], float]] = None
) -> Quantisation:
    """The quantisation of an activation with values in `limits`, which is widened to hold 0.

    power_of_two: asks for one where the target does not. Of the two powers of two around the float scale that one is
    taken whose `error` (scale → cost) is smaller; without `error` the upper one, which clips nothing.
    """
    low, high = min(limits.low, 0.0), max(limits.high, 0.0)
    step = max(-low, high) / 127.0 if target.signed else (high - low) / 255.0
    step = max(step, SMALLEST_SCALE)
    if power_of_two or target.power_of_two:
        upper = upper_power_of_two(step)
        step = upper if error is None or error(upper) <= error(upper / 2) else upper / 2
    if target.signed:
        return Quantisation(float(np.float32(step)), 0, True)
    zero = int(np.clip(np.rint(-low / step), 0, 255))
    return Quantisation(float(np.float32(step)), zero, False)


def upper_power_of_two(step: float) -> float:
    """The smallest power of two that is not below `step`; one that misses a power of two by rounding counts as it."""
    return float(2.0 ** np.ceil(np.log2(step) - 1e-9))


def weight_scale(
    weight: np.ndarray[Any, Any], axis: Optional[int], most: int = MOST, power_of_two: bool = False
) -> np.ndarray[Any, Any]:
    """Symmetric scales, float32, of int8 weights within ±most: one per index of `axis`, or a single one for None.

    The largest weight decides; with `power_of_two` the neighbour with the smaller squared error is taken, of which the
    lower one clips. All-zero channels get scale 1.
    """
    moved = weight.astype(np.float64)
    rows = moved.reshape(1, -1) if axis is None else np.moveaxis(moved, axis, 0).reshape(weight.shape[axis], -1)
    scales = np.abs(rows).max(axis=1) / most
    scales = np.where(scales < SMALLEST_SCALE, 1.0, scales)
    if power_of_two:
        scales = np.array([_better_power(row, scale, most) for row, scale in zip(rows, scales)])
    return scales.astype(np.float32)


def _better_power(row: np.ndarray[Any, Any], scale: float, most: int) -> float:
    upper = upper_power_of_two(scale)

    def error(step: float) -> float:
        return float(((np.clip(np.rint(row / step), -most, most) * step - row) ** 2).sum())

    return min((upper, upper / 2), key=error)


def weight_integers(
    weight: np.ndarray[Any, Any], scales: np.ndarray[Any, Any], axis: Optional[int], most: int = MOST
) -> np.ndarray[Any, Any]:
    """int8 weights within ±most for `scales` from `weight_scale`."""
    packed = np.rint(weight.astype(np.float64) / along(scales, axis, weight.ndim))
    result: np.ndarray[Any, Any] = np.clip(packed, -most, most).astype(np.int8)
    return result


def along(scales: np.ndarray[Any, Any], axis: Optional[int], ndim: int) -> np.ndarray[Any, Any]:
    """Scales shaped so that they multiply weights of `ndim` dimensions along `axis`."""
    view = [-1 if index == axis else 1 for index in range(ndim)]
    return scales.astype(np.float64).reshape(view if axis is not None else [1] * ndim)
