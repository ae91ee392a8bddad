"""The loop: nothing lost, in order, newest frame of a live source, a clean end from every stage. Events, no sleeps."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import numpy as np
import pytest
from runtime_toys import HW, SPEC, OverlappingEngine, ToyEngine, ToySink, ToySource, raise_at, run_guarded

from gradseg.base.errors import GradsegError
from gradseg.runtime.loop import video_loop as loop_module
from gradseg.runtime.loop.report import STAGES
from gradseg.runtime.loop.video_loop import SLOTS, VideoLoop
from gradseg.runtime.sinks.overlay import Overlay


@pytest.mark.parametrize("frames", [0, 1, 2, SLOTS, 57])
def test_a_file_loses_nothing_and_keeps_its_order(frames: int) -> None:
    source, sink, seen = ToySource(frames), ToySink(), []
    loop = VideoLoop(ToyEngine(), source, [sink], on_frame=lambda total, done, dropped: seen.append((done, dropped)))
    outcome = run_guarded(loop)
    assert (outcome.frames_in, outcome.frames_done, outcome.frames_dropped) == (frames, frames, 0)
    assert sink.seen == [(i, i % 11) for i in range(frames)] and sink.closed == 1 and source.closed
    assert (outcome.reason, outcome.exit_code, outcome.error, outcome.warnings) == ("end of source", 0, None, [])
    assert seen == [(i + 1, 0) for i in range(frames)]
    assert set(outcome.latency_ms) == set(STAGES)
    if frames:
        total, infer = outcome.latency_ms["total"], outcome.latency_ms["infer"]
        assert total["mean"] >= infer["mean"] > 0 and total["p50"] <= total["p90"] <= total["p99"] <= total["max"]


def test_a_slow_sink_holds_the_file_back_and_buffers_stay_few() -> None:
    addresses = set()

    class Watching(ToySink):
        def write(self, image: Any, labels: Any, index: int, t_capture_ns: int) -> None:
            addresses.add(labels.ctypes.data)
            super().write(image, labels, index, t_capture_ns)

    outcome = run_guarded(VideoLoop(ToyEngine(), ToySource(40), [Watching()]))
    assert outcome.frames_done == 40 and len(addresses) <= SLOTS


def test_a_live_source_keeps_the_newest_frame_and_counts_the_rest() -> None:
    first_in_engine, all_captured = threading.Event(), threading.Event()

    def on_infer(call: int) -> None:
        if call == 0:
            first_in_engine.set()
            assert all_captured.wait(30)

    def on_read(index: int) -> Any:
        if index == 1:
            assert first_in_engine.wait(30)
        if index == 10:
            all_captured.set()
            return "end"
        return None

    sink = ToySink()
    outcome = run_guarded(VideoLoop(ToyEngine(on_infer), ToySource(99, live=True, before=on_read), [sink]))
    assert (outcome.frames_in, outcome.frames_done, outcome.frames_dropped) == (10, 2, 8)
    assert sink.seen == [(0, 0), (9, 9)]


def test_a_live_source_is_never_held_back_by_a_stuck_sink() -> None:
    """With the sink blocked, capture must go on: 50 frames come in before the sink may continue."""
    captured = threading.Event()

    def on_read(index: int) -> Any:
        if index == 50:
            captured.set()
            return "end"
        return None

    sink = ToySink(before=lambda index: None if captured.wait(30) else pytest.fail("capture was held back"))
    outcome = run_guarded(VideoLoop(ToyEngine(), ToySource(99, live=True, before=on_read), [sink]))
    assert outcome.frames_in == 50 == outcome.frames_done + outcome.frames_dropped
    assert [index for index, _ in sink.seen] == sorted(index for index, _ in sink.seen)
    assert sink.seen[-1][0] == 49


@pytest.mark.parametrize("live", [False, True])
def test_max_frames_counts_results(live: bool) -> None:
    sink = ToySink()
    outcome = run_guarded(VideoLoop(ToyEngine(), ToySource(10**9, live=live), [sink], max_frames=7))
    assert outcome.frames_done == 7 == len(sink.seen) and outcome.reason == "max frames" and outcome.exit_code == 0
    assert outcome.frames_in == outcome.frames_done + outcome.frames_dropped
    if not live:
        assert outcome.frames_in == 7


@pytest.mark.parametrize("live", [False, True])
def test_duration_ends_and_finishes_what_is_under_way(live: bool) -> None:
    outcome = run_guarded(VideoLoop(ToyEngine(), ToySource(10**9, live=live), [], duration_s=0.05))
    assert outcome.reason == "duration" and outcome.exit_code == 0 and outcome.duration_s >= 0.05
    assert outcome.frames_in == outcome.frames_done + outcome.frames_dropped


ERRORS = [(GradsegError("it broke"), 2), (GradsegError("no device", 3), 3), (ValueError("a bug"), 1)]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize(("error", "code"), ERRORS, ids=["user", "device", "bug"])
@pytest.mark.parametrize("stage", ["source", "inference", "sink", "live line"])
def test_an_exception_in_any_stage_ends_everything(
    stage: str, error: Exception, code: int, at: int, live: bool
) -> None:
    fails = raise_at(at, error)
    source = ToySource(10**9, live, fails if stage == "source" else lambda index: None)
    engine = ToyEngine(fails if stage == "inference" else lambda call: None)
    calls = iter(range(10**9))
    sink = ToySink((lambda index: fails(next(calls))) if stage == "sink" else lambda index: None)

    def on_frame(total: int, done: int, dropped: int) -> None:
        if stage == "live line":
            fails(done - 1)

    outcome = run_guarded(VideoLoop(engine, source, [sink], on_frame=on_frame))
    assert outcome.error is error and outcome.exit_code == code and str(error) in outcome.reason
    assert sink.closed == 1 and source.closed and not outcome.hung
    if not live and stage in ("source", "inference"):
        assert [index for index, _ in sink.seen] == list(range(at)), "frames before the fault are kept"
        assert outcome.frames_dropped == 0


def test_a_sink_that_fails_to_close_does_not_keep_the_others_open() -> None:
    class Bad(ToySink):
        def close(self) -> None:
            raise GradsegError("disk full at the very end")

    good = ToySink()
    outcome = run_guarded(VideoLoop(ToyEngine(), ToySource(3), [Bad(), good]))
    assert outcome.exit_code == 2 and "disk full at the very end" in outcome.reason
    assert good.closed == 1 and outcome.frames_done == 3


def test_what_breaks_while_stopping_is_told_as_well() -> None:
    class Bad(ToySink):
        def close(self) -> None:
            raise GradsegError("no index")

    loop = VideoLoop(ToyEngine(raise_at(2, ValueError("first"))), ToySource(9), [Bad()])
    outcome = run_guarded(loop)
    assert outcome.reason == "inference: first" and outcome.warnings == ["sink: no index"]


@pytest.mark.parametrize("live", [False, True])
def test_a_source_that_hangs_is_left_alone(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "GRACE_S", 0.05)
    release = threading.Event()
    source = ToySource(9, live, before=lambda index: release.wait(60) if index == 2 else None)
    sink = ToySink()
    loop = VideoLoop(ToyEngine(), source, [sink], duration_s=0.2)
    outcome = run_guarded(loop)
    assert outcome.reason == "duration" and outcome.hung == ["capture"] and sink.closed == 1
    assert "did not come back" in outcome.warnings[0] and not source.closed
    release.set()


def test_a_second_ctrl_c_does_not_wait_for_a_stuck_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "GRACE_S", 0.05)
    release, sink = threading.Event(), ToySink()
    loop: VideoLoop

    def stuck(call: int) -> None:
        if call == 2:
            os.kill(os.getpid(), signal.SIGINT)
            while loop.stop.reason is None:
                release.wait(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            release.wait(60)

    before = signal.getsignal(signal.SIGINT)
    loop = VideoLoop(ToyEngine(stuck), ToySource(10**9), [sink])
    outcome = loop.run()
    release.set()
    assert (outcome.reason, outcome.exit_code, outcome.hung) == ("SIGINT", 130, ["inference"])
    assert sink.closed == 1 and len(sink.seen) <= 2
    assert signal.getsignal(signal.SIGINT) is before


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_more_ctrl_c_while_files_are_finished_loses_none() -> None:
    class Closing(ToySink):
        def close(self) -> None:
            interrupt()
            interrupt()
            super().close()

    sinks = [Closing(before=lambda index: interrupt() if index == 2 else None), Closing()]
    source = ToySource(10**9)
    outcome = VideoLoop(ToyEngine(), source, sinks).run()
    assert [sink.closed for sink in sinks] == [1, 1] and source.closed
    assert (outcome.reason, outcome.exit_code, outcome.error) == ("SIGINT", 130, None)
    assert outcome.frames_done >= 3 and outcome.duration_s > 0


def test_ctrl_c_at_the_very_end_does_not_take_the_result_away() -> None:
    class Closing(ToySink):
        def close(self) -> None:
            interrupt()
            super().close()

    sink = Closing()
    outcome = VideoLoop(ToyEngine(), ToySource(3), [sink]).run()
    assert (outcome.reason, outcome.exit_code, outcome.frames_done, sink.closed) == ("end of source", 0, 3, 1)


def test_ctrl_c_twice_after_the_source_ended_still_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the source is the reason already; a stuck engine must not make the program unstoppable."""
    monkeypatch.setattr(loop_module, "GRACE_S", 0.05)
    release, sink = threading.Event(), ToySink()
    loop: VideoLoop

    def stuck(call: int) -> None:
        if call == 1:
            while loop.stop.reason is None:
                release.wait(0.01)
            for _ in range(300):  # until one was delivered after the first
                interrupt()
                if sink.closed or release.wait(0.02):
                    break
            release.wait(60)

    loop = VideoLoop(ToyEngine(stuck), ToySource(2), [sink])
    try:
        outcome = loop.run()
    finally:
        release.set()
    assert outcome.hung == ["inference"] and sink.closed == 1, outcome


