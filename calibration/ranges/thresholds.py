"""Which limits to quantise between, each criterion as a function over a histogram. NumPy only.

Limits that are returned as integers count bins from zero: bins of width w over (..., -w, 0, w, ...), limit k is k * w.
"""

from __future__ import annotations

from typing import Any, Tuple

import numpy as np

FRACTIONS = np.arange(1, 129) / 128.0  # candidates of `least_error_limits`: shares of the full limit on either side


def percentile_limits(counts: np.ndarray[Any, Any], share: float, symmetric: bool) -> Tuple[int, int]:
    """The fewest bins from zero outwards that leave at most 1 - share of all values beyond them on either side.

    counts: (2n,), the middle is zero. symmetric: of the magnitudes, so that both sides together leave that much out.
    """
    half = len(counts) // 2
    above, below = counts[half:], counts[:half][::-1]
    if symmetric:
        above = below = above + below
    allowed = (1.0 - share) * float(counts.sum())
    # what lies in and beyond each bin; the first bin where that is allowed is no longer needed
    high, low = (int(np.count_nonzero(np.cumsum(side[::-1]) > allowed)) for side in (above, below))
    return -low, high


def entropy_limits(counts: np.ndarray[Any, Any], first: int, last: int, symmetric: bool) -> Tuple[int, int]:
    """The threshold with the least Kullback-Leibler divergence, in bins from zero, as (low, high).

    As in S. Migacz, "8-bit inference with TensorRT", GTC 2017: for every threshold the histogram within, with what lies
    beyond added to its outermost bins in use, is compared with itself quantised to the target's number of levels.

    Args:
        counts: (2n,), the middle is zero; exact zeros should not be in it, which every quantisation keeps.
        first, last: the bins in use, first <= 0 <= last in bins from zero.
        symmetric: the magnitudes are quantised to 128 levels. Else the values between the limits, of which only those
            beyond the threshold are cut, to 256.
    """
    half = len(counts) // 2
    levels = 128 if symmetric else 256
    if symmetric:
        counts, first, last, half = counts[half:] + counts[:half][::-1], 0, max(-first, last), 0
    thresholds = np.arange(1, max(-first, last) + 1)
    starts, stops = np.maximum(first, -thresholds), np.minimum(last, thresholds)
    enough = stops - starts >= levels
    enough[-1] = True
    starts, stops = starts[enough], stops[enough]
    divergences = divergence(counts, starts + half, stops + half, levels)
    best = len(divergences) - 1 - int(np.argmin(divergences[::-1]))  # of equal ones that which clips least
    return int(-stops[best] if symmetric else starts[best]), int(stops[best])


