"""One frame through preprocessing, engine and postprocessing, timed; two at once where the engine can."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Optional, Tuple

import numpy as np

from gradseg.runtime.engine import Engine, overlapping, staged
from gradseg.runtime.preprocess import LabelResizer, Preprocessor


@dataclass
class Slot:
    """One frame on its way. Buffers are kept from frame to frame. Times in nanoseconds of `time.perf_counter_ns`.

    captured: when capture had finished. wait: from then until inference took the frame; with a file that is the time by
    which capture is ahead. begun: when the engine was given the frame. infer: from then until its labels were there;
    where two frames are under way, the other's share is in it.
    """

    frame: Any = None
    labels: Any = None
    index: int = 0
    t_capture: int = 0
    capture: int = 0
    captured: int = 0
    wait: int = 0
    preprocess: int = 0
    begun: int = 0
    infer: int = 0
    postprocess: int = 0
    total: int = 0


class Inference:
    """What the inference thread does with a slot: its frame, uint8 BGR (H, W, 3), becomes labels, uint8 (H, W).

    frame_hw: (height, width) of the frames that are to be expected; others are taken as well.
    overlaps: `start` of a slot may come before `finish` of the one before; else only `run` is used.
    """

    def __init__(self, engine: Engine, frame_hw: Tuple[int, int]) -> None:
        self._engine, self._staged, self._overlapping = engine, staged(engine), overlapping(engine)
        self._preprocess, self._resize = Preprocessor(engine.frame_hw), LabelResizer()
        self._preprocess.expect(frame_hw)
        self._resize.expect(engine.frame_hw, frame_hw)
        self.overlaps = self._overlapping is not None

    def run(self, slot: Slot) -> None:
        """All of it."""
        self._keep(slot, self._engine.infer(self._prepared(slot)))

    def start(self, slot: Slot) -> None:
        """Gives the engine the frame; at most one slot before it may be unfinished."""
        assert self._overlapping is not None
        self._overlapping.begin(self._prepared(slot))

    def finish(self, slot: Optional[Slot]) -> None:
        """Waits for the labels of the slot started first; None throws them away."""
        assert self._overlapping is not None
        labels = self._overlapping.finish()
        if slot is not None:
            self._keep(slot, labels)

    def _prepared(self, slot: Slot) -> np.ndarray[Any, Any]:
        begin = time.perf_counter_ns()
        if self._staged is not None:
            batch = self._preprocess(slot.frame, self._staged.staging)
        else:
            batch = self._preprocess.shared(slot.frame)
        slot.begun = time.perf_counter_ns()
        slot.wait, slot.preprocess = begin - slot.captured, slot.begun - begin
        return batch

    def _keep(self, slot: Slot, labels: np.ndarray[Any, Any]) -> None:
        """Copies the labels (1, h, w), which are the engine's, into the slot at frame size."""
        inferred = time.perf_counter_ns()
        frame_hw = (int(slot.frame.shape[0]), int(slot.frame.shape[1]))
        if slot.labels is None or slot.labels.shape != frame_hw:
            slot.labels = np.empty(frame_hw, np.uint8)
        self._resize(labels[0], frame_hw, slot.labels)
        end = time.perf_counter_ns()
        slot.infer, slot.postprocess, slot.total = inferred - slot.begun, end - inferred, end - slot.t_capture