def test_stop_from_outside_drains() -> None:
    loop: VideoLoop
    sink = ToySink(before=lambda index: loop.stop.request("window closed") if index == 4 else None)
    loop = VideoLoop(ToyEngine(), ToySource(10**9), [sink])
    outcome = run_guarded(loop)
    assert outcome.reason == "window closed" and outcome.frames_in == outcome.frames_done >= 5


def test_frames_of_several_sizes() -> None:
    class Mixed(ToySource):
        def read(self, out: Any = None) -> Any:
            captured = super().read(None)
            return captured and (captured[0][: 8 + 4 * (self._next % 3)], captured[1])

    sizes: list[Any] = []

    class Watching(ToySink):
        wants_image = True

        def write(self, image: Any, labels: Any, index: int, t_capture_ns: int) -> None:
            assert image.shape[:2] == labels.shape
            sizes.append(labels.shape)

    outcome = run_guarded(VideoLoop(ToyEngine(), Mixed(6), [Watching()], Overlay(SPEC.palette)))
    assert outcome.error is None and sizes == [(8 + 4 * (i % 3), HW[1]) for i in (1, 2, 3, 4, 5, 6)]


# -- an engine that takes the next frame early


@pytest.mark.parametrize("frames", [0, 1, 2, 3, SLOTS, 57])
def test_a_file_overlaps_and_loses_nothing(frames: int) -> None:
    ready = threading.Event()

    def hold(call: int) -> None:  # the first frame is under way until the second waits for its turn
        if call == 0 and frames > 1:
            assert ready.wait(30)

    def read(index: int) -> None:
        if index == 2:  # the frame before it was put where the engine finds it
            ready.set()

    engine, source, sink = OverlappingEngine(hold), ToySource(frames, before=read), ToySink()
    outcome = run_guarded(VideoLoop(engine, source, [sink]))
    assert (outcome.frames_in, outcome.frames_done, outcome.frames_dropped, outcome.error) == (frames, frames, 0, None)
    assert sink.seen == [(i, i % 11) for i in range(frames)]
    assert engine.log.count("begin") == engine.log.count("finish") == frames
    if frames > 1:
        assert engine.deepest == 2 and engine.log[:3] == ["begin", "begin", "finish"]
        infer = outcome.latency_ms["infer"]
        assert infer["mean"] > 0 and outcome.latency_ms["total"]["mean"] >= infer["mean"]


