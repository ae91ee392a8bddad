"""Whether a candidate's labels are good enough: equal to FP32's where it computes in float32, mIoU for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.calibration.cost.accuracy import Frames
from gradseg.data.specs import is_spec, open_data
from gradseg.export.trt.verify import WANTED
from gradseg.graphs import verify
from gradseg.graphs.frames import open_frames
from gradseg.graphs.sessions import OnnxRunner
from gradseg.graphs.ties import Decided
from gradseg.models.spec import ModelSpec
from gradseg.runtime.preprocess import Preprocessor

EXACT = 0.99999  # share of the labels that a float32 rewrite must have in common with FP32 as exported, near-ties aside
TIMED = 8  # different frames in turn: a constant input would flatter caches
UNLABELLED = 100  # frames at most that labels are compared on where there are none to compare with

Network = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]


class Judge:
    """The frames of --data and what is asked of labels on them.

    labelled: whether there is mIoU. why: in words, where not. count: frames.

    Args:
        limit: frames at most.
        drop: points of mIoU that may be lost; None is the usual `trt.best.DROP`, and no demand for labels.
    """

    def __init__(self, source: str, spec: ModelSpec, limit: Optional[int], asked: Optional[float]) -> None:
        self.spec, self.source = spec, source
        self._frames: Optional[Frames] = None
        self._expected: Optional[List[np.ndarray[Any, Any]]] = None
        self.why = "" if is_spec(source) else f"{source} has no labels"
        if not self.why:
            data = open_data(source, limit)
            if tuple(data.classes) != tuple(spec.classes):
                self.why = f"the labels of {source} are of other classes than the network's"
            else:
                self._frames = Frames(data, spec)
        refuse_drop(asked, self.why)
        if self._frames is not None:
            self._batches = [batch for batch, _ in self._frames]
        else:
            prepare, most = Preprocessor(spec.input_hw), min(limit or UNLABELLED, UNLABELLED)
            self._batches = [prepare(frame).copy() for frame in open_frames(source, most)]
        if not self._batches:
            raise GradsegError(f"{source}: no frames to measure on")
        self.labelled, self.count = self._frames is not None, len(self._batches)

    def timed(self) -> np.ndarray[Any, Any]:
        """The frames that engines are timed with, uint8 BGR (count, h, w, 3)."""
        step = max(1, len(self._batches) // TIMED)
        chosen = self._batches[::step][:TIMED]
        if len(chosen) == 1:  # a second one, to see that the labels follow the frame
            chosen = [*chosen, chosen[0][:, :, ::-1]]
        return np.ascontiguousarray(np.concatenate(chosen))

    def expect(self, network: Network) -> Dict[str, Any]:
        """Scores FP32 as exported and keeps its labels; the others are held against them."""
        self._expected = [network(batch)[0].copy() for batch in self._batches]
        replay = iter(self._expected)
        return self.score(lambda _: next(replay)[None])

    @property
    def has_reference(self) -> bool:
        return self._expected is not None

    def score(self, network: Network) -> Dict[str, Any]:
        """{"miou", "per_class"} (None without labels), "agreement" with FP32's labels, "frames"."""
        assert self._expected is not None
        if self._frames is not None:
            found = self._frames.score(network, self._expected)
            known: Dict[str, Any] = {"miou": found.miou, "per_class": found.per_class, "agreement": found.agreement}
        else:
            pairs = zip(self._batches, self._expected)
            same = [float(np.mean(network(batch)[0] == expected)) for batch, expected in pairs]
            known = {"miou": None, "per_class": None, "agreement": float(np.mean(same))}
        return {**known, "frames": self.count}


def refuse_drop(asked: Optional[float], why: str) -> None:
    """GradsegError if points of mIoU are asked for where there is none; `why` says so, or is ""."""
    if why and asked is not None:
        raise GradsegError(
            f"--max-drop {asked:g}: {why}, and mIoU needs labels of the network's classes; leave --max-drop out to "
            "compare with FP32's labels, or give such data"
        )


def fault(score: Dict[str, Any], base: Dict[str, Any], drop: float) -> str:
    """Why labels with this score may not be used beside FP32's `base`, or ''."""
    if score["miou"] is not None:
        lost = 100 * (base["miou"] - score["miou"])
        return f"loses {lost:.2f} points of mIoU, {drop:g} are allowed" if lost > drop else ""
    wanted = WANTED["int8"]
    if score["agreement"] < wanted:
        return f"changes {100 * (1 - score['agreement']):.2f} % of FP32's labels, {100 * (1 - wanted):g} are allowed"
    return ""


class Exactness:
    """FP32 as exported on the frames that are timed: its labels, and which pixels have a defined one.

    Args:
        model: the .onnx.
        frames: uint8 BGR (count, h, w, 3).
    """

    def __init__(self, model: Path, frames: np.ndarray[Any, Any], threads: Optional[int] = None) -> None:
        data = model.read_bytes()
        runner, decided = OnnxRunner(data, str(model), threads), Decided(data, str(model))
        self.batches = [frames[index : index + 1] for index in range(len(frames))]
        self.expected = [runner.first(batch).copy() for batch in self.batches]
        self.counted = [decided(batch, labels) for batch, labels in zip(self.batches, self.expected)]

    def check(self, network: Network, where: str, exact: bool) -> Tuple[float, List[str]]:
        """The share of equal labels, near-ties aside, and warnings; GradsegError for labels that cannot be used."""
        warnings = verify.check_alive(network, self.batches, where, None)
        agreement = verify.Agreement()
        for batch, expected, counted in zip(self.batches, self.expected, self.counted):
            agreement.add(network(batch), expected, counted)
        if exact and agreement.fraction < EXACT:
            raise GradsegError(
                f"its labels are equal to those of FP32 as exported on only {agreement}; a float32 form needs "
                f"{100 * EXACT:g} %"
            )
        return agreement.fraction, warnings
