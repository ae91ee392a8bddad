"""Two copies of an engine on two frames at once: the same labels, in order, and a clean end."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import pytest
from runtime_toys import (
    HW,
    OverlappingEngine,
    ToyEngine,
    ToySink,
    ToySource,
    deployment_onnx,
    raise_at,
    run_guarded,
    write_video,
)

from gradseg.base.errors import GradsegError
from gradseg.runtime import run_video
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.protocol import Engine, overlapping
from gradseg.runtime.loop.streams import Streams, two_streams
from gradseg.runtime.loop.video_loop import SLOTS, VideoLoop


def frame_of(value: int) -> np.ndarray[Any, Any]:
    return np.full((1, *HW, 3), value, np.uint8)


def test_two_run_at_once_and_come_back_in_order() -> None:
    both = threading.Barrier(2)
    streams = Streams((ToyEngine(lambda call: both.wait(30) and None), ToyEngine(lambda call: both.wait(30) and None)))
    assert overlapping(streams) is not None and streams.threads == 2
    for value in (3, 7):
        streams.staging[:] = value
        streams.begin(streams.staging)
    with pytest.raises(RuntimeError, match="two batches are under way"):
        streams.begin(frame_of(1))
    with pytest.raises(RuntimeError, match="are not finished"):
        streams.infer(frame_of(1))
    assert [int(streams.finish()[0, 0, 0]) for _ in range(2)] == [3, 7]
    with pytest.raises(RuntimeError, match=r"finish\(\) without begin"):
        streams.finish()
    streams.close()


def test_infer_copies_what_is_not_its_own_and_checks_it() -> None:
    engines = (ToyEngine(), ToyEngine())
    streams = Streams(engines)
    frame = frame_of(5)
    assert (streams.infer(frame) == 5).all() and (streams.infer(frame_of(9)) == 9).all()
    with pytest.raises(GradsegError, match="engine input"):
        streams.begin(np.zeros((1, 2, 2, 3), np.uint8))
    streams.close()
    streams.close()
    assert all(engine.closed for engine in engines)
    with pytest.raises(RuntimeError):
        streams.begin(frame)


@pytest.mark.parametrize("frames", [0, 1, 2, 3, SLOTS, 57])
def test_the_loop_loses_nothing_and_keeps_its_order(frames: int) -> None:
    engines, sink = (ToyEngine(), ToyEngine()), ToySink()
    streams = Streams(engines)
    outcome = run_guarded(VideoLoop(streams, ToySource(frames), [sink]))
    assert (outcome.frames_in, outcome.frames_done, outcome.error) == (frames, frames, None)
    assert sink.seen == [(i, i % 11) for i in range(frames)]
    assert sum(engine.calls for engine in engines) == frames
    streams.close()


@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize("which", [0, 1])
def test_a_copy_that_breaks_ends_the_run_with_its_error(which: int, at: int) -> None:
    error = GradsegError("it broke", 3)
    fails, fine = ToyEngine(raise_at(at, error)), ToyEngine()
    streams = Streams((fails, fine) if which == 0 else (fine, fails))
    sink = ToySink()
    outcome = run_guarded(VideoLoop(streams, ToySource(10**9), [sink], max_frames=10_000))
    if which == 0 or outcome.error is not None:  # the second copy may never be needed if the first is always free
        assert outcome.error is error and outcome.exit_code == 3 and not outcome.hung
        assert [index for index, _ in sink.seen] == list(range(len(sink.seen)))
    streams.close()


def opener(made: list[Any], make: Callable[[Optional[int]], Any]) -> Callable[[Optional[int]], Engine]:
    def opened(threads: Optional[int]) -> Engine:
        made.append(make(threads))
        return made[-1]  # type: ignore[no-any-return]

    return opened


def toy(threads: Optional[int]) -> ToyEngine:
    engine = ToyEngine()
    engine.threads = threads
    return engine


@pytest.mark.parametrize(("threads", "shares"), [(2, [1, 1]), (3, [1, 2]), (8, [4, 4]), (1, [1])])
def test_the_threads_are_shared(threads: int, shares: list[int]) -> None:
    made: list[ToyEngine] = []
    engine = two_streams(opener(made, toy), threads)
    assert [each.threads for each in made] == shares and engine.threads == threads
    assert isinstance(engine, Streams) == (threads > 1)
    engine.close()
    assert all(each.closed for each in made)


def test_what_overlaps_by_itself_or_has_no_cpu_threads_stays_single() -> None:
    class Gpu(ToyEngine):
        threads = None

        def __init__(self) -> None:
            super().__init__()
            self.threads = None

    for make in (lambda threads: OverlappingEngine(), lambda threads: Gpu()):
        made: list[Any] = []
        assert two_streams(opener(made, make), 4) is made[0] and len(made) == 1


def test_if_the_second_does_not_open_the_first_is_closed() -> None:
    made: list[ToyEngine] = []

    def make(threads: Optional[int]) -> ToyEngine:
        if made:
            raise GradsegError("no memory", 3)
        return toy(threads)

    with pytest.raises(GradsegError, match="no memory"):
        two_streams(opener(made, make), 2)
    assert made[0].closed


def test_run_video_with_two_streams(tmp_path: Path) -> None:
    onnx, clip = deployment_onnx(tmp_path / "m.onnx"), write_video(tmp_path / "in.mp4", 12)
    reports = []
    for streams in ("1", "2"):
        report, labels = tmp_path / f"{streams}.json", tmp_path / f"labels{streams}"
        arguments = [str(clip), "--engine", str(onnx), "--threads", "2", "--streams", streams]
        assert run_video.main([*arguments, "--report", str(report), "--labels", str(labels)]) == 0
        reports.append(json.loads(report.read_text()))
    assert [report["streams"] for report in reports] == [1, 2]
    assert [report["frames_done"] for report in reports] == [12, 12]
    assert [report["conditions"]["threads"] for report in reports] == [2, 2]
    for image in sorted((tmp_path / "labels1").iterdir()):
        assert image.read_bytes() == (tmp_path / "labels2" / image.name).read_bytes()


def test_a_camera_gets_one_frame_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ToySource(5, live=True)
    monkeypatch.setattr(run_video, "open_source", lambda text: source)
    onnx = deployment_onnx(tmp_path / "m.onnx")
    with pytest.raises(GradsegError, match="--streams 2: is for recordings, toy is live"):
        run_video.main(["cam0", "--engine", str(onnx), "--threads", "2", "--streams", "2"])
    assert source.closed


def test_onnx_runtime_in_two_streams_gives_the_same_labels(tmp_path: Path) -> None:
    onnx = deployment_onnx(tmp_path / "m.onnx")
    frame = np.random.default_rng(0).integers(0, 256, (1, *HW, 3), np.uint8)
    single, double = open_engine(onnx, 2), two_streams(lambda threads: open_engine(onnx, threads), 2)
    np.testing.assert_array_equal(single.infer(frame), double.infer(frame))
    assert (double.batch, double.frame_hw, double.precision) == (1, HW, single.precision)
    for engine in (single, double):
        engine.close()
