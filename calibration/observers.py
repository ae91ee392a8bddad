"""Value ranges of a tensor, gathered piece by piece in a fixed amount of memory. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np

from gradseg.models.errors import GradsegError

METHODS = ("minmax", "percentile", "mse")
BINS = 4096  # over [-R, R); a multiple of 4, so that doubling R merges whole bins
SHRINK = np.linspace(0.15, 1.0, 86)  # candidate fractions of the full range, for `mse`
SAMPLE = 1 << 18  # elements per array that enter the histogram; minimum and maximum see all of them


@dataclass(frozen=True)
class Range:
    """The closed interval of values that 8 bits shall represent; holds 0."""

    low: float
    high: float


class Observer:
    """Minimum, maximum and a histogram of every array shown to it; 32 kB however many those are.

    The histogram spans [-R, R); R is doubled, and neighbouring bins are merged exactly, when a value lies outside.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.reach = 0.0
        self.counts: np.ndarray[Any, Any] = np.zeros(BINS, np.int64)

    def update(self, values: np.ndarray[Any, Any]) -> None:
        """Adds a float array of any shape; GradsegError if it holds NaN or infinity."""
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise GradsegError("NaN or infinity in an activation; the network or the frames are damaged")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        flat = values.reshape(-1)
        step = max(1, flat.size // SAMPLE) | 1  # odd: does not lock onto image columns of even width
        flat = flat[::step] if flat.size > SAMPLE else flat
        index = ((flat + self.reach) * (BINS / (2.0 * self.reach))).astype(np.int32)
        np.clip(index, 0, BINS - 1, out=index)
        self.counts += np.bincount(index, minlength=BINS)

    def _grow(self, needed: float) -> None:
        if self.reach == 0.0:
            self.reach = 2.0 ** np.ceil(np.log2(max(needed, 1e-30))) if needed > 0 else 1e-30
        while needed > self.reach:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.reach *= 2.0

    def centres(self) -> np.ndarray[Any, Any]:
        return (np.arange(BINS) + 0.5) * (2.0 * self.reach / BINS) - self.reach

    def range(self, method: str = "mse", symmetric: bool = False, percentile: float = 99.999) -> Range:
        """The range to quantise with; GradsegError for an unknown method or if nothing was observed.

        minmax: all that was seen. percentile: that share of the values, cut on the sides that have values.
        mse: the fraction of the full range with the least squared error, rounding and clipping together.
        """
        if method not in METHODS:
            raise GradsegError(f"calibration method {method!r}; one of {', '.join(METHODS)}")
        if self.low > self.high:
            raise GradsegError("nothing was observed: no calibration frames")
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "percentile":
            low, high = self._percentile(low, high, percentile)
        elif method == "mse" and high > low:
            low, high = self._least_error(low, high, symmetric)
        if symmetric:
            reach = max(-low, high)
            return Range(-reach, reach)
        return Range(low, high)

    def _percentile(self, low: float, high: float, percentile: float) -> Tuple[float, float]:
        tail = self.counts.sum() * (1.0 - percentile / 100.0)
        upto = np.cumsum(self.counts)
        width = 2.0 * self.reach / BINS
        first = int(np.searchsorted(upto, tail, side="right"))
        last = int(np.searchsorted(upto, self.counts.sum() - tail, side="left"))
        return max(low, min(first * width - self.reach, 0.0)), min(high, max((last + 1) * width - self.reach, 0.0))

    def _least_error(self, low: float, high: float, symmetric: bool) -> Tuple[float, float]:
        keep = np.flatnonzero(self.counts)
        values, counts = self.centres()[keep], self.counts[keep].astype(np.float64)
        if symmetric:
            low, high = -max(-low, high), max(-low, high)
        lows, highs = low * SHRINK[:, None], high * SHRINK[:, None]
        steps = (highs - lows) / (254.0 if symmetric else 255.0)
        clipped = np.clip(values[None, :], lows, highs)
        outside = (values[None, :] - clipped) ** 2
        # inside the range the rounding error of a bin's spread of values is that of a uniform distribution
        inside = np.where(clipped == values[None, :], steps**2 / 12.0, 0.0)
        best = int(np.argmin(((outside + inside) * counts).sum(axis=1)))
        return float(lows[best, 0]), float(highs[best, 0])
