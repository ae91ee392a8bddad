"""Procedural scenes: exact, deterministic, like CamVid in their class shares, and coherent as a video."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from gradseg.base.errors import GradsegError
from gradseg.data.base import Sample
from gradseg.data.scenes.canvas import CAR, POLE, ROAD, SKY, TREE, Bend, Canvas
from gradseg.data.scenes.frames import ScenesData, SceneVideo
from gradseg.data.scenes.light import Light
from gradseg.data.scenes.traffic import visible
from gradseg.data.scenes.world import World
from gradseg.models.spec import CAMVID_CLASSES, CAMVID_PALETTE

# Share of the labelled pixels in CamVid's 367 training frames, every third of them counted, in percent.
CAMVID_SHARES = np.array([17.61, 24.40, 1.04, 32.88, 4.65, 9.99, 1.21, 1.16, 6.05, 0.72, 0.28])
SMALL = (96, 128)


@pytest.fixture(scope="module")
def stills() -> list[Sample]:
    data = ScenesData(100, (180, 240), seed=5)
    return [data[i] for i in range(len(data))]


def same(a: Sample, b: Sample) -> bool:
    return np.array_equal(a.image, b.image) and np.array_equal(a.label, b.label)


def test_classes_are_camvids() -> None:
    assert ScenesData.classes == SceneVideo.classes == CAMVID_CLASSES
    assert ScenesData.palette == SceneVideo.palette == CAMVID_PALETTE
    assert CAMVID_CLASSES[SKY] == "sky" and CAMVID_CLASSES[CAR] == "car" and CAMVID_CLASSES[POLE] == "pole"
    assert CAMVID_CLASSES[ROAD] == "road" and CAMVID_CLASSES[TREE] == "tree"


def test_class_shares_are_within_a_factor_of_three_of_camvid(stills: list[Sample]) -> None:
    counts = np.array([np.bincount(s.label.ravel(), minlength=11) for s in stills], float)
    ratio = 100 * counts.sum(0) / counts.sum() / CAMVID_SHARES
    assert ((ratio > 1 / 3) & (ratio < 3)).all(), dict(zip(CAMVID_CLASSES, ratio.round(2), strict=True))


def test_every_class_is_in_most_scenes(stills: list[Sample]) -> None:
    present = np.mean([np.bincount(s.label.ravel(), minlength=11) > 5 for s in stills], axis=0)
    assert (present > 0.5).all(), dict(zip(CAMVID_CLASSES, present.round(2), strict=True))


def test_brightness_is_like_camvids(stills: list[Sample]) -> None:
    means = {c: np.mean([s.image[s.label == c].mean() for s in stills if (s.label == c).any()]) for c in (SKY, ROAD)}
    assert 190 < means[SKY] < 250  # CamVid: 235
    assert 55 < means[ROAD] < 100  # CamVid: 75


def test_scenes_differ_from_one_another(stills: list[Sample]) -> None:
    agree = [(a.label == b.label).mean() for a, b in itertools.pairwise(stills)]
    assert max(agree) < 0.95 and np.mean(agree) < 0.75
    assert len({s.name for s in stills}) == len(stills)


def test_label_edges_lie_on_image_edges(stills: list[Sample]) -> None:
    """The image changes where the label does, and less so a few pixels away: labels are where things are."""

    def contrast(sample: Sample, shift: int) -> float:
        grey = cv2.cvtColor(sample.image, cv2.COLOR_BGR2GRAY).astype(np.float32)
        step = np.abs(np.diff(grey, axis=1))
        edge = np.roll(np.diff(sample.label.astype(int), axis=1) != 0, shift, axis=1)
        return float(step[edge].mean())

    here = np.mean([contrast(s, 0) for s in stills[:40]])
    away = np.mean([contrast(s, k) for s in stills[:40] for k in (-5, 5)])
    assert here > 1.8 * away


@pytest.mark.parametrize("size_hw", [(32, 32), (33, 47), (40, 200), (200, 40), (96, 128), (1080, 1920)])
def test_any_size(size_hw: tuple[int, int]) -> None:
    for sample in (ScenesData(2, size_hw, 1)[1], SceneVideo(size_hw, 1).frame(3)):
        assert sample.image.shape == (*size_hw, 3) and sample.image.dtype == np.uint8
        assert sample.label.shape == size_hw and sample.label.dtype == np.uint8
        assert sample.label.max() < 11 and len(np.unique(sample.label)) >= 4
        assert sample.image.flags.c_contiguous and sample.image.std() > 10


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**63), st.integers(0, 10**6))
def test_any_seed_and_any_index(seed: int, index: int) -> None:
    sample = ScenesData(index + 1, (48, 64), seed)[index]
    assert sample.label.max() < 11 and (sample.label == ROAD).any()


def test_a_still_depends_on_seed_and_index_alone() -> None:
    data = ScenesData(6, SMALL, 3)
    third = data[3]
    assert same(third, data[3])
    assert same(third, ScenesData(50, SMALL, 3)[3])
    assert not same(third, data[2])
    assert not same(third, ScenesData(6, SMALL, 4)[3])


def test_length_and_bounds() -> None:
    data = ScenesData(3, SMALL, 0)
    assert len(data) == 3 and len(list(data)) == 3  # type: ignore[call-overload]
    for index in (3, -1):
        with pytest.raises(IndexError):
            data[index]


def test_samples_do_not_share_memory() -> None:
    data = ScenesData(2, SMALL, 0)
    kept = data[0].image.copy()
    data[0].image[:] = 0
    data[0].label[:] = 0
    assert np.array_equal(data[0].image, kept)


def test_pickles_and_is_safe_in_threads() -> None:
    data = pickle.loads(pickle.dumps(ScenesData(8, SMALL, 9)))
    serial = [data[i] for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(data.__getitem__, range(8)))
    assert all(same(a, b) for a, b in zip(serial, threaded, strict=True))


def test_another_process_makes_the_same_scene_without_torch() -> None:
    code = (
        "import sys, zlib\n"
        "from gradseg.data.specs import open_data\n"
        "s = open_data('scenes:frames=5,seed=3,size=96x128')[4]\n"
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules\n"
        "print(zlib.crc32(s.image.tobytes()), zlib.crc32(s.label.tobytes()))\n"
    )
    src = str(ROOT / "src")
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {src!r})\n{code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    sample = ScenesData(5, (96, 128), 3)[4]
    assert found.stdout.split() == [str(zlib.crc32(a.tobytes())) for a in (sample.image, sample.label)]


@pytest.mark.parametrize("size_hw", [(31, 64), (64, 8), (0, 0)])
def test_too_small_a_size_is_named(size_hw: tuple[int, int]) -> None:
    with pytest.raises(GradsegError, match=f"{size_hw[0]}x{size_hw[1]}.*use 32x32 to 4320x4320"):
        ScenesData(1, size_hw, 0)
    with pytest.raises(GradsegError, match="use 32x32 to 4320x4320"):
        SceneVideo(size_hw, 0)


def test_video_refuses_a_rate_of_zero() -> None:
    with pytest.raises(GradsegError, match="above 0"):
        SceneVideo(SMALL, 0, fps=0.0)


def test_camera_faults_leave_labels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ScenesData(12, SMALL, 2)
    real = [data[i] for i in range(12)]
    monkeypatch.setattr(Light, "expose", lambda self, image, frame: image)
    ideal = [data[i] for i in range(12)]
    assert all(np.array_equal(a.label, b.label) for a, b in zip(real, ideal, strict=True))
    assert all(not np.array_equal(a.image, b.image) for a, b in zip(real, ideal, strict=True))


def test_video_frames_can_be_taken_in_any_order() -> None:
    one, other = SceneVideo(SMALL, 7), SceneVideo(SMALL, 7)
    forward = [one.frame(i) for i in (0, 40, 900, 100_000)]
    backward = [other.frame(i) for i in (100_000, 900, 40, 0)]
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert not same(SceneVideo(SMALL, 8).frame(40), forward[1])


def test_video_time_is_independent_of_the_frame_rate() -> None:
    assert np.array_equal(SceneVideo(SMALL, 7, 25.0).frame(50).label, SceneVideo(SMALL, 7, 50.0).frame(100).label)


@pytest.mark.parametrize("seed", [0, 7])
def test_video_is_coherent_from_frame_to_frame_and_moves_on(seed: int) -> None:
    video = SceneVideo((180, 240), seed)
    labels = [video.frame(i).label for i in range(300, 360)]
    agree = [(a == b).mean() for a, b in itertools.pairwise(labels)]
    assert min(agree) > 0.85 and np.mean(agree) > 0.93
    assert (labels[0] == labels[-1]).mean() < 0.9


@pytest.mark.parametrize("seed", [0, 7])
def test_video_drives_forward(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ahead moves away from the vanishing point: the flow is radial, outwards."""
    monkeypatch.setattr(Light, "expose", lambda self, image, frame: image)
    video = SceneVideo((180, 240), seed)
    outwards = []
    for i in range(100, 400, 60):
        a, b = (cv2.cvtColor(video.frame(k).image, cv2.COLOR_BGR2GRAY) for k in (i, i + 1))
        flow = cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
        v, u = np.mgrid[0:180, 0:240].astype(np.float32)
        away = np.dstack((u - 120, v - 88))
        outwards.append(float((flow * away).sum(2)[60:120].mean()))
    assert np.mean(outwards) > 0 and np.mean(np.array(outwards) > 0) >= 0.8


