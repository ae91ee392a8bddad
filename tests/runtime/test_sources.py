"""The source grammar, and each kind of source: what it gives, how it ends, what it says when it cannot be opened."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_toys import write_video

from gradseg.base.errors import GradsegError
from gradseg.runtime.sources import cameras
from gradseg.runtime.sources.cameras import LiveCapture, csi_pipeline
from gradseg.runtime.sources.grammar import open_source
from gradseg.runtime.sources.recordings import VideoFile, usable_fps
from gradseg.runtime.sources.source import Source


def read_all(source: Source) -> list[np.ndarray[Any, Any]]:
    """Copies of every frame, read into one buffer as the loop does; checks that the timestamps rise."""
    frames, last, out = [], 0, None
    while (captured := source.read(out)) is not None:
        out, stamp = captured
        assert stamp > last
        last = stamp
        frames.append(out.copy())
    source.close()
    source.close()
    return frames


# -- recordings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_video_file_gives_every_frame(tmp_path: Path, suffix: str) -> None:
    source = open_source(str(write_video(tmp_path / f"v{suffix}", 12, fps=30.0)))
    assert (source.live, source.fps, source.size_hw, source.frame_count) == (False, 30.0, (48, 64), 12)
    levels = [int(frame.mean().round()) for frame in read_all(source)]
    assert len(levels) == 12 and source.warning == ""
    np.testing.assert_allclose(levels, [10 * i for i in range(12)], atol=4)


def test_video_is_decoded_into_the_buffer_given(tmp_path: Path) -> None:
    source = open_source(str(write_video(tmp_path / "v.mp4")))
    source.read()
    out = np.empty((48, 64, 3), np.uint8)
    captured = source.read(out)
    assert captured is not None and captured[0] is out


def test_truncated_video_gives_what_is_readable_and_then_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.avi", 40, noise=True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    source, count, out = open_source(str(path)), 0, None
    with pytest.raises(GradsegError, match=r"ended after \d+ of the 40 frames it claims; truncated or damaged"):
        while (captured := source.read(out)) is not None:
            count, out = count + 1, captured[0]
    assert 5 < count < 35


def test_a_count_that_is_a_little_off_is_a_warning(tmp_path: Path) -> None:
    source = open_source(str(write_video(tmp_path / "v.mp4", 12)))
    source.frame_count = 14
    assert len(read_all(source)) == 12
    assert "ended after 12 of the 14 frames" in source.warning


def test_images_of_a_folder_and_of_a_wildcard(tmp_path: Path) -> None:
    for index, name in enumerate(("b.png", "a.png", "c.jpg")):
        cv2.imwrite(str(tmp_path / name), np.full((10 + index, 20, 3), 50 * index, np.uint8))
    (tmp_path / "notes.txt").write_text("x")
    assert [f.shape[0] for f in read_all(open_source(str(tmp_path)))] == [11, 10, 12]
    assert [f.shape[0] for f in read_all(open_source(f"{tmp_path}/*.png"))] == [11, 10]
    single = open_source(str(tmp_path / "c.jpg"))
    assert (single.live, single.size_hw, single.frame_count) == (False, (12, 20), 1)


def test_scenes_are_moving_deterministic_and_as_many_as_asked() -> None:
    text = "scenes:size=48x64,seed=3,fps=10,frames=3"
    source = open_source(text)
    assert (source.live, source.fps, source.size_hw, source.frame_count) == (False, 10.0, (48, 64), 3)
    first, second = read_all(source), read_all(open_source(text))
    assert len(first) == 3 and first[0].shape == (48, 64, 3) and first[0].dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[2]).any()
    assert (first[0] != read_all(open_source(text.replace("seed=3", "seed=4")))[0]).any()


@pytest.mark.parametrize(("claimed", "used"), [(29.97, 29.97), (0.0, 25.0), (float("nan"), 25.0), (90000.0, 25.0)])
def test_absurd_frame_rates_are_replaced(claimed: float, used: float) -> None:
    assert usable_fps(claimed) == used


# -- what cannot be opened ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message", "code"),
    [
        ("", "empty source; expected", 2),
        ("nowhere.mp4", "no such source; expected a video or image file", 2),
        ("foo://x", "unknown kind of source foo://", 2),
        ("csi://x", "expected csi://N", 2),
        ("cam987", "no camera /dev/video987 on this machine", 2),
        ("/dev/video987", "no camera /dev/video987", 2),
        ("v4l2:///dev/video987", "no camera /dev/video987", 2),
        ("*.nothing", "0 files match and none is an image", 2),
        ("scenes:speed=3", "unknown option 'speed=3'", 2),
        ("scenes:size=3", "write HEIGHTxWIDTH", 2),
        ("scenes:frames=0", "expected a whole number above 0", 2),
        ("scenes:fps=-1", "expected frames per second above 0", 2),
        ("scenes:fps=x", "expected frames per second above 0", 2),
    ],
)
def test_bad_sources_are_one_line(
    text: str, message: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GradsegError) as caught:
        open_source(text)
    assert message in str(caught.value) and caught.value.exit_code == code


@given(st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_no_text_is_a_crash(text: str) -> None:
    with contextlib.suppress(GradsegError):
        open_source(f"no-such/{text}".replace("\0", "")).close()


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"hello", "corrupt"), (b"\0\0\0\x20ftypisom" + b"\0" * 500, "corrupt")]
)
def test_corrupt_and_empty_videos(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(GradsegError, match=message):
        open_source(str(tmp_path / "v.mp4"))


def test_video_with_a_header_and_no_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.avi", 1)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"movi") + 4])
    with pytest.raises(GradsegError, match=r"corrupt"):
        open_source(str(path))


def test_corrupt_image_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(GradsegError, match="no images"):
        open_source(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"nope")
    with pytest.raises(GradsegError, match=r"a\.png: corrupt or not an image"):
        open_source(str(tmp_path))


# -- cameras, with a stand-in for cv2.VideoCapture ---------------------------------------------------------------------


class FakeCapture:
    """A camera that opens or not and gives `frames` frames before it is unplugged."""

    def __init__(self, frames: int, opens: bool = True) -> None:
        self.frames, self.opens, self.released = frames, opens, False

    def isOpened(self) -> bool:  # noqa: N802
        return self.opens

    def set(self, key: int, value: float) -> bool:
        return False

    def get(self, key: int) -> float:
        return 15.0

    def grab(self) -> bool:
        self.frames -= 1
        return self.frames >= 0

    def retrieve(self, out: Optional[np.ndarray[Any, Any]] = None) -> Any:
        return True, np.zeros((4, 6, 3), np.uint8) if out is None else out

    def read(self) -> Any:
        return (True, self.retrieve()[1]) if self.grab() else (False, None)

    def release(self) -> None:
        self.released = True


def test_live_camera_gives_frames_until_it_is_unplugged() -> None:
    source = LiveCapture("cam0", FakeCapture(3), "plug it in")
    assert (source.live, source.fps, source.size_hw, source.frame_count) == (True, 15.0, (4, 6), None)
    captured = source.read()
    assert captured is not None and source.read(captured[0])[0] is captured[0]  # type: ignore[index]
    with pytest.raises(GradsegError, match=r"cam0: stopped after 2 frames \(unplugged"):
        source.read()


def test_a_damaged_frame_does_not_end_a_live_source() -> None:
    capture = FakeCapture(30)
    source = LiveCapture("cam0", capture, "plug it in")
    whole = capture.retrieve
    answers = iter([False, False, True])
    capture.retrieve = lambda out=None: whole(out) if next(answers) else (False, None)  # type: ignore[method-assign]
    assert source.read() is not None and capture.frames == 26
    capture.retrieve = lambda out=None: (False, None)  # type: ignore[method-assign]
    with pytest.raises(GradsegError, match="stopped after 1 frames"):
        source.read()


@pytest.mark.parametrize(
    ("capture", "message"),
    [(FakeCapture(0, opens=False), "cannot be opened; plug it in"), (FakeCapture(0), "opened, but gives no frame")],
)
def test_unreadable_camera_is_released_and_told(capture: FakeCapture, message: str) -> None:
    with pytest.raises(GradsegError, match=message):
        LiveCapture("cam0", capture, "plug it in")
    assert capture.released


@pytest.mark.parametrize("gstreamer", [True, False])
def test_csi_needs_gstreamer(monkeypatch: pytest.MonkeyPatch, gstreamer: bool) -> None:
    asked: list[Any] = []

    def capture(*arguments: Any) -> FakeCapture:
        asked.append(arguments)
        return FakeCapture(5)

    monkeypatch.setattr(cameras, "has_gstreamer", lambda: gstreamer)
    monkeypatch.setattr(cameras.cv2, "VideoCapture", capture)
    if gstreamer:
        assert open_source("csi://1").live
        assert asked == [(csi_pipeline(1), cv2.CAP_GSTREAMER)] and "nvarguscamerasrc sensor-id=1 !" in asked[0][0]
        return
    with pytest.raises(GradsegError, match="needs an OpenCV with GStreamer") as caught:
        open_source("csi://1")
    assert caught.value.exit_code == 3 and not asked


def test_rtsp_goes_to_ffmpeg_as_a_live_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras.cv2, "VideoCapture", lambda name, backend: FakeCapture(9))
    source = open_source("rtsp://user@host/stream")
    assert source.live and source.name == "rtsp://user@host/stream"


def test_file_uri(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 2)
    assert isinstance(open_source(f"file://{path}"), VideoFile)
