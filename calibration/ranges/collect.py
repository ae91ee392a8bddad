"""Frames → statistics of a network's tensors, frame by frame: memory does not grow with the number of frames."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.plan import pixel_tensors
from gradseg.calibration.ranges.observers import SAMPLE, Observer, sample_step
from gradseg.graphs.frames import FrameSource
from gradseg.graphs.graph import Graph, shapes_of
from gradseg.graphs.sessions import OnnxRunner, exposed
from gradseg.models import metadata
from gradseg.models.spec import ModelSpec
from gradseg.runtime.preprocess import Preprocessor

TO_THE_END = 1 << 60  # of a Slice


@dataclass
class Statistics:
    """What frames were seen to make of a network's tensors.

    observers: of every float tensor asked for. means: per channel, float64 (C,), of tensors (1, C, h, w), over all
    frames. frames: how many. predicted: pixels that the network labelled with each class, int64 (classes,); as long as
    the labels seen need it for a model that does not say how many classes it has. pixels: observed tensors that hold
    the frame's own 8-bit integers.
    """

    observers: Dict[str, Observer]
    means: Dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    frames: int = 0
    predicted: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    pixels: FrozenSet[str] = frozenset()


def statistics_from_frames(
    model: Any,
    tensors: Sequence[str],
    frames: Iterable[np.ndarray[Any, Any]],
    means_of: Sequence[str] = (),
    threads: Optional[int] = None,
    most: int = 0,
) -> Statistics:
    """Runs a deployment-form ONNX model over frames and observes the named tensors.

    Args:
        model: onnx.ModelProto, `frame` uint8 BGR (1, h, w, 3) → labels (1, h, w).
        tensors: names of float activations.
        frames: uint8 BGR (H, W, 3), any size; preprocessed as everywhere else. Consumed one at a time.
        means_of: names of float activations (1, C, h, w) whose means per channel are wanted.
        most: frames at most; how many are done is then shown on a terminal.

    Minima, maxima, means and samples are taken inside the graph, so that no more than one frame's live activations are
    in memory at a time, whatever their number. Raises GradsegError, naming tensor and frame, for NaN or infinity in an
    observed tensor, and for frames of which there are none.
    """
    shapes = shapes_of(model)
    height, width = shapes[model.graph.input[0].name][1:3]
    prepare = Preprocessor((height, width))
    probe = Probe(model, list(dict.fromkeys(tensors)), list(dict.fromkeys(means_of)), shapes, threads)
    found = Statistics({name: Observer() for name in probe.tensors}, predicted=np.zeros(_classes(model), np.int64))
    found.pixels = frozenset(pixel_tensors(Graph(model)) & set(probe.tensors))
    shown = most and sys.stderr.isatty()
    named = frames.named() if isinstance(frames, FrameSource) else (("", frame) for frame in frames)
    for name, frame in named:
        where = f"frame {found.frames + 1}" + (f" ({name})" if name else "")
        labels = probe.observe(prepare(frame), found, where)
        seen = np.bincount(labels.reshape(-1), minlength=len(found.predicted))
        seen[: len(found.predicted)] += found.predicted
        found.predicted = seen.astype(np.int64)
        found.frames += 1
        if shown:
            print(f"\rcalibrating: {found.frames} of at most {most} frames", end="", file=sys.stderr, flush=True)
    if shown:
        print(file=sys.stderr)
    if found.frames == 0:
        raise GradsegError("no frames to calibrate with")
    for mean in found.means.values():
        mean /= found.frames
    return found


class Probe:
    """A session over a model that, beside its labels, gives a few numbers and a sample of every observed tensor.

    Tensors no larger than a sample, and those of unknown shape, are given whole.
    """

    def __init__(
        self, model: Any, tensors: List[str], means_of: List[str], shapes: Dict[str, List[int]], threads: Optional[int]
    ) -> None:
        self.tensors, self.means_of = tensors, means_of
        sizes = {name: int(np.prod(shapes.get(name) or [0])) for name in tensors}
        self._large = {name for name in tensors if sizes[name] > SAMPLE}
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        outputs: List[str] = []
        before = len(copy.graph.node)
        for index, name in enumerate(tensors):
            outputs += _summary(copy.graph, name, index, sizes[name]) if name in self._large else [name]
        for index, name in enumerate(means_of):
            copy.graph.node.append(helper.make_node("GlobalAveragePool", [name], [f"calibration/mean/{index}"]))
            outputs.append(f"calibration/mean/{index}")
        _readers_first(copy.graph, before)
        self._outputs = [model.graph.output[0].name, *dict.fromkeys(outputs)]
        self._runner = OnnxRunner(exposed(copy, outputs), "calibration", threads, optimise=False)

    def observe(self, batch: np.ndarray[Any, Any], found: Statistics, where: str) -> np.ndarray[Any, Any]:
        """Adds one frame, uint8 BGR (1, h, w, 3), to the statistics; the model's output. `where`: for messages."""
        values = dict(zip(self._outputs, self._runner.run(batch, self._outputs)))
        for index, name in enumerate(self.tensors):
            here = f"tensor {name} on {where}"
            if name not in self._large:
                found.observers[name].update(values[name], here)
                continue
            low, high, total, sample = (values[output] for output in _summary_names(index))
            # a NaN may pass minimum and maximum, it never passes the sum
            damage = 0.0 if np.isfinite(total) else np.nan
            found.observers[name].add(sample, float(low) + damage, float(high), here)
        for index, name in enumerate(self.means_of):
            mean = values[f"calibration/mean/{index}"].astype(np.float64).reshape(-1)
            found.means[name] = found.means[name] + mean if name in found.means else mean
        labels: np.ndarray[Any, Any] = values[self._outputs[0]]
        return labels