@pytest.mark.parametrize("seed", range(3))
def test_moving_things_keep_their_speed(seed: int) -> None:
    """Between frames nothing jumps: a car's street position changes by less than a metre, or it has come or gone."""
    world = World(f"video/{seed}")

    def cars(time: float) -> dict[int, float]:
        return {id(what[0]): s for s, kind, (_, what) in visible(world, 8 * time, time) if kind == "car"}

    before, after = cars(4.0), cars(4.04)
    common = before.keys() & after.keys()
    assert common and all(abs(before[k] - after[k]) < 1.0 for k in common)


def test_canvas_paints_image_and_label_together() -> None:
    canvas = Canvas((60, 80), focal=80.0, horizon=30.0, eye=1.3)
    canvas.box(10, 20, 30, 40, (10, 20, 30), CAR)
    assert canvas.label[30, 20] == CAR and tuple(canvas.image[30, 20]) == (10, 20, 30)
    canvas.box(15, 25, 20, 30, (200, 200, 200))  # a detail: the label stays
    assert canvas.label[27, 17] == CAR and canvas.image[27, 17, 0] == 200
    canvas.mark(((50, 10), (70, 10), (70, 20), (50, 20)), POLE)  # the label alone
    assert canvas.label[15, 60] == POLE and canvas.image[15, 60].sum() == 0