def divergence(
    counts: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], stops: np.ndarray[Any, Any], levels: int
) -> np.ndarray[Any, Any]:
    """KL(P || Q) for every window counts[start:stop], float64 (windows,); infinite for a window with empty bins only.

    P: the window with all counts before and after it added to its first and last bin that is not empty. Q: the window's
    own counts, summed in `levels` intervals of equal width and spread evenly over the bins of each that are not empty.
    Both are normalised. By sums from the start, so that a window costs `levels` look-ups and not its length.
    """
    upto = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    used = np.concatenate([[0], np.cumsum(counts > 0)])
    logs = np.concatenate([[0.0], np.cumsum(_times_log(counts))])
    sizes, parts = stops - starts, np.arange(levels + 1)
    bounds = starts[:, None] + (parts[None, :] * sizes[:, None] + levels - 1) // levels
    sums, bins = np.diff(upto[bounds]), np.diff(used[bounds])
    log_q = np.log(np.where(bins > 0, sums / np.maximum(bins, 1), 1.0))
    before, own, after = upto[starts], upto[stops] - upto[starts], upto[-1] - upto[stops]
    cross, entropy = (sums * log_q).sum(axis=1), logs[stops] - logs[starts]
    filled = np.flatnonzero(counts)
    count = max(len(filled), 1)
    first = filled[np.minimum(np.searchsorted(filled, starts), count - 1)]
    last = filled[np.maximum(np.searchsorted(filled, stops) - 1, 0)]
    for beyond, at, there in (
        (before, first, counts[first]),
        (after, last, counts[last] + np.where(first == last, before, 0.0)),
    ):
        level = np.clip((at - starts) * levels // sizes, 0, levels - 1)
        entropy += _times_log(there + beyond) - _times_log(there)
        cross += beyond * log_q[np.arange(len(level)), level]
    known = np.where(own > 0, own, 1.0)
    return np.where(own > 0, (entropy - cross) / upto[-1] + np.log(known / upto[-1]), np.inf)


def _times_log(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """x log x, 0 at 0."""
    known = np.asarray(values, np.float64)
    result: np.ndarray[Any, Any] = known * np.log(np.where(known > 0, known, 1.0))
    return result


def least_error_limits(
    values: np.ndarray[Any, Any], counts: np.ndarray[Any, Any], low: float, high: float, symmetric: bool
) -> Tuple[float, float]:
    """Of all pairs of `FRACTIONS` of low <= 0 and of high >= 0 the one with the least squared error.

    values: ascending, where the counts lie; both float64 (n,). The error of a value inside the limits is that of
    rounding to steps of the limits' distance / 255 (symmetric: / 254), step² / 12; outside, its distance squared.
    symmetric: the limits are ±T, T a fraction of the larger one.
    """
    if symmetric:
        highs = max(-low, high) * FRACTIONS
        costs = clipping_error(values, counts, -highs, highs, 254)
        best = _last_least(costs)
        return -float(highs[best]), float(highs[best])
    lows, highs = (limit * FRACTIONS if limit else np.zeros(1) for limit in (low, high))
    pairs = np.broadcast_arrays(lows[:, None], highs[None, :])
    costs = clipping_error(values, counts, pairs[0].reshape(-1), pairs[1].reshape(-1), 255)
    best = _last_least(costs)
    return float(lows[best // len(highs)]), float(highs[best % len(highs)])


def _last_least(costs: np.ndarray[Any, Any]) -> int:
    return len(costs) - 1 - int(np.argmin(costs[::-1]))


def clipping_error(
    values: np.ndarray[Any, Any],
    counts: np.ndarray[Any, Any],
    lows: np.ndarray[Any, Any],
    highs: np.ndarray[Any, Any],
    steps: int,
) -> np.ndarray[Any, Any]:
    """Summed squared error of quantising to `steps` steps between lows[i] and highs[i], float64 (limits,).

    See `least_error_limits`. By moments summed from the start, so that a pair of limits costs two look-ups.
    """
    scale = max(float(np.abs(values).max(initial=0.0)), 1e-300)  # the moments lose less when magnitudes are near 1
    x, lows, highs = values / scale, lows / scale, highs / scale
    moments = [np.concatenate([[0.0], np.cumsum(counts * x**power)]) for power in range(3)]
    first, last = np.searchsorted(x, lows, "left"), np.searchsorted(x, highs, "right")
    below = moments[2][first] - 2 * lows * moments[1][first] + lows**2 * moments[0][first]
    rest = [moment[-1] - moment[last] for moment in moments]
    above = rest[2] - 2 * highs * rest[1] + highs**2 * rest[0]
    inside = (moments[0][last] - moments[0][first]) * ((highs - lows) / steps) ** 2 / 12.0
    result: np.ndarray[Any, Any] = (np.maximum(below, 0.0) + np.maximum(above, 0.0) + inside) * scale**2
    return result


def quantisation_error(
    left: np.ndarray[Any, Any], right: np.ndarray[Any, Any], step: float, low: float, high: float
) -> np.ndarray[Any, Any]:
    """Mean squared error of rounding to multiples of `step` within [low, high], of values even over [left, right].

    low, high: multiples of `step`. Exact: the error's integral is a sum of cubes. left == right: of that one value.
    """
    width = right - left
    spread = width > 1e-9 * step
    safe = np.where(spread, width, 1.0)
    mean = (_error_integral(right, step, low, high) - _error_integral(left, step, low, high)) / safe
    at = np.clip(np.rint(left / step) * step, low, high) - left
    result: np.ndarray[Any, Any] = np.where(spread, np.maximum(mean, 0.0), at**2)
    return result


def _error_integral(x: np.ndarray[Any, Any], step: float, low: float, high: float) -> np.ndarray[Any, Any]:
    """The integral of (x - rounded x)² from 0 to x."""
    inner = np.clip(x, low, high)
    whole = np.rint(inner / step)
    rounding = (whole * step**3 / 4.0 + (inner - whole * step) ** 3) / 3.0
    result: np.ndarray[Any, Any] = rounding + (x - inner) ** 3 / 3.0
    return result
