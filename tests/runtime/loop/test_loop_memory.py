"""In its steady state the loop allocates no picture and no label map: each goes round in the buffers it has."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from runtime_toys import OverlappingEngine, ToyEngine, ToySource, run_guarded, write_video

from gradseg.models.spec import ModelSpec, spec_for
from gradseg.runtime.loop.video_loop import SLOTS, VideoLoop
from gradseg.runtime.sinks.overlay import MODES, Overlay
from gradseg.runtime.sinks.sink import Sink
from gradseg.runtime.sinks.video import VideoSink
from gradseg.runtime.sources.recordings import VideoFile

FRAME_HW, NET_HW = (184, 320), (128, 256)
BEGIN, END = 3 * SLOTS, 60


class Quiet(ToyEngine):
    """Labels from memory that it always has."""

    def __init__(self, hw: tuple[int, int]) -> None:
        super().__init__()
        self.spec: ModelSpec = spec_for("dg2-star-light", input_hw=hw)
        self.frame_hw = hw
        self._labels = np.zeros((1, *hw), np.uint8)
        self.given: list[int] = []

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.given.append(batch.ctypes.data)
        np.minimum(batch[..., 0], 10, out=self._labels)
        return self._labels


class Watch(Sink):
    """From frame BEGIN to the last one: the most memory that was taken beyond what there was, and the buffers seen."""

    def __init__(self, wants_image: bool) -> None:
        self.wants_image, self.extra, self._held = wants_image, -1, 0
        self.labels: set[int] = set()
        self.images: set[int] = set()

    def write(self, image: Optional[np.ndarray[Any, Any]], labels: Any, index: int, t_capture_ns: int) -> None:
        if index >= BEGIN:
            self.labels.add(labels.ctypes.data)
            self.images.add(0 if image is None else image.ctypes.data)
        if index == BEGIN:
            tracemalloc.reset_peak()
            self._held = tracemalloc.get_traced_memory()[0]
        if index == END - 1:
            self.extra = tracemalloc.get_traced_memory()[1] - self._held

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.avi", END, FRAME_HW, noise=True)


@pytest.mark.parametrize("net_hw", [NET_HW, FRAME_HW])
@pytest.mark.parametrize("mode", [None, *MODES])
def test_no_frame_is_allocated(clip: Path, tmp_path: Path, mode: Optional[str], net_hw: tuple[int, int]) -> None:
    engine, watch = Quiet(net_hw), Watch(mode is not None)
    overlay = Overlay(engine.spec.palette, mode) if mode is not None else None
    sinks: list[Sink] = [watch]
    if overlay is not None:
        sinks.append(VideoSink(tmp_path / "out.avi", overlay.output_hw(FRAME_HW), 25.0))
    tracemalloc.start()
    try:
        outcome = run_guarded(VideoLoop(engine, VideoFile(str(clip)), sinks, overlay))
    finally:
        tracemalloc.stop()
    assert outcome.error is None and outcome.frames_done == END
    label_map = min(FRAME_HW[0] * FRAME_HW[1], net_hw[0] * net_hw[1])
    assert 0 <= watch.extra < label_map // 2, f"{watch.extra} bytes; a label map has {label_map}"
    assert len(watch.labels) <= SLOTS and len(watch.images) == 1
    # one batch that all frames are resized into; where there is nothing to resize, the frames' own memory
    assert len(set(engine.given[BEGIN:])) <= (SLOTS if net_hw == FRAME_HW else 1)


def test_a_frame_of_the_networks_size_reaches_the_engine_uncopied() -> None:
    given: list[int] = []

    class Remembers(ToySource):
        def read(self, out: Any = None) -> Any:
            captured = super().read(out)
            if captured is not None:
                given.append(captured[0].ctypes.data)
            return captured

    engine = Quiet((24, 32))
    assert run_guarded(VideoLoop(engine, Remembers(30), [])).error is None
    assert engine.given == given


def test_an_engine_with_memory_of_its_own_is_preprocessed_into() -> None:
    class Staged(Quiet):
        def __init__(self) -> None:
            super().__init__((24, 32))
            self.staging: np.ndarray[Any, Any] = np.zeros((1, 24, 32, 3), np.uint8)

    engine = Staged()
    assert run_guarded(VideoLoop(engine, ToySource(9), [])).error is None
    assert engine.given == [engine.staging.ctypes.data] * 9
    assert engine.staging[0, 0, 0, 0] == 8 and not hasattr(engine, "begin")
    assert isinstance(OverlappingEngine().staging, np.ndarray)