@settings(max_examples=60, deadline=None)
@given(st.floats(-20, 20), st.floats(0, 20), st.floats(0.5, 200))
def test_projection_is_a_pinhole(x: float, y: float, z: float) -> None:
    canvas = Canvas((360, 480), focal=490.0, horizon=170.0, eye=1.3)
    u, v = canvas.point(x, y, z)
    assert u == pytest.approx(240 + 490 * x / z, abs=1e-3) and v == pytest.approx(170 + 490 * (1.3 - y) / z, abs=1e-3)
    assert canvas.project([(x, y, z)])[0] == pytest.approx((u, v), rel=1e-3, abs=0.05)


def test_haze_grows_with_distance() -> None:
    canvas = Canvas((60, 80), 80.0, 30.0, 1.3)
    canvas.haze, canvas.haze_colour = 0.5, (200.0, 200.0, 200.0)
    assert canvas.colour((0, 0, 0), 0.0) == (0.0, 0.0, 0.0)
    assert canvas.colour((0, 0, 0), 100.0) == pytest.approx((100.0, 100.0, 100.0))
    assert canvas.colour((0, 0, 0), 500.0) == canvas.colour((0, 0, 0), 100.0)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 10), st.floats(100, 400), st.floats(0, 6.3), st.floats(0, 1e4))
def test_bend_is_tangent_to_the_street(amplitude: float, length: float, phase: float, cam_s: float) -> None:
    bend = Bend(amplitude, length, phase, cam_s)
    assert bend(0.0) == pytest.approx(0.0, abs=1e-6)
    assert abs(bend(0.1)) < 1e-3 * (1 + amplitude)
    z = np.array([1.0, 10.0, 100.0])
    assert bend.offsets(z) == pytest.approx([bend(float(v)) for v in z], abs=1e-6)
