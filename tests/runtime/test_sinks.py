"""Sinks: complete or not there, checked before work starts, honest about a full disk."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from runtime_toys import frames_of, write_video

from gradseg.base.errors import GradsegError
from gradseg.base.files import check_writable
from gradseg.runtime.sinks import encoders, video
from gradseg.runtime.sinks.labels import LabelsSink
from gradseg.runtime.sinks.video import VideoSink
from gradseg.runtime.sinks.window import WindowSink

HW = (48, 64)
LABELS = np.zeros(HW, np.uint8)


def picture(level: int) -> np.ndarray[Any, Any]:
    return np.full((*HW, 3), level, np.uint8)


NEEDS_AV = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs PyAV: pip install av")


@pytest.fixture(params=[pytest.param("av", marks=NEEDS_AV), "opencv"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every promise of the sink holds with each encoder of .mp4."""
    if request.param == "opencv":
        monkeypatch.setitem(sys.modules, "av", None)
    return str(request.param)


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize(("suffix", "fps"), [(".mp4", 25.0), (".avi", 25.0), (".mp4", 29.97), (".mp4", 12.5)])
def test_video_has_every_frame_at_size_and_rate(tmp_path: Path, suffix: str, fps: float) -> None:
    path = tmp_path / f"deep/er/v{suffix}"
    sink = VideoSink(path, HW, fps)
    for index in range(7):
        sink.write(picture(30 * index), LABELS, index, index)
        assert not path.exists(), "the final name must not stand for half a video"
    sink.close()
    sink.close()
    assert [int(f.mean().round()) for f in frames_of(path)] == pytest.approx([30 * i for i in range(7)], abs=4)
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, abs=0.01)
    assert (capture.get(cv2.CAP_PROP_FRAME_HEIGHT), capture.get(cv2.CAP_PROP_FRAME_WIDTH)) == HW
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208


@pytest.mark.usefixtures("encoder")
def test_nothing_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 3)
    VideoSink(path, HW, 25.0).close()
    assert len(frames_of(path)) == 3 and list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("encoder")
def test_realtime_repeats_what_a_slow_network_missed(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "v.mp4", HW, 10.0, realtime=True)
    for index, second in enumerate((0.0, 0.1, 0.5, 0.55, 1.0)):
        sink.write(picture(50 * index), LABELS, index, int(7e9 + second * 1e9))
    sink.close()
    levels = [round(float(f.mean()) / 50) for f in frames_of(tmp_path / "v.mp4")]
    assert levels == [0, 1, 2, 2, 2, 2, 3, 4, 4, 4, 4]


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "v.mp4", HW, 25.0)
    with pytest.raises(GradsegError, match=r"frame 3 is 24x32, the video 48x64.*--labels"):
        sink.write(np.zeros((24, 32, 3), np.uint8), LABELS, 3, 0)
    sink.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("encoder")
def test_full_disk_ends_while_the_index_still_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([10 << 20] * 6 + [1 << 20] * 99)
    monkeypatch.setattr(video, "free_bytes", lambda path: next(left))
    sink = VideoSink(tmp_path / "v.mp4", HW, 25.0)
    with pytest.raises(GradsegError, match=r"disk full: 1024 KiB left for .*v\.mp4.*free some space"):
        for index in range(99):
            sink.write(picture(index), LABELS, index, 0)
    sink.close()
    assert len(frames_of(tmp_path / "v.mp4")) == 5


def test_disk_that_is_full_already_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "free_bytes", lambda path: 1000)
    with pytest.raises(GradsegError, match="disk full"):
        VideoSink(tmp_path / "v.mp4", HW, 25.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("found", "message", "kept"), [(2, "holds 2 of 4 frames", True), (0, "none of 4 frames", False)]
)
def test_frames_that_opencv_lost_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: int, message: str, kept: bool
) -> None:
    monkeypatch.setattr(video, "count_frames", lambda path: found)
    sink = VideoSink(tmp_path / "v.mp4", HW, 25.0)
    for index in range(4):
        sink.write(picture(index), LABELS, index, 0)
    with pytest.raises(GradsegError, match=message):
        sink.close()
    assert [p.name for p in tmp_path.iterdir()] == (["v.mp4"] if kept else [])


def test_writer_that_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        fourcc = cv2.VideoWriter.fourcc

        def __init__(self, *_: Any) -> None:
            pass

        def isOpened(self) -> bool:  # noqa: N802
            return False

    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(cv2, "VideoWriter", Closed)
    with pytest.raises(GradsegError, match=r"cannot write mp4v video of 48x64 at 25 fps"):
        VideoSink(tmp_path / "v.mp4", HW, 25.0)
    assert not list(tmp_path.iterdir())


