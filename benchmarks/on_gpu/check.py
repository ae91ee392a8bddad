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
    firsts: Tuple[np.ndarray[Any, Any], ...] = ()
    varied, should = False, False  # whether the engine, and ONNX Runtime, tell frames apart
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
        if not firsts and not np.array_equal(labels, engine.infer(batch)[0]):
            raise GradsegError(f"{model} {precision}: gives two answers for one frame")
        firsts = firsts or (labels, expected)
        varied |= not np.array_equal(labels, firsts[0])
        should |= not np.array_equal(expected, firsts[1])
    if should and not varied:
        raise GradsegError(f"{model} {precision}: gives the same answer for all frames; ONNX Runtime tells them apart")
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


def frames_for_timing(pack: Pack, count: int) -> Iterator[np.ndarray[Any, Any]]:
    """Up to `count` of the pack's frames, evenly spread."""
    number = min(count, len(pack))
    for index in range(number):
        yield pack.image(index * len(pack) // number)[0]
