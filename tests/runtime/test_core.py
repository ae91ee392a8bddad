"""Preprocessing, metrics, overlay, conditions and latencies against naive implementations."""

from __future__ import annotations

import json
import math
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradseg.base.conditions import conditions
from gradseg.base.errors import GradsegError
from gradseg.models.spec import distinct_palette, spec_for
from gradseg.runtime.loop.report import Latencies, LiveLine, latency_table
from gradseg.runtime.metrics import Confusion
from gradseg.runtime.preprocess import Preprocessor, normalised_chw, resize_labels
from gradseg.runtime.sinks.overlay import MODES, Overlay

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def random_frame(hw: tuple[int, int], seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)


# -- preprocess --------------------------------------------------------------------------------------------------------


@given(SIZES, SIZES, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_preprocess_is_bilinear_resize(frame_hw: tuple[int, int], input_hw: tuple[int, int], seed: int) -> None:
    frame = random_frame(frame_hw, seed)
    batch = Preprocessor(input_hw)(frame)
    assert batch.shape == (1, *input_hw, 3) and batch.dtype == np.uint8
    np.testing.assert_array_equal(batch[0], cv2.resize(frame, input_hw[::-1], interpolation=cv2.INTER_LINEAR))


def test_preprocess_reuses_its_buffer_and_leaves_the_frame_alone() -> None:
    preprocess, frame = Preprocessor((16, 24)), random_frame((16, 24), 1)
    first = preprocess(frame)
    first[:] = 0
    assert frame.any(), "the batch must not share memory with the frame"
    assert preprocess(random_frame((33, 44), 2)) is first
    out = np.empty((1, 16, 24, 3), np.uint8)
    assert preprocess(frame, out=out) is out
    np.testing.assert_array_equal(out[0], frame)


@pytest.mark.parametrize(
    ("out", "found"),
    [
        (np.zeros((1, 24, 16, 3), np.uint8), r"uint8 \(1, 24, 16, 3\)"),
        (np.zeros((1, 16, 24, 3), np.float32), r"float32 \(1, 16, 24, 3\)"),
        (np.zeros((1, 16, 24, 6), np.uint8)[..., ::2], "not contiguous"),
    ],
)
def test_preprocess_refuses_an_out_that_it_cannot_fill(out: np.ndarray[Any, Any], found: str) -> None:
    for frame in (random_frame((33, 44), 1), random_frame((16, 24), 1)):
        with pytest.raises(GradsegError, match=rf"out is .*{found}.*needed: contiguous uint8 \(1, 16, 24, 3\)"):
            Preprocessor((16, 24))(frame, out=out)


def test_resize_labels_refuses_what_it_would_get_wrong() -> None:
    labels = np.ones((4, 6), np.uint8)
    read_only = np.zeros((8, 12), np.uint8)
    read_only.flags.writeable = False
    for out in (
        np.zeros((12, 8), np.uint8),
        np.zeros((8, 12), np.int64),
        np.zeros((8, 24), np.uint8)[:, ::2],
        read_only,
    ):
        with pytest.raises(GradsegError, match=r"labels: out is .*; needed: contiguous uint8 \(8, 12\)"):
            resize_labels(labels, (8, 12), out)
    with pytest.raises(GradsegError, match=r"expected uint8 \(h, w\), found int64 \(4, 6\)"):
        resize_labels(labels.astype(np.int64), (8, 12))


def test_flipped_frames_are_as_good_as_others() -> None:
    """`rgb[..., ::-1]` is how many programs make BGR: a view with negative strides."""
    rgb = random_frame((20, 30), 5)
    wanted, flipped = np.ascontiguousarray(rgb[..., ::-1]), rgb[..., ::-1]
    for size in ((20, 30), (16, 24)):
        np.testing.assert_array_equal(Preprocessor(size)(flipped), Preprocessor(size)(wanted))
    labels = np.zeros((20, 30), np.uint8)
    for mode in MODES:
        overlay = Overlay(distinct_palette(2), mode)
        np.testing.assert_array_equal(overlay(flipped, labels).copy(), overlay(wanted, labels))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        None,
    ],
)
def test_preprocess_refuses_what_is_not_a_frame(frame: Any) -> None:
    with pytest.raises(GradsegError, match=r"frame: (expected uint8 BGR|empty)"):
        Preprocessor((8, 8))(frame)


