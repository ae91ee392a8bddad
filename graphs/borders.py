"""What a deployment-form model takes and gives: frames of their own size, several at once. Needs onnx; no torch."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import onnx

from gradseg.base.errors import GradsegError
from gradseg.graphs import verify
from gradseg.graphs.foreign.reading import uniquely_named
from gradseg.graphs.graph import Graph, is_quantised
from gradseg.graphs.passes.batch import fixed_batch
from gradseg.graphs.passes.frame_size import frame_size
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models import metadata
from gradseg.models.spec import ModelSpec
from gradseg.runtime.preprocess import Preprocessor, resize_labels

RESIZED = (0.9, 0.99)  # share of equal labels below which resizing in the graph is refused, and comes with a warning


def with_borders(model: Any, spec: ModelSpec, batch: int = 1, frame_hw: Optional[Tuple[int, int]] = None) -> Any:
    """The model for `batch` frames of (height, width) `frame_hw` at once, by default one of the spec's size.

    The last step: it works on every precision. Raises GradsegError for a model that was made so already, or a network
    that cannot take several frames at once (the node is named).
    """
    values = {entry.key: entry.value for entry in model.metadata_props}
    there = metadata.borders(values, spec)
    if there != (1, tuple(spec.input_hw)):
        raise GradsegError(
            f"the model takes batches of {there[0]} frames of {there[1][0]}x{there[1][1]} already; give the file that "
            "was made without --frame-size and --batch, or the checkpoint"
        )
    baked = frame_hw is not None and tuple(frame_hw) != tuple(spec.input_hw)
    graph = Graph(model)
    if frame_hw is not None and baked:
        frame_size(graph, frame_hw)
    graph = Graph(graph.to_model())  # sorted
    fixed_batch(graph, batch)
    size = f"{frame_hw[0]}x{frame_hw[1]}" if frame_hw is not None and baked else None
    return finished_like(graph, model, {metadata.FRAME_SIZE: size, metadata.BATCH: str(batch) if batch > 1 else None})


def check_borders(
    plain: Any, baked: Any, spec: ModelSpec, source: str, where: str
) -> Tuple[verify.Agreement, List[str]]:
    """How the labels of a model from `with_borders` agree with those of resizing outside, and lines to print.

    plain: the model before. Frames of `source` are brought to the frame's size; outside they go through the runtime's
    preprocessing, the network and `resize_labels`. Raises GradsegError if the labels of a frame depend on what stands
    beside it in a batch, or if too few are equal.
    """
    values = {entry.key: entry.value for entry in baked.metadata_props}
    batch, frame_hw = metadata.borders(values, spec, where)
    prepare, runner, inside = Preprocessor(spec.input_hw), as_written(plain, where), as_written(baked, where)
    batches = verify.verification_batches(source, frame_hw, batch=batch)
    agreement = verify.Agreement()
    seen: Dict[int, np.ndarray[Any, Any]] = {}
    for first, frames in enumerate(batches):
        labels = inside.first(frames)
        expected = resize_labels(runner.first(prepare(frames[0]))[0], frame_hw)
        agreement.add(labels[0], expected)
        for index, found in enumerate(labels):
            before = seen.setdefault((first + index) % len(batches), found.copy())
            if not np.array_equal(before, found):
                raise GradsegError(f"{where}: --batch {batch}: a frame's labels depend on the frames beside it")
    height, width = frame_hw
    least, good = RESIZED if frame_hw != tuple(spec.input_hw) else (verify.NEEDED, verify.NEEDED)
    if agreement.fraction < least:
        raise GradsegError(
            f"{where}: with {height}x{width} frames in the graph only {agreement} of the labels are those of resizing "
            f"outside; {100 * least:g} % are needed. Nothing was written; please report the network"
        )
    words = f"resizing {height}x{width} frames outside" if frame_hw != tuple(spec.input_hw) else "one frame at a time"
    each = f", each frame's the same anywhere in a batch of {batch}" if batch > 1 else ""
    lines = [f"frames of {height}x{width}: labels equal to those of {words} on {agreement}{each}"]
    if agreement.fraction < good:
        lines.insert(
            0,
            f"warning: {where}: resizing inside changes {100 * (1 - agreement.fraction):.1f} % of the labels, but no "
            "pixel by more than a grey level: usual for a network that is hardly trained, or INT8 on unlike frames; "
            "verify on your own (--data)",
        )
    return agreement, lines


def as_written(model: Any, where: str) -> OnnxRunner:
    """A model in ONNX Runtime, Q/DQ pairs as they are written.

    Its kernels for INT8 on CPUs (1.31) round biases in float16 to the product of two scales taken in float16, which is
    far too coarse.
    """
    return OnnxRunner(model.SerializeToString(), where, integers=not is_quantised(model))


def finished_like(graph: Graph, before: Any, values: Dict[str, Optional[str]]) -> Any:
    """The graph as a checked onnx.ModelProto with the IR version of `before` and `values` in its metadata."""
    model = uniquely_named(graph.to_model())
    model.ir_version = before.ir_version
    metadata.set_metadata(model, values)
    onnx.checker.check_model(model, full_check=True)
    return model
