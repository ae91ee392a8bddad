"""Frames → value ranges of a network's tensors, frame by frame: memory does not grow with the number of frames."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence

import numpy as np

from gradseg.calibration.graph import shapes_of
from gradseg.calibration.observers import Observer
from gradseg.calibration.sessions import OnnxRunner, exposed
from gradseg.models.errors import GradsegError
from gradseg.runtime.preprocess import Preprocessor

BUDGET = 256 << 20  # bytes of activations that one run may hand over


def observers_from_frames(
    model: Any,
    tensors: Sequence[str],
    frames: Iterable[np.ndarray[Any, Any]],
    threads: Optional[int] = None,
    progress: Optional[Callable[[int], None]] = None,
) -> Dict[str, Observer]:
    """Runs a deployment-form ONNX model over frames and observes the named tensors.

    Args:
        model: onnx.ModelProto, `frame` uint8 BGR (1, h, w, 3).
        tensors: names of float activations.
        frames: uint8 BGR (H, W, 3), any size; preprocessed as everywhere else. Consumed one at a time.
        progress: called with the number of frames done.

    The tensors are exposed as outputs of a session. If they would take more than 256 MB together, they are observed
    in several runs per frame.
    """
    shapes = shapes_of(model)
    wanted = list(dict.fromkeys(tensors))
    height, width = shapes[model.graph.input[0].name][1:3]
    prepare = Preprocessor((height, width))
    runner = OnnxRunner(exposed(model, wanted), "calibration", threads, optimise=False)
    groups = _groups(wanted, {name: 4 * int(np.prod(shapes[name])) for name in wanted})
    observers = {name: Observer() for name in wanted}
    count = 0
    for frame in frames:
        batch = prepare(frame)
        for names in groups:
            values = runner.run(batch, names)
            for index, name in enumerate(names):
                observers[name].update(values[index])
        count += 1
        if progress is not None:
            progress(count)
    if count == 0:
        raise GradsegError("no frames to calibrate with")
    return observers


def _groups(names: Sequence[str], sizes: Dict[str, int]) -> List[List[str]]:
    groups: List[List[str]] = []
    total = BUDGET
    for name in names:
        if total + sizes[name] > BUDGET:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += sizes[name]
    return groups