@given(st.sampled_from(["rgb", "bgr"]), st.integers(0, 99), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_normalisation_is_the_formula(order: str, seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    mean, std = tuple(random.uniform(0, 1, 3)), tuple(random.uniform(0.1, 2, 3))
    spec = spec_for("d", input_hw=(8, 16), mean=mean, std=std, color_order=order)
    batch = random.integers(0, 256, (count, 8, 16, 3), np.uint8)
    ordered = batch[..., ::-1] if order == "rgb" else batch
    wanted = ((ordered / 255.0 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    got = normalised_chw(batch, spec)
    assert got.dtype == np.float32 and got.shape == (count, 3, 8, 16)
    np.testing.assert_allclose(got, wanted, atol=2e-5)
    out = np.full_like(got, np.nan)
    assert normalised_chw(batch, spec, out=out) is out
    np.testing.assert_array_equal(out, got)


@given(SIZES, SIZES, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_resized_labels_are_only_labels_that_were_there(
    hw: tuple[int, int], out_hw: tuple[int, int], seed: int
) -> None:
    labels = np.random.default_rng(seed).choice(np.array([0, 3, 7, 255], np.uint8), hw)
    got = resize_labels(labels, out_hw)
    assert got.shape == out_hw and got.dtype == np.uint8 and not np.shares_memory(got, labels)
    assert set(np.unique(got)) <= set(np.unique(labels))
    np.testing.assert_array_equal(resize_labels(labels, hw), labels)


def test_doubling_labels_repeats_each() -> None:
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(resize_labels(labels, (4, 6)), labels.repeat(2, 0).repeat(2, 1))


# -- metrics -----------------------------------------------------------------------------------------------------------


def naive_iou(pred: Any, label: Any, classes: int) -> list[float]:
    result = []
    for index in range(classes):
        hit = union = 0
        for p, t in zip(pred.ravel().tolist(), label.ravel().tolist(), strict=True):
            if t == 255:
                continue
            hit += p == index and t == index
            union += p == index or t == index
        result.append(hit / union if union else math.nan)
    return result


@given(st.integers(2, 6), st.integers(0, 9999), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_iou_equals_the_naive_one(classes: int, seed: int, frames: int) -> None:
    random = np.random.default_rng(seed)
    pred = random.integers(0, classes, (frames, 5, 6), np.uint8)
    label = random.choice(np.array([*range(classes), 255], np.uint8), (frames, 5, 6))
    confusion = Confusion(classes)
    for index in range(frames):
        confusion.update(pred[index], label[index])
    wanted = naive_iou(pred, label, classes)
    np.testing.assert_allclose(confusion.iou(), wanted)
    present = [value for value in wanted if not math.isnan(value)]
    assert confusion.miou() == pytest.approx(sum(present) / len(present) if present else math.nan, nan_ok=True)
    counted = label != 255
    accuracy = (pred == label)[counted].mean() if counted.any() else math.nan
    assert confusion.pixel_accuracy() == pytest.approx(accuracy, nan_ok=True)


def test_metrics_by_hand() -> None:
    confusion = Confusion(3)
    confusion.update(np.array([[0, 0, 1, 0]]), np.array([[0, 1, 1, 255]]))
    np.testing.assert_array_equal(confusion.iou(), [0.5, 0.5, math.nan])
    assert confusion.miou() == 0.5 and confusion.pixel_accuracy() == pytest.approx(2 / 3)
    assert math.isnan(Confusion(3).miou()) and math.isnan(Confusion(3).pixel_accuracy())


def test_a_prediction_that_is_no_class_is_a_miss() -> None:
    confusion = Confusion(2)
    confusion.update(np.array([0, 255, 7, 1], np.uint8), np.array([0, 0, 1, 1], np.uint8))
    np.testing.assert_array_equal(confusion.iou(), [0.5, 0.5])
    assert confusion.pixel_accuracy() == 0.5


def test_metrics_refuse_wrong_labels_and_shapes() -> None:
    with pytest.raises(GradsegError, match="label value 5 outside the 3 classes"):
        Confusion(3).update(np.zeros(2, np.uint8), np.array([0, 5], np.uint8))
    with pytest.raises(GradsegError, match="one size"):
        Confusion(3).update(np.zeros((2, 2), np.uint8), np.zeros(4, np.uint8))
    with pytest.raises(GradsegError, match=r"0\.\.255"):
        Confusion(3).update(np.array([0]), np.array([-1]))


# -- overlay -----------------------------------------------------------------------------------------------------------


@given(SIZES, st.sampled_from(MODES), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_overlay_equals_the_naive_one(hw: tuple[int, int], mode: str, alpha: float, seed: int) -> None:
    palette, frame = distinct_palette(7), random_frame(hw, seed)
    labels = np.random.default_rng(seed).integers(0, 7, hw, np.uint8)
    colour = np.array(palette)[labels][..., ::-1]
    blend = frame * (1 - alpha) + colour * alpha
    wanted = {"overlay": blend, "mask": colour, "side-by-side": np.concatenate([frame, blend], 1)}[mode]
    overlay = Overlay(palette, mode, alpha)
    got = overlay(frame, labels)
    assert got.dtype == np.uint8 and got.shape[:2] == overlay.output_hw(hw)
    assert np.abs(got - wanted).max() <= 0.51


def test_overlay_keeps_its_buffers_and_takes_other_sizes() -> None:
    overlay = Overlay(distinct_palette(3))
    frame, labels = random_frame((6, 8), 0), np.zeros((6, 8), np.uint8)
    address = overlay(frame, labels).ctypes.data
    assert overlay(random_frame((6, 8), 1), labels).ctypes.data == address
    assert overlay(random_frame((9, 5), 1), np.zeros((9, 5), np.uint8)).shape == (9, 5, 3)


def test_overlay_refuses_nonsense() -> None:
    with pytest.raises(GradsegError, match="overlay mode 'x'; one of overlay, mask, side-by-side"):
        Overlay(distinct_palette(2), "x")
    with pytest.raises(GradsegError, match="--alpha"):
        Overlay(distinct_palette(2), alpha=1.5)
    with pytest.raises(GradsegError, match="one size"):
        Overlay(distinct_palette(2))(random_frame((4, 4), 0), np.zeros((4, 5), np.uint8))


# -- figures -----------------------------------------------------------------------------------------------------------


def test_latencies_are_percentiles_in_milliseconds() -> None:
    latencies = Latencies()
    values = np.random.default_rng(0).integers(1, 10**9, 501)
    for value in values:
        latencies.add(int(value))
    wanted = [*(np.percentile(values, (50, 90, 99)) / 1e6), values.mean() / 1e6, values.max() / 1e6]
    assert list(latencies.summary().values()) == pytest.approx(wanted, abs=1e-3)
    assert set(Latencies().summary().values()) == {None}


def test_latencies_stay_representative_in_bounded_memory() -> None:
    latencies = Latencies(capacity=64)
    for value in range(10_000):
        latencies.add(value * 1_000_000)
    figures = latencies.summary()
    assert latencies._samples.size == 64
    assert figures["max"] == 9999.0 and figures["mean"] == 4999.5
    assert figures["p50"] == pytest.approx(5000, abs=300) and figures["p90"] == pytest.approx(9000, abs=300)


def test_live_line_has_rate_percentiles_and_drops() -> None:
    line = LiveLine()
    for total_ms in (10, 20, 30):
        line.frame(total_ms * 1_000_000, 3, 9, 1)
    text = line.text(3, 9, 1)
    assert "frame 3/9" in text and "p50 20.0 ms" in text and "dropped 1" in text and "FPS" in text


def test_table_shows_missing_figures_as_dashes() -> None:
    lines = latency_table({"infer": Latencies().summary()})
    assert lines[1].split() == ["infer"] + ["-"] * 5


def test_conditions_are_json_with_what_a_figure_needs() -> None:
    found = json.loads(json.dumps(conditions(threads=2, note="x")))
    assert found["threads"] == 2 and found["note"] == "x"
    assert found["device"]["usable_cores"] >= 1 and found["device"]["cpu"]
    assert found["versions"]["numpy"] == np.__version__ and "opencv" in found["versions"]
    assert found["commit"] is None or len(found["commit"]["hash"]) == 40
