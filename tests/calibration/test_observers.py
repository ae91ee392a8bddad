"""Histograms that merge exactly, and the criteria by which ranges are chosen, against brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradseg.base.errors import GradsegError
from gradseg.base.options import METHODS
from gradseg.calibration.ranges.observers import BINS, LEAST_REACH, SAMPLE, Observer, Range
from gradseg.calibration.ranges.thresholds import (
    FRACTIONS,
    clipping_error,
    divergence,
    entropy_limits,
    least_error_limits,
    percentile_limits,
    quantisation_error,
)

# all of float32: subnormal, huge, and the powers of two at which bins begin
FLOATS = st.one_of(
    st.floats(-(2.0**127), 2.0**127, width=32),
    st.floats(-8, 8, width=32),
    st.builds(lambda sign, power: sign * 2.0**power, st.sampled_from([-1.0, 1.0]), st.integers(-149, 127)),
    st.just(-0.0),
)
ARRAYS = st.lists(FLOATS, min_size=1, max_size=30).map(lambda values: np.asarray(values, np.float32))
SMALL = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30).map(lambda v: np.asarray(v, np.float32))


def shown(*arrays: np.ndarray[Any, Any]) -> Observer:
    observer = Observer()
    for array in arrays:
        observer.update(array)
    return observer


def state(observer: Observer) -> Tuple[Any, ...]:
    return observer.low, observer.high, observer.reach, observer.zeros, observer.counts.tobytes()


# ---- what was seen


@settings(max_examples=150, deadline=None)
@given(arrays=st.lists(ARRAYS, min_size=1, max_size=6), order=st.randoms(use_true_random=False))
def test_histograms_are_the_same_in_any_order(arrays: List[np.ndarray[Any, Any]], order: Any) -> None:
    at_once = shown(np.concatenate(arrays))
    assert state(shown(*arrays)) == state(at_once)
    shuffled = list(arrays)
    order.shuffle(shuffled)
    assert state(shown(*shuffled)) == state(at_once)


@settings(max_examples=80, deadline=None)
@given(values=ARRAYS)
def test_every_value_is_counted_in_the_bin_that_holds_it(values: np.ndarray[Any, Any]) -> None:
    observer = shown(values)
    assert observer.counts.shape == (BINS,) and observer.counts.sum() == values.size
    assert observer.zeros == np.count_nonzero(values == 0)
    assert (observer.low, observer.high) == (values.min(), values.max())
    assert math.frexp(observer.reach)[0] == 0.5 and float(np.abs(values).max()) < observer.reach
    assert observer.reach == LEAST_REACH or float(np.abs(values).max()) >= observer.reach / 2
    width = observer.width
    expected = [0] * BINS
    for value in values.astype(np.float64):
        expected[math.floor(value / width) + BINS // 2] += 1
    assert observer.counts.tolist() == expected


def test_ranges_follow_what_comes_later() -> None:
    observer = shown(np.array([1.0], np.float32))
    assert observer.range("minmax") == observer.range("minmax") == Range(0.0, 1.0)
    observer.update(np.array([-2.0], np.float32))
    assert observer.range("minmax") == Range(-2.0, 1.0)
    observer.update(np.array([5.0], np.float32))
    assert observer.range("minmax") == Range(-2.0, 5.0)


def test_large_arrays_are_sampled_evenly_but_minimum_and_maximum_see_all() -> None:
    values = np.ones(3 * SAMPLE, np.float32)
    values[1], values[2] = -7.0, 9.0
    observer = shown(values.reshape(1, 3, SAMPLE, 1))
    assert SAMPLE / 2 <= observer.counts.sum() <= SAMPLE * 1.01
    assert (observer.low, observer.high) == (-7.0, 9.0)
    assert observer.counts.nbytes == 8 * BINS


# ---- refusals and degenerate tensors


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    with pytest.raises(GradsegError, match="NaN or infinity in tensor x on frame 3"):
        Observer().update(np.array([1.0, bad], np.float32), "tensor x on frame 3")


def test_what_is_no_range_is_refused() -> None:
    with pytest.raises(GradsegError, match="no calibration frames"):
        Observer().range("minmax")
    with pytest.raises(GradsegError, match="calibration method 'max'; one of minmax, percentile, entropy, mse"):
        Observer().range("max")
    for percentile in (0.99, 50.0, 101.0, math.nan):
        with pytest.raises(GradsegError, match="expected a share above 50 and up to 100"):
            shown(np.ones(3, np.float32)).range("percentile", percentile=percentile)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [0.0] * 5,
        [3.0] * 7,
        [-3.0] * 7,
        [7.0],
        [1e-42] * 3,
        [-1e-42, 1e-45],
        [1e-31, 0.0],
        [3e38, -3e38, 1.0],
        [-0.0],
    ],
)
def test_degenerate_tensors_keep_all_they_have(method: str, symmetric: bool, values: List[float]) -> None:
    array = np.asarray(values, np.float32)
    limits = shown(array).range(method, symmetric)
    low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    expected = Range(-max(-low, high), max(-low, high)) if symmetric else Range(low, high)
    assert limits == expected
    assert shown(array).clipped(limits.low, limits.high) == 0.0


@settings(max_examples=100, deadline=None)
@given(values=SMALL, method=st.sampled_from(METHODS), symmetric=st.booleans())
def test_ranges_hold_zero_and_lie_within_what_was_seen(
    values: np.ndarray[Any, Any], method: str, symmetric: bool
) -> None:
    limits = shown(values).range(method, symmetric)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if symmetric:
        assert limits.low == -limits.high and 0 <= limits.high <= max(-low, high)
    else:
        assert low <= limits.low <= 0 <= limits.high <= high
    if values.any():
        assert limits.low < limits.high


def test_symmetric_ranges_of_negative_tensors() -> None:
    values = -np.abs(np.random.default_rng(0).normal(size=3000)).astype(np.float32)
    for method in METHODS:
        limits = shown(values).range(method)
        assert limits.high == 0.0 and limits.low < -2.0
        assert shown(values).range(method, symmetric=True).high > 2.0


# ---- percentile


@settings(max_examples=80, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=16, max_size=16), share=st.floats(0.5, 1.0), symmetric=st.booleans())
def test_percentile_leaves_out_no_more_than_it_may(counts: List[int], share: float, symmetric: bool) -> None:
    assume(sum(counts) > 0)
    low, high = percentile_limits(np.asarray(counts), share, symmetric)
    allowed = (1.0 - share) * sum(counts)

    def beyond(limit: int) -> int:
        above, below = sum(counts[8 + limit :]), sum(counts[: 8 - limit])
        return above + below if symmetric else above

    def under(limit: int) -> int:
        return beyond(limit) if symmetric else sum(counts[: 8 - limit])

    assert beyond(high) <= allowed and (high == 0 or beyond(high - 1) > allowed)
    assert under(-low) <= allowed and (low == 0 or under(-low - 1) > allowed)


def test_percentile_mse_and_entropy_cut_off_an_outlier() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=200_000)).astype(np.float32)
    values[0] = 20.0
    observer = shown(values)
    assert observer.range("minmax").high == 20.0
    for method, most in (("percentile", 4.5), ("entropy", 5.0), ("mse", 17.0)):
        high = observer.range(method, percentile=99.9).high
        assert 2.5 < high < most, method
        assert observer.clipped(0.0, high) == pytest.approx((values > high).mean(), abs=2e-4)


# ---- entropy


def kl_by_hand(counts: List[int], start: int, stop: int, levels: int) -> float:
    """The definition in the GTC 2017 talk, word by word, bin by bin."""
    own = counts[start:stop]
    filled = [i for i, count in enumerate(own) if count]
    if not filled:
        return math.inf
    reference = [float(count) for count in own]
    reference[filled[0]] += sum(counts[:start])
    reference[filled[-1]] += sum(counts[stop:])
    members: Dict[int, List[int]] = {}
    for i in filled:
        level = next(k for k in range(i * levels // len(own), levels) if i * levels < (k + 1) * len(own))
        members.setdefault(level, []).append(i)
    candidate = [0.0] * len(own)
    for each in members.values():
        for i in each:
            candidate[i] = sum(own[j] for j in each) / len(each)
    total = 0.0
    for p, q in zip(reference, candidate, strict=True):
        if p > 0:
            total += p / sum(reference) * math.log((p / sum(reference)) / (q / sum(candidate)))
    return total


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(0, 20), min_size=8, max_size=40), levels=st.integers(2, 6))
def test_divergence_is_that_of_the_definition(counts: List[int], levels: int) -> None:
    assume(sum(counts) > 0)
    windows = [(a, b) for a, b in itertools.combinations(range(len(counts) + 1), 2) if b - a >= levels]
    starts, stops = np.array(windows).T
    found = divergence(np.asarray(counts, np.float64), starts, stops, levels)
    expected = [kl_by_hand(counts, a, b, levels) for a, b in windows]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_entropy_threshold_is_the_best_of_a_brute_force_search(seed: int, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    half = 160 if symmetric else 280
    spread = half / rng.uniform(4, 9)
    bins = np.clip(np.rint(rng.laplace(scale=spread, size=3000)), -half, half - 1).astype(int) + half
    counts = np.bincount(bins, minlength=2 * half)
    if seed % 2:
        counts[:half] = 0  # behind a ReLU
    used = np.flatnonzero(counts) - half
    first, last = min(int(used[0]), 0), max(int(used[-1]) + 1, 0)
    found = entropy_limits(counts.astype(np.float64), first, last, symmetric)
    if symmetric:
        folded = (counts[half:] + counts[:half][::-1]).tolist()
        top = max(-first, last)
        candidates = {(-t, t): kl_by_hand(folded, 0, t, 128) for t in range(1, top + 1) if t >= 128 or t == top}
    else:
        windows = {(max(first, -t), min(last, t)) for t in range(1, max(-first, last) + 1)}
        candidates = {
            (a, b): kl_by_hand(counts.tolist(), a + half, b + half, 256)
            for a, b in windows
            if b - a >= 256 or (a, b) == (first, last)
        }
    assert candidates[found] <= min(candidates.values()) + 1e-12
    assert len(candidates) > 10, "a search over nothing proves nothing"


# ---- squared error


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=12, unique=True),
    counts=st.lists(st.integers(1, 9), min_size=12, max_size=12),
    symmetric=st.booleans(),
)
def test_mse_limits_are_the_best_of_a_brute_force_search(
    values: List[float], counts: List[int], symmetric: bool
) -> None:
    assume(any(abs(v) > 1e-3 for v in values))
    x = np.sort(np.asarray(values))
    weights = np.asarray(counts[: len(x)], np.float64)
    low, high = min(float(x[0]), 0.0), max(float(x[-1]), 0.0)

    def cost(a: float, b: float) -> float:
        total = 0.0
        for value, count in zip(x, weights, strict=True):
            inside = a <= value <= b
            error = ((b - a) / (254 if symmetric else 255)) ** 2 / 12 if inside else (value - np.clip(value, a, b)) ** 2
            total += float(count * error)
        return total

    reach = max(-low, high)
    if symmetric:
        candidates = [(-reach * f, reach * f) for f in FRACTIONS]
    else:
        some = FRACTIONS[3::4]  # a quarter of them; the best of all cannot be worse
        candidates = [(low * a, high * b) for a in (some if low else [0.0]) for b in (some if high else [0.0])]
    found = least_error_limits(x, weights, low, high, symmetric)
    best = min(cost(a, b) for a, b in candidates)
    assert cost(*found) <= best * (1 + 1e-9) + 1e-15
    steps = 254 if symmetric else 255
    by_moments = float(clipping_error(x, weights, np.array([found[0]]), np.array([found[1]]), steps)[0])
    assert by_moments == pytest.approx(cost(*found), rel=1e-6, abs=1e-12)


def test_mse_range_quantises_better_than_its_neighbours_and_than_minmax() -> None:
    values = np.random.default_rng(1).laplace(size=60_000).astype(np.float32)
    observer = shown(values)

    def real(limits: Range) -> float:
        step = (limits.high - limits.low) / 254
        return float(((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2).mean())

    chosen = observer.range("mse", symmetric=True)
    assert real(chosen) < 0.9 * real(observer.range("minmax", symmetric=True))
    for factor in (0.8, 1.25):
        assert real(chosen) < real(Range(chosen.low * factor, chosen.high * factor))


@settings(max_examples=60, deadline=None)
@given(
    left=st.floats(-3, 3),
    width=st.sampled_from([0.0, 1e-3, 0.1, 2.5]),
    step=st.sampled_from([0.01, 0.125, 1.0]),
    low=st.integers(-8, 0),
    high=st.integers(0, 8),
)
def test_quantisation_error_is_the_integral(left: float, width: float, step: float, low: int, high: int) -> None:
    found = quantisation_error(np.array([left]), np.array([left + width]), step, low * step, high * step)
    x = left + (np.arange(20_000) + 0.5) / 20_000 * width
    error = (np.clip(np.rint(x / step), low, high) * step - x) ** 2
    assert float(found[0]) == pytest.approx(float(error.mean()), rel=2e-3, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.002, 0.2), zero=st.integers(0, 255), seed=st.integers(0, 9), relu=st.booleans())
def test_square_error_is_what_quantisation_costs(scale: float, zero: int, seed: int, relu: bool) -> None:
    values = np.random.default_rng(seed).normal(size=20_000).astype(np.float32)
    values = np.maximum(values, 0) if relu else values
    integers = np.clip(np.rint(values.astype(np.float64) / scale) + zero, 0, 255)
    real = float((((integers - zero) * scale - values) ** 2).mean())
    assert shown(values).square_error(scale, zero, 0, 255) == pytest.approx(real, rel=0.06, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(values=SMALL, low=st.floats(-5, 0), high=st.floats(0, 5))
def test_clipped_is_the_share_outside(values: np.ndarray[Any, Any], low: float, high: float) -> None:
    observer = shown(values)
    found = observer.clipped(low, high)
    width, values = observer.width, values.astype(np.float64)
    surely = ((values < low - width) | (values > high + width)).mean()
    possibly = ((values < low + width) | (values > high - width)).mean()
    assert surely - 1e-9 <= found <= possibly + 1e-9
    assert (found == 0.0) or low > values.min() or high < values.max()
