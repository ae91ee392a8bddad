"""Frames and labels resized by the native library: byte for byte what OpenCV gives, or not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradseg.base.errors import GradsegError
from gradseg.runtime.native import frames as native_frames
from gradseg.runtime.native.frames import FrameResize, LabelResize, frame_resize, functions, label_resize
from gradseg.runtime.preprocess import LabelResizer, Preprocessor, resize_labels

built = pytest.mark.skipif(functions() is None, reason="the native library is not built, or not for this CPU")
SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))
USUAL = [((540, 960), (512, 1024)), ((1024, 2048), (512, 1024)), ((720, 1280), (512, 1024)), ((360, 480), (512, 1024))]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    functions.cache_clear()


def bytes_of(shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def fenced(shape: tuple[int, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """An array with 256 bytes of 77 on each side of it, and all of that memory."""
    count = int(np.prod(shape))
    memory = np.full(count + 512, 77, np.uint8)
    return memory[256 : 256 + count].reshape(shape), memory


def untouched(memory: np.ndarray[Any, Any]) -> bool:
    return bool((memory[:256] == 77).all() and (memory[-256:] == 77).all())


@built
@given(SIZES, SIZES, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_frames_are_opencvs(from_hw: tuple[int, int], to_hw: tuple[int, int], seed: int) -> None:
    made = FrameResize(functions(), from_hw, to_hw)
    if not made.fits:
        assert frame_resize(from_hw, to_hw) is None
        return
    frame, (out, memory) = bytes_of((*from_hw, 3), seed), fenced((*to_hw, 3))
    assert made(frame, out) and untouched(memory)
    np.testing.assert_array_equal(out, cv2.resize(frame, to_hw[::-1], interpolation=cv2.INTER_LINEAR))


@built
@given(SIZES, SIZES, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_labels_are_opencvs(from_hw: tuple[int, int], to_hw: tuple[int, int], seed: int) -> None:
    made = LabelResize(functions(), from_hw, to_hw)
    if not made.fits:
        assert label_resize(from_hw, to_hw) is None
        return
    labels, (out, memory) = bytes_of(from_hw, seed), fenced(to_hw)
    made(labels, out)
    assert untouched(memory)
    np.testing.assert_array_equal(out, cv2.resize(labels, to_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT))


@built
@pytest.mark.parametrize(("frame_hw", "net_hw"), USUAL)
def test_usual_sizes_are_covered(frame_hw: tuple[int, int], net_hw: tuple[int, int]) -> None:
    made = frame_resize(frame_hw, net_hw)
    assert made is not None and label_resize(net_hw, (frame_hw[0], max(frame_hw[1], 640))) is not None
    wide = bytes_of((frame_hw[0], frame_hw[1] + 5, 3), 1)
    part, out = wide[:, 2:-3], np.zeros((*net_hw, 3), np.uint8)
    assert made(part, out), "rows may lie apart"
    np.testing.assert_array_equal(out, cv2.resize(part, net_hw[::-1], interpolation=cv2.INTER_LINEAR))
    for turned in (part[..., ::-1], part[::-1], part[:, ::-1]):
        assert not made(turned, out), "these go to OpenCV"


@built
def test_what_is_not_opencvs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another OpenCV, say of an ARM board, may round otherwise."""
    resize = cv2.resize
    monkeypatch.setattr(
        native_frames.cv2, "resize", lambda *a, **k: np.ascontiguousarray(resize(*a, **k) + np.uint8(1))
    )
    assert frame_resize((540, 960), (512, 1024)) is None
    monkeypatch.setattr(native_frames, "_nearest", lambda out, size: np.zeros(out, np.int32))
    assert label_resize((512, 1024), (540, 960)) is None


@pytest.mark.parametrize("library", [None, "missing.so", "text.so"])
def test_without_the_library_opencv_resizes(
    library: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setattr(native_frames, "library_path", lambda: None if library is None else tmp_path / library)
    functions.cache_clear()
    assert functions() is None and frame_resize((540, 960), (512, 1024)) is None
    check_steady((540, 960), (512, 1024))


@pytest.mark.parametrize(("frame_hw", "net_hw"), [*USUAL, ((24, 32), (24, 32)), ((5, 7), (16, 24)), ((16, 24), (5, 7))])
def test_every_frame_of_a_run_is_resized_alike(frame_hw: tuple[int, int], net_hw: tuple[int, int]) -> None:
    check_steady(frame_hw, net_hw)


def check_steady(frame_hw: tuple[int, int], net_hw: tuple[int, int]) -> None:
    """The first frames are OpenCV's, the later ones perhaps not: nobody can tell."""
    prepare, back = Preprocessor(net_hw), LabelResizer()
    frame, labels = bytes_of((*frame_hw, 3), 3), bytes_of(net_hw, 4)
    wanted = cv2.resize(frame, net_hw[::-1], interpolation=cv2.INTER_LINEAR)
    for _ in range(4):
        np.testing.assert_array_equal(prepare(frame)[0], wanted)
        np.testing.assert_array_equal(prepare(frame[:, ::-1])[0], prepare(np.ascontiguousarray(frame[:, ::-1]))[0])
        np.testing.assert_array_equal(back(labels, frame_hw), resize_labels(labels, frame_hw))


def test_tables_are_made_for_sizes_that_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr("gradseg.runtime.preprocess.frame_resize", lambda *sizes: made.append(sizes))
    prepare = Preprocessor((16, 24))
    for size in ((30, 40), (31, 40), (30, 40), (30, 40), (30, 40), (31, 40)):
        prepare(bytes_of((*size, 3), 0))
    assert made == [((30, 40), (16, 24))]


def test_sizes_that_are_expected_are_ready_before_the_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    for name in ("frame_resize", "label_resize"):
        monkeypatch.setattr(f"gradseg.runtime.preprocess.{name}", lambda *sizes: made.append(sizes))
    prepare, back = Preprocessor((16, 24)), LabelResizer()
    prepare.expect((30, 40))
    back.expect((16, 24), (30, 40))
    prepare.expect((16, 24))
    assert made == [((30, 40), (16, 24)), ((16, 24), (30, 40))]
    for _ in range(3):
        prepare(bytes_of((30, 40, 3), 0))
        back(bytes_of((16, 24), 0), (30, 40))
    assert len(made) == 2, "what is ready is not made again"


def test_a_frame_of_the_networks_size_is_not_copied() -> None:
    prepare, frame = Preprocessor((16, 24)), bytes_of((16, 24, 3), 0)
    assert np.shares_memory(prepare.shared(frame), frame) and prepare.shared(frame).shape == (1, 16, 24, 3)
    for other in (frame[..., ::-1], bytes_of((33, 44, 3), 1)):
        np.testing.assert_array_equal(prepare.shared(other), prepare(other.copy()))
    with pytest.raises(GradsegError, match="expected uint8 BGR"):
        prepare.shared(frame[..., 0])


def test_label_resizer_refuses_as_the_function_does() -> None:
    back, labels = LabelResizer(), bytes_of((8, 130), 0)
    for _ in range(3):
        assert back(labels, (16, 200)).shape == (16, 200)
        with pytest.raises(GradsegError, match=r"labels: out is .*; needed: contiguous uint8 \(16, 200\)"):
            back(labels, (16, 200), np.zeros((16, 400), np.uint8)[:, ::2])
        with pytest.raises(GradsegError, match=r"expected uint8 \(h, w\), found int64"):
            back(labels.astype(np.int64), (16, 200))