def test_names_and_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, message in (
        (tmp_path / "v.mkv", r"must end in \.mp4 or \.avi"),
        (tmp_path, "is a directory|must end in"),
        (tmp_path / "file" / "v.mp4", "cannot write"),
    ):
        with pytest.raises(GradsegError, match=message):
            VideoSink(path, HW, 25.0)
    with pytest.raises(GradsegError, match=r"--labels .* cannot be written"):
        LabelsSink(tmp_path / "file" / "labels")
    with pytest.raises(GradsegError, match="not a regular file"):
        check_writable(Path("/dev/null"))
    check_writable(tmp_path / "new.json")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_label_images_are_exact_and_named_by_frame(tmp_path: Path) -> None:
    sink = LabelsSink(tmp_path / "labels")
    wanted = {index: np.random.default_rng(index).integers(0, 19, (9, 13), np.uint8) for index in (0, 5, 41)}
    for index, labels in wanted.items():
        sink.write(None, labels, index, 0)
    sink.close()
    assert sorted(p.name for p in sink.folder.iterdir()) == ["000000.png", "000005.png", "000041.png"]
    for index, labels in wanted.items():
        got = cv2.imread(str(sink.folder / f"{index:06d}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(got, labels)


def test_labels_of_an_earlier_run_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    (tmp_path / "000007.png").write_bytes(b"an earlier run's")
    (tmp_path / "notes.png").write_bytes(b"mine")
    with pytest.raises(GradsegError, match=r"--labels .*already holds 1 such.*000007\.png.*; empty it or name another"):
        LabelsSink(tmp_path)
    (tmp_path / "000007.png").unlink()
    LabelsSink(tmp_path).write(None, LABELS, 7, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000007.png", "notes.png"]


def test_label_image_that_cannot_be_written_is_not_left_half(tmp_path: Path) -> None:
    sink = LabelsSink(tmp_path)
    (tmp_path / "000002.png").symlink_to("/dev/full")
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(GradsegError, match=r"cannot write .*000002\.png: No space left on device"):
        sink.write(None, LABELS, 2, 0)
    assert not list(tmp_path.iterdir())


def test_window_without_display_or_without_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("gradseg.runtime.sinks.window.sys.platform", "linux")
    with pytest.raises(GradsegError, match="no display here") as caught:
        WindowSink(lambda: None)
    assert caught.value.exit_code == 3
    monkeypatch.setenv("DISPLAY", ":0")

    def refuse(*_: Any) -> None:
        raise cv2.error("not implemented")

    monkeypatch.setattr(cv2, "namedWindow", refuse)
    with pytest.raises(GradsegError, match=r"has no windows; pip uninstall opencv-python-headless"):
        WindowSink(lambda: None)


def test_window_shows_and_ends_on_q(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    keys = iter([-1, ord("q")])
    monkeypatch.setenv("DISPLAY", ":0")
    for name, action in (
        ("namedWindow", lambda *_: None),
        ("imshow", lambda title, image: shown.append(image)),
        ("waitKey", lambda wait: next(keys)),
        ("destroyWindow", lambda title: shown.append("closed")),
    ):
        monkeypatch.setattr(cv2, name, action)
    quits: list[int] = []
    sink = WindowSink(lambda: quits.append(1))
    sink.write(picture(1), LABELS, 0, 0)
    assert not quits
    sink.write(picture(2), LABELS, 1, 0)
    assert quits == [1] and len(shown) == 2
    sink.close()
    assert shown[-1] == "closed"


@pytest.mark.usefixtures("encoder")
def test_odd_sizes_lose_no_row_or_column(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (5, 7, 3), np.uint8), (43, 31), interpolation=cv2.INTER_CUBIC)
    sink = VideoSink(tmp_path / "odd.mp4", (31, 43), 25.0)
    for index in range(3):
        sink.write(image, np.zeros((31, 43), np.uint8), index, 0)
    sink.close()
    last = frames_of(tmp_path / "odd.mp4")[-1]
    assert last.shape == (32, 44, 3)
    assert np.abs(last[:31, :43].astype(int) - image).mean() < 12


# -- H.264


def filled(path: Path, colours: list[tuple[int, int, int]]) -> VideoSink:
    sink = VideoSink(path, HW, 25.0)
    for index, colour in enumerate(colours):
        sink.write(np.full((*HW, 3), colour, np.uint8), LABELS, index, 0)
    return sink


@NEEDS_AV
def test_mp4_is_what_browsers_play(tmp_path: Path) -> None:
    import av

    colours = [(20, 30, 220), (200, 60, 20), (40, 180, 40)]
    sink = filled(tmp_path / "v.mp4", colours)
    assert sink.note == ""
    sink.close()
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        found = stream.codec_context.name, stream.codec_context.pix_fmt, stream.frames, float(stream.average_rate)
    assert found == ("h264", "yuv420p", 3, 25.0)
    data = (tmp_path / "v.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat"), "plays while it loads"
    for frame, colour in zip(frames_of(tmp_path / "v.mp4"), colours, strict=True):
        assert np.abs(frame.mean((0, 1)) - colour).max() < 8


@NEEDS_AV
def test_a_write_that_fails_is_one_line_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = filled(tmp_path / "v.mp4", [(0, 0, 0)])

    class Full:
        def mux(self, packet: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(sink._writer, "_container", Full())
    with pytest.raises(GradsegError, match=r"cannot write the video in .*No space left on device"):
        sink.write(picture(9), LABELS, 1, 0)
    with pytest.raises(GradsegError, match="can be read back; was the disk full"):
        sink.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lost", [False, True])
def test_without_pyav_opencvs_h264_counts_only_if_it_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    real, asked = encoders._writer, []

    def writer(path: Path, fourcc: str, *given: Any) -> Any:
        asked.append(fourcc)
        return real(path.with_suffix(".lost.mp4") if lost and fourcc == "avc1" else path, "mp4v", *given)

    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(encoders, "_writer", writer)
    sink = filled(tmp_path / "v.mp4", [(9, 9, 9)])
    assert asked == ["avc1", "mp4v" if lost else "avc1"]
    assert sink.note == (f"{sink.path} is MPEG-4 part 2, which browsers do not play; for H.264: pip install av" * lost)
    sink.close()
    assert len(frames_of(sink.path)) == 1


@NEEDS_AV
def test_a_pyav_without_x264_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "X264", {"preset": "no such preset"})
    sink = filled(tmp_path / "v.mp4", [(9, 9, 9)])
    sink.close()
    assert "pip install av" in sink.note and len(frames_of(sink.path)) == 1