def _summary_names(index: int) -> Tuple[str, ...]:
    return tuple(f"calibration/{kind}/{index}" for kind in ("low", "high", "sum", "sample"))


def _summary(graph: Any, name: str, index: int, size: int) -> Tuple[str, ...]:
    """Adds nodes that take minimum, maximum, sum and the sample of `Observer` of a tensor; the names of the four."""
    names = _summary_names(index)
    for operator, output in zip(("ReduceMin", "ReduceMax", "ReduceSum"), names):
        graph.node.append(helper.make_node(operator, [name], [output], keepdims=0))
    given = []
    for stem, value in (("shape", -1), ("start", 0), ("end", TO_THE_END), ("axis", 0), ("step", sample_step(size))):
        given.append(f"calibration/{stem}/{index}")
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), given[-1]))
    flat = f"calibration/flat/{index}"
    graph.node.append(helper.make_node("Reshape", [name, given[0]], [flat]))
    graph.node.append(helper.make_node("Slice", [flat, *given[1:]], [names[3]]))
    return names


def _readers_first(graph: Any, first_added: int) -> None:
    """Moves the nodes from index `first_added` on to directly behind the node whose output they begin from.

    ONNX Runtime then runs them there, and what they read is freed before the network goes on.
    """
    nodes = list(graph.node)
    behind: Dict[str, List[Any]] = {}
    heads: Dict[str, str] = {}  # an added node's output → the network's tensor that it comes from
    for node in nodes[first_added:]:
        head = heads.get(node.input[0], node.input[0])
        heads[node.output[0]] = head
        behind.setdefault(head, []).append(node)
    ordered = [added for value in graph.input for added in behind.get(value.name, [])]
    for node in nodes[:first_added]:
        ordered += [node, *(added for output in node.output for added in behind.get(output, []))]
    del graph.node[:]
    graph.node.extend(ordered)


def _classes(model: Any) -> int:
    """How many classes a model says it has, 0 if it says nothing."""
    text = next((entry.value for entry in model.metadata_props if entry.key == metadata.SPEC), None)
    return ModelSpec.from_json(text, metadata.SPEC).num_classes if text is not None else 0
