"""Compares an engine's labels with ONNX Runtime's in a pack, and with the true ones. NumPy and OpenCV only."""

from __future__ import annotations

import math
from typing import Any, Dict, Iterator, Optional, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.benchmarks.on_gpu.index import DECIDED, UNDECIDED_HALF, Pack
from gradseg.graphs.verify import Agreement
from gradseg.runtime.metrics import Confusion
from gradseg.runtime.preprocess import Preprocessor, resize_labels


def labels_of(pack: Pack, model: str, precision: str, border: str, engine: Any) -> Dict[str, Any]:
    """What the labels of an engine (`infer`, `frame_hw`) are, as JSON types.

    agreement: share of labels equal to those of ONNX Runtime's FP32, near-ties left out as `left_out` says.
    agreement_all: with them. int8_agreement: with ONNX Runtime's INT8, for INT8 engines. miou, reference_miou:
    fractions, against the true labels, where they mean something. miou_change_points: their difference in points.

    Raises GradsegError if one frame gets two answers, or all frames the same one that ONNX Runtime does not give.
    """
    kind = "frame" if border == "frame" else "fp32"
    scored, prepare = pack.scored(model) and kind == "fp32", Preprocessor(engine.frame_hw)
    least, words = _least(precision, pack.index["models"][model]["trained"])
    every, counted, int8 = Agreement(), Agreement(), Agreement()
    confusions = [Confusion(len(pack.classes)) for _ in range(2)]
    count, others = pack.references(model, kind), 0
    if count == 0:
        raise GradsegError(f"{pack.folder}: holds no labels of {model} for {border}-size engines")
    alive = Alive(f"{model} {precision}")
    for index in range(count):
        (image, same), truth = pack.image(index), pack.truth(index)
        others += not same
        batch = prepare(image)
        labels = engine.infer(batch)[0].copy()
        expected, levels = pack.reference(model, kind, index)
        if same:
            every.add(labels, expected)
            counted.add(labels, expected, levels >= least)
        if same and precision == "int8" and kind == "fp32" and index < pack.references(model, "int8"):
            exact, sure = pack.reference(model, "int8", index)
            int8.add(labels, exact, sure >= least)
        if scored:
            for confusion, found in zip(confusions, (labels, expected)):
                confusion.update(resize_labels(found, truth.shape[:2]), truth)
        alive.look(labels, expected, engine.infer(batch)[0] if index == 0 else None)
    alive.check()
    miou, reference = (confusion.miou() if scored else math.nan for confusion in confusions)
    return {
        "frames": count,
        "decoded_differently": others,
        "agreement": _share(counted),
        "agreement_all": _share(every),
        "left_out": f"{words}: {100 * counted.ties / max(1, every.pixels):.3f} % of the pixels",
        "int8_agreement": _share(int8),
        "miou": _number(miou),
        "reference_miou": _number(reference),
        "miou_change_points": _number(100 * (miou - reference)),
    }


def _least(precision: str, trained: bool) -> Tuple[int, str]:
    """The level from which on pixels count, and what is left out in words."""
    if precision == "fp32" or trained:
        return UNDECIDED_HALF, "left out as near-ties of FP32"
    return DECIDED, "untrained; left out as near-ties of FP16"


def _number(value: float) -> Optional[float]:
    return None if math.isnan(value) else value


def _share(found: Agreement) -> Optional[float]:
    return found.fraction if found.pixels else None


class Alive:
    """Whether an engine answers repeatably, and differently for different frames where it should."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._first: Optional[np.ndarray[Any, Any]] = None
        self._expected: Optional[np.ndarray[Any, Any]] = None
        self._varied = self._should = False

    def look(
        self,
        labels: np.ndarray[Any, Any],
        expected: np.ndarray[Any, Any],
        again: Optional[np.ndarray[Any, Any]] = None,
    ) -> None:
        """One frame's labels, those expected, and for the first frame a second answer."""
        if again is not None and not np.array_equal(labels, again):
            raise GradsegError(f"{self._where}: gives two answers for one frame")
        if self._first is None or self._expected is None:
            self._first, self._expected = labels, expected
        else:
            self._varied |= not np.array_equal(labels, self._first)
            self._should |= not np.array_equal(expected, self._expected)

    def check(self) -> None:
        """GradsegError if all frames got one answer although ONNX Runtime tells them apart."""
        if self._should and not self._varied:
            raise GradsegError(f"{self._where}: gives the same answer for all frames; ONNX Runtime tells them apart")


def frames_for_timing(pack: Pack, count: int) -> Iterator[np.ndarray[Any, Any]]:
    """Up to `count` of the pack's frames, evenly spread."""
    number = min(count, len(pack))
    for index in range(number):
        yield pack.image(index * len(pack) // number)[0]
