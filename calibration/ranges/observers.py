"""Value ranges of a tensor, gathered piece by piece in a fixed amount of memory. NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.options import METHODS
from gradseg.calibration.ranges.thresholds import (
    entropy_limits,
    least_error_limits,
    percentile_limits,
    quantisation_error,
)

BINS = 4096  # over [-reach, reach); even, so that doubling the reach merges whole bins
LEAST_REACH = 2.0**-100  # below it values are zero for every purpose; keeps all factors within float32
SAMPLE = 1 << 18  # elements per array that enter the histogram; minimum and maximum see all of them
PERCENTILE = 99.999


@dataclass(frozen=True)
class Range:
    """The closed interval of values that 8 bits shall represent; holds 0."""

    low: float
    high: float


class Observer:
    """Minimum, maximum and a histogram of every array shown to it; 32 kB however many those are.

    The histogram spans [-reach, reach). The reach is the smallest power of two above every magnitude seen, so that bin
    widths are powers of two, placing a value is exact in floating point, and the bins of a smaller reach nest in those
    of a larger one: the order in which arrays are shown changes no bit.
    Exact zeros, half of all values behind a ReLU, are counted apart as well: quantising them costs nothing.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.reach = LEAST_REACH
        self.zeros = 0
        self.counts: np.ndarray[Any, Any] = np.zeros(BINS, np.int64)
        self._chosen: Dict[Tuple[str, bool, float], Range] = {}  # what `range` found since the last value came

    def update(self, values: np.ndarray[Any, Any], where: str = "an activation") -> None:
        """Adds a float array of any shape, not empty; GradsegError, naming `where`, if it holds NaN or infinity."""
        self.add(sample_of(values), float(values.min()), float(values.max()), where)

    def add(self, sample: np.ndarray[Any, Any], low: float, high: float, where: str = "an activation") -> None:
        """Adds a float32 sample (n,) of an array whose minimum and maximum are known. Errors as `update`."""
        if not (math.isfinite(low) and math.isfinite(high)):
            raise GradsegError(
                f"NaN or infinity in {where}: the network's weights or its mean and std are damaged, or this frame is"
            )
        self._chosen.clear()
        self.low, self.high = min(self.low, low), max(self.high, high)
        reach = max(self.reach, reach_of(max(-low, high)))
        self.counts, self.reach = widened(self.counts, self.reach, reach), reach
        factor = BINS / (2.0 * self.reach)
        # a factor below 1 could take a float32 below its smallest number, and a negative value to zero
        exact: np.ndarray[Any, Any] = sample if factor >= 1.0 else sample.astype(np.float64)
        index = np.floor(exact * exact.dtype.type(factor)).astype(np.intp)
        index += BINS // 2
        self.counts += np.bincount(index, minlength=BINS)
        self.zeros += sample.size - int(np.count_nonzero(sample))

    @property
    def width(self) -> float:
        """A bin's width."""
        return 2.0 * self.reach / BINS

    def centres(self) -> np.ndarray[Any, Any]:
        """The middle of every bin, float64 (BINS,)."""
        centres: np.ndarray[Any, Any] = (np.arange(BINS) + 0.5) * self.width - self.reach
        return centres

    def edges(self) -> np.ndarray[Any, Any]:
        """The edges of the bins, float64 (BINS + 1,), cut to what was seen."""
        edges: np.ndarray[Any, Any] = np.clip(np.arange(BINS + 1) * self.width - self.reach, self.low, self.high)
        return edges

    def weights(self) -> np.ndarray[Any, Any]:
        """Counts without exact zeros, float64 (BINS,)."""
        counts = self.counts.astype(np.float64)
        counts[BINS // 2] -= self.zeros
        return counts

    @property
    def always_zero(self) -> bool:
        return self.low == 0.0 == self.high

    def range(self, method: str = "mse", symmetric: bool = False, percentile: float = PERCENTILE) -> Range:
        """The range to quantise with; GradsegError for an unknown method or if nothing was observed.

        minmax: all that was seen. percentile: that share of the values on each side of zero that has any, of their
        magnitudes if `symmetric`. entropy: the threshold that loses the least information. mse: the limits with the
        least squared error, rounding and clipping together. See `ranges.thresholds`.
        symmetric: the integers are -127..127 around zero, else 0..255 with a zero point.
        """
        if method not in METHODS:
            raise GradsegError(f"calibration method {method!r}; one of {', '.join(METHODS)}")
        if not 50.0 < percentile <= 100.0:
            raise GradsegError(f"percentile {percentile:g}: expected a share above 50 and up to 100, such as 99.99")
        if self.low > self.high:
            raise GradsegError("nothing was observed: no calibration frames")
        key = (method, symmetric, percentile)
        if key not in self._chosen:
            low, high = min(self.low, 0.0), max(self.high, 0.0)
            if max(-low, high) > LEAST_REACH and method != "minmax":
                low, high = self._clipped_limits(method, symmetric, percentile)
            reach = max(high, -low)
            self._chosen[key] = Range(0.0 - reach, reach) if symmetric else Range(low, high)
        return self._chosen[key]

    def _clipped_limits(self, method: str, symmetric: bool, percentile: float) -> Tuple[float, float]:
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "percentile":
            found = percentile_limits(self.counts, percentile / 100.0, symmetric)
        elif method == "entropy":
            # the bins in use: beyond them lies nothing that could be clipped
            first, last = math.floor(low / self.width), math.floor(high / self.width) + 1
            found = entropy_limits(self.weights(), first, last, symmetric)
        else:
            assert method == "mse", method
            keep = np.flatnonzero(self.weights())
            values = np.clip(self.centres(), self.low, self.high)
            return least_error_limits(values[keep], self.weights()[keep], low, high, symmetric)
        return max(low, found[0] * self.width), min(high, found[1] * self.width)

    def square_error(self, scale: float, zero_point: int, lowest: int, highest: int) -> float:
        """Mean squared error of quantising what was seen with real = scale * (integer - zero_point).

        lowest, highest: the integers' limits. Values are taken as spread evenly over their bin, zeros as exact.
        """
        total = int(self.counts.sum())
        edges = self.edges()
        limits = ((lowest - zero_point) * scale, (highest - zero_point) * scale)
        error = quantisation_error(edges[:-1], edges[1:], scale, *limits)
        return float((error * self.weights()).sum()) / total if total else 0.0

    def clipped(self, low: float, high: float) -> float:
        """The share of values below `low` or above `high`, 0..1, by the histogram; exactly 0 if none was."""
        total = int(self.counts.sum())
        if total == 0 or (low <= self.low and high >= self.high):
            return 0.0
        left, right = self.edges()[:-1], self.edges()[1:]
        whole = (left >= low) & (right <= high)  # also bins cut to nothing, by which no share can be divided
        part = (np.minimum(right, high) - np.maximum(left, low)) / np.where(right > left, right - left, 1.0)
        inside = np.where(whole, 1.0, np.where(right > left, np.clip(part, 0.0, 1.0), 0.0))
        return float(((1.0 - inside) * self.weights()).sum()) / total


def sample_of(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """At most about `SAMPLE` elements (n,), evenly spread over an array of any shape; all of a smaller one. A view."""
    flat = values.reshape(-1)
    return flat[:: sample_step(flat.size)]


def sample_step(size: int) -> int:
    """Every how manieth element is sampled: odd, so that it does not lock onto image columns of even width."""
    return 1 if size <= SAMPLE else (size // SAMPLE) | 1


def reach_of(magnitude: float) -> float:
    """The smallest power of two above a magnitude, at least `LEAST_REACH`."""
    return max(LEAST_REACH, math.ldexp(1.0, math.frexp(magnitude)[1]) if magnitude > 0 else 0.0)


def widened(counts: np.ndarray[Any, Any], old: float, new: float) -> np.ndarray[Any, Any]:
    """The histogram over [-old, old) as one over [-new, new), both powers of two: neighbouring bins are summed."""
    doublings = min(round(math.log2(new / old)), BINS.bit_length())  # by then all lies in the two bins around zero
    for _ in range(doublings):
        wider = np.zeros_like(counts)
        wider[BINS // 4 : BINS // 4 + BINS // 2] = counts.reshape(-1, 2).sum(axis=1)
        counts = wider
    return counts