def test_a_frame_is_never_waited_for() -> None:
    """A source that gives the second frame only when the first one's labels have been seen."""
    seen = threading.Event()

    def read(index: int) -> None:
        if index == 1:
            assert seen.wait(30), "the first frame waits in the engine for the second"

    sink = ToySink(before=lambda index: seen.set())
    outcome = run_guarded(VideoLoop(OverlappingEngine(), ToySource(3, before=read), [sink]))
    assert outcome.error is None and [index for index, _ in sink.seen] == [0, 1, 2]


def test_a_live_source_has_one_frame_under_way() -> None:
    engine = OverlappingEngine()
    outcome = run_guarded(VideoLoop(engine, ToySource(10**9, live=True), [ToySink()], max_frames=20))
    assert outcome.frames_done == 20 and engine.deepest == 1 and outcome.error is None


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize(("error", "code"), ERRORS, ids=["user", "device", "bug"])
@pytest.mark.parametrize("stage", ["source", "inference", "sink"])
def test_an_exception_while_frames_overlap(stage: str, error: Exception, code: int, at: int) -> None:
    fails = raise_at(at, error)
    engine = OverlappingEngine(fails if stage == "inference" else lambda call: None)
    source = ToySource(10**9, before=fails if stage == "source" else lambda index: None)
    sink = ToySink(fails if stage == "sink" else lambda index: None)
    outcome = run_guarded(VideoLoop(engine, source, [sink]))
    assert outcome.error is error and outcome.exit_code == code and sink.closed == 1 and not outcome.hung
    if stage != "sink":
        assert [index for index, _ in sink.seen] == list(range(at)), "frames before the fault are kept"
    else:
        assert engine.log.count("begin") == engine.log.count("finish"), "the engine is left empty"


