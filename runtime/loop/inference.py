"""One frame through preprocessing, engine and postprocessing, timed; two at once where the engine can."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Optional, Sequence, Tuple

import numpy as np

from gradseg.runtime.engines.protocol import Engine, Loading, overlapping, staged
from gradseg.runtime.preprocess import LabelResizer, Preprocessor, check_frame, output_for, resize_labels


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
    captured: int = 0
    wait: int = 0
    preprocess: int = 0
    begun: int = 0
    infer: int = 0
    postprocess: int = 0
    total: int = 0


class Entry:
    """The shortest way of frames into an engine, and of their labels out of it.

    Args:
        frame_hw: (height, width) of the frames that are to be expected, if it is known; others are taken as well.
    """

    def __init__(self, engine: Engine, frame_hw: Optional[Tuple[int, int]] = None) -> None:
        self._engine, self._staged = engine, staged(engine)
        self._loading = engine if engine.batch == 1 and isinstance(engine, Loading) else None
        # what such an engine cannot resize, none of the native resizes can
        self._preprocess = Preprocessor(engine.frame_hw, native=self._loading is None)
        self._resize = LabelResizer()
        self._batch: np.ndarray[Any, Any] = np.empty((engine.batch, *engine.frame_hw, 3), np.uint8)
        if frame_hw is not None and self._loading is not None:
            self._loading.expect(frame_hw)
        elif frame_hw is not None:
            self._preprocess.expect(frame_hw)
            self._resize.expect(engine.frame_hw, frame_hw)

    def prepare(self, frames: Sequence[np.ndarray[Any, Any]]) -> Optional[np.ndarray[Any, Any]]:
        """`engine.batch` frames, uint8 BGR (H, W, 3), each of any size → uint8 BGR (batch, h, w, 3), valid until the
        next call; None: the engine has it already. GradsegError for what is no frame."""
        if self._staged is None and len(frames) == 1:
            check_frame(frames[0])
            if self._loading is not None and self._loading.load(frames[0]):
                return None
            return self._preprocess.shared(frames[0])
        batch = self._batch if self._staged is None else self._staged.staging
        for index, frame in enumerate(frames):
            self._preprocess(frame, batch[index : index + 1])
        return batch

    def infer(self, batch: Optional[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """What `prepare` gave → uint8 labels (batch, h, w), valid until the next call."""
        if batch is not None:
            return self._engine.infer(batch)
        assert self._loading is not None
        return self._loading.infer_loaded()

    def enlarge(
        self, labels: np.ndarray[Any, Any], out_hw: Tuple[int, int], out: Optional[np.ndarray[Any, Any]] = None
    ) -> np.ndarray[Any, Any]:
        """The last labels of one frame, uint8 (h, w), → uint8 (H, W), as `resize_labels` does."""
        if self._loading is None:
            return self._resize(labels, out_hw, out)
        target = output_for(out, out_hw, "labels")
        return target if self._loading.spread(target) else resize_labels(labels, out_hw, target)


class Inference:
    """What the inference thread does with a slot: its frame, uint8 BGR (H, W, 3), becomes labels, uint8 (H, W).

    frame_hw: (height, width) of the frames that are to be expected; others are taken as well.
    overlaps: `start` of a slot may come before `finish` of the one before; else only `run` is used.
    """

    def __init__(self, engine: Engine, frame_hw: Tuple[int, int]) -> None:
        self._entry, self._overlapping = Entry(engine, frame_hw), overlapping(engine)
        self.overlaps = self._overlapping is not None

    def run(self, slot: Slot) -> None:
        """All of it."""
        self._keep(slot, self._entry.infer(self._prepared(slot)))

    def start(self, slot: Slot) -> None:
        """Gives the engine the frame; at most one slot before it may be unfinished."""
        assert self._overlapping is not None
        batch = self._prepared(slot)
        assert batch is not None
        self._overlapping.begin(batch)

    def finish(self, slot: Optional[Slot]) -> None:
        """Waits for the labels of the slot started first; None throws them away."""
        assert self._overlapping is not None
        labels = self._overlapping.finish()
        if slot is not None:
            self._keep(slot, labels)

    def _prepared(self, slot: Slot) -> Optional[np.ndarray[Any, Any]]:
        begin = time.perf_counter_ns()
        batch = self._entry.prepare((slot.frame,))
        slot.begun = time.perf_counter_ns()
        slot.wait, slot.preprocess = begin - slot.captured, slot.begun - begin
        return batch

    def _keep(self, slot: Slot, labels: np.ndarray[Any, Any]) -> None:
        """Copies the labels (1, h, w), which are the engine's, into the slot at frame size."""
        inferred = time.perf_counter_ns()
        frame_hw = (int(slot.frame.shape[0]), int(slot.frame.shape[1]))
        if slot.labels is None or slot.labels.shape != frame_hw:
            slot.labels = np.empty(frame_hw, np.uint8)
        self._entry.enlarge(labels[0], frame_hw, slot.labels)
        end = time.perf_counter_ns()
        slot.infer, slot.postprocess, slot.total = inferred - slot.begun, end - inferred, end - slot.t_capture