def test_an_engine_that_breaks_with_a_frame_under_way_says_why() -> None:
    class Breaks(OverlappingEngine):
        def begin(self, batch: Any) -> None:
            if self.calls == 3:
                self._under_way.clear()
                raise RuntimeError("the GPU fell off the bus")
            super().begin(batch)

    outcome = run_guarded(VideoLoop(Breaks(), ToySource(10**9), [ToySink()]))
    assert "the GPU fell off the bus" in outcome.reason and outcome.exit_code == 1 and not outcome.hung


def test_a_bad_frame_after_a_good_one_while_they_overlap() -> None:
    class Odd(ToySource):
        def read(self, out: Any = None) -> Any:
            captured = super().read(None)
            return captured and ((captured[0][..., 0] if self._next == 4 else captured[0]), captured[1])

    sink = ToySink()
    outcome = run_guarded(VideoLoop(OverlappingEngine(), Odd(9), [sink]))
    assert "expected uint8 BGR" in outcome.reason and outcome.exit_code == 2
    assert [index for index, _ in sink.seen] == [0, 1, 2]


def test_no_picture_is_drawn_that_nobody_wants() -> None:
    class Forbidden(Overlay):
        def __call__(self, *_: Any, **__: Any) -> np.ndarray[Any, Any]:
            raise AssertionError("drawn for nobody")

    class LabelsOnly(ToySink):
        wants_image = False

    outcome = run_guarded(VideoLoop(ToyEngine(), ToySource(3), [LabelsOnly()], Forbidden(SPEC.palette)))
    assert outcome.error is None and outcome.frames_done == 3


# -- what a run says about its stages and threads


@pytest.mark.parametrize("drawn", [False, True])
def test_every_stage_is_timed_that_there_is(drawn: bool) -> None:
    class Labels(ToySink):
        wants_image = False

    sinks = [ToySink()] if drawn else []
    outcome = run_guarded(VideoLoop(ToyEngine(), ToySource(9), sinks, Overlay(SPEC.palette)))
    found = {stage for stage, figures in outcome.latency_ms.items() if figures["p50"] is not None}
    assert found == set(STAGES) - (set() if drawn else {"overlay", "sink"})
    labels_only = run_guarded(VideoLoop(ToyEngine(), ToySource(9), [Labels()], Overlay(SPEC.palette)))
    assert labels_only.latency_ms["overlay"]["p50"] is None and labels_only.latency_ms["sink"]["p50"] is not None


def test_waiting_is_told_apart_from_work() -> None:
    """The second frame is captured while the first is in the engine, which goes on only then."""
    captured = threading.Event()
    source = ToySource(2, before=lambda index: captured.set() if index == 2 else None)
    outcome = run_guarded(VideoLoop(ToyEngine(lambda call: captured.wait(30) and None), source, []))
    assert outcome.error is None and outcome.frames_done == 2
    figures = outcome.latency_ms
    parts = sum(figures[stage]["mean"] for stage in ("capture", "wait", "preprocess", "infer", "postprocess"))
    assert parts == pytest.approx(figures["total"]["mean"], rel=0.01, abs=0.05)


def test_cpu_time_is_shared_out_among_the_threads() -> None:
    outcome = run_guarded(VideoLoop(ToyEngine(), ToySource(50), [ToySink()]))
    cpu = outcome.cpu_ms
    assert set(cpu) == {"source", "inference", "sink", "others", "process"}
    assert cpu["process"] > 0 and all(value >= 0 for value in cpu.values())
    assert cpu["source"] + cpu["inference"] + cpu["sink"] <= cpu["process"] * 1.01 + 0.01
    assert run_guarded(VideoLoop(ToyEngine(), ToySource(0), [])).cpu_ms == {}


@pytest.mark.parametrize(("cores", "threads", "seen"), [(4, 1, 3), (4, 4, 1), (2, 8, 1), (4, None, 4)])
def test_opencv_gets_the_cores_that_the_engine_leaves(
    cores: int, threads: Any, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("gradseg.runtime.loop.report.usable_cores", lambda: cores)
    monkeypatch.setattr("gradseg.runtime.loop.report.cv2.getNumThreads", lambda: 4)
    monkeypatch.setattr("gradseg.runtime.loop.report.cv2.setNumThreads", asked.append)
    engine = ToyEngine()
    engine.threads = threads
    during: list[list[int]] = []
    sink = ToySink(before=lambda index: during.append(list(asked)))
    assert run_guarded(VideoLoop(engine, ToySource(2), [sink])).error is None
    assert during[0] == ([] if threads is None else [seen]) and asked[-1] == 4
