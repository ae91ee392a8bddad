"""A segmentation ONNX of other origin → the deployment form, verified against the original in ONNX Runtime.

Needs onnx, onnxsim and onnxruntime; no torch. The pixels are those of `foreign.spec`, the end that of `foreign.head`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, List, Optional, Set, Tuple

import numpy as np
import onnx

from gradseg.base.errors import GradsegError
from gradseg.graphs import verify
from gradseg.graphs.deployment import finished, simplified
from gradseg.graphs.foreign.head import Head, expected_labels, head_of, labels_from_head, scores_behind
from gradseg.graphs.foreign.reading import Trimmed, first_line, trimmed, uniquely_named, upgraded
from gradseg.graphs.foreign.spec import Given, spec_from
from gradseg.graphs.frames import default_source
from gradseg.graphs.graph import Graph, attribute, shapes_of
from gradseg.graphs.passes.fold_batchnorm import fold_batchnorm
from gradseg.graphs.passes.fold_input import fold_input
from gradseg.graphs.passes.relu_before_concat import relu_before_concat
from gradseg.graphs.sessions import OnnxRunner, exposed, scores_of
from gradseg.models import metadata
from gradseg.models.spec import ModelSpec
from gradseg.runtime.preprocess import normalised_chw


class Original:
    """The network as it came, on uint8 BGR batches (1, h, w, 3). `values`: its output, and the scores behind labels."""

    def __init__(self, net: Trimmed, where: str) -> None:
        self.net, self.where = net, where
        behind = scores_behind(net.model, net.output)
        self.names = [net.output] + ([behind[0]] if behind is not None else [])
        self._runner = OnnxRunner(exposed(net.model, self.names), where)

    def values(self, batch: np.ndarray[Any, Any], spec: ModelSpec) -> List[Optional[np.ndarray[Any, Any]]]:
        """[output, scores or None]; GradsegError if it does not run or gives NaN or infinity."""
        image = normalised_chw(batch, spec)
        if self.net.channels_last:
            image = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
        try:
            found = self._runner.run(image, self.names)
        except Exception as error:  # ONNX Runtime's exceptions have no common public base class
            if isinstance(error, MemoryError):
                raise
            height, width = self.net.size_hw
            raise GradsegError(f"{self.where}: does not run at {height}x{width} ({first_line(error)})") from error
        if any(np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all() for value in found):
            raise GradsegError(f"{self.where}: gives NaN or infinity on real frames; are mean, std and scale right?")
        return [found[0], found[1] if len(found) > 1 else None]


def deployment_from_foreign(
    model: onnx.ModelProto, given: Given, where: str, data: Optional[str] = None
) -> Tuple[onnx.ModelProto, ModelSpec, List[str]]:
    """The deployment form, its spec, and lines for the user: what was assumed, and how the labels compare.

    Args:
        model: float32 image in (1, 3, H, W) or (1, H, W, 3), normalised as `given` says; logits or labels out.
        data: frames to verify on, as `open_frames` takes them; by default scenes.

    Raises GradsegError for a network that cannot be converted, or whose labels differ after it.
    """
    net = trimmed(model, given, where)
    original = Original(net, where)
    batches = verify.verification_batches(data or default_source(net.size_hw), net.size_hw)
    pixels = dataclasses.replace(given, classes=None, palette=None, count=2)  # the classes are not known yet
    value, scores = original.values(batches[0], spec_from(pixels, 2, net.size_hw, where)[0])
    assert value is not None
    head = head_of(net, value, scores, given.threshold, where)
    spec, note = spec_from(given, head.classes, net.size_hw, where, head.hw)
    lines = note.splitlines()
    if head.kind == "binary":
        lines.append(f"note: one output channel: {spec.classes[1]!r} where it is above {head.threshold:g}")
    elif head.hw != net.size_hw:
        how = "repeated" if head.kind == "labels" else "enlarged bilinearly"
        lines.append(f"note: its {head.kind} of {head.hw[0]}x{head.hw[1]} are {how} to the input's size")
    made = _converted(net, head, spec, where)
    agreement, warnings = _verified(made, original, head, spec, batches, where)
    lines += [*warnings, f"{where}: converted; labels equal to the original ONNX's on {agreement}"]
    return made, spec, lines


def _converted(net: Trimmed, head: Head, spec: ModelSpec, where: str) -> onnx.ModelProto:
    model = upgraded(net.model, where)
    graph = Graph(model)
    if net.channels_last:
        _channels_first(graph, net)
    fold_batchnorm(graph, _unfoldable(model))
    relu_before_concat(graph)
    fold_input(graph, spec)
    graph = labels_from_head(graph, head, net.size_hw)
    try:
        return finished(uniquely_named(simplified(graph.to_model())), spec, metadata.DEPLOYMENT)
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GradsegError(
            f"{where}: cannot be simplified ({first_line(error)}); please report its operators"
        ) from error


def _channels_first(graph: Graph, net: Trimmed) -> None:
    """Gives a network of NHWC images an NCHW input; the transposition that exporters put first cancels out."""
    image = graph.model.graph.input[0]
    name, height, width = graph.fresh(f"{net.image}_nchw"), *net.size_hw
    readers = graph.consumers(net.image)
    for node in [node for node in readers if node.op_type == "Transpose" and attribute(node, "perm") == [0, 3, 1, 2]]:
        graph.replace_uses(node.output[0], name)
        graph.remove(node)
    if graph.consumers(net.image):
        graph.add("Transpose", [name], net.image, perm=[0, 2, 3, 1])
    image.CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, height, width]))


def _unfoldable(model: onnx.ModelProto) -> Set[str]:
    """Outputs of the BatchNormalizations that stay: not on NCHW, or with parameters that are computed."""
    shapes, graph = shapes_of(model), Graph(model)
    return {
        node.output[0]
        for node in graph.nodes
        if node.op_type == "BatchNormalization"
        and (len(shapes.get(node.input[0], ())) != 4 or not all(name in graph.weights for name in node.input[1:5]))
    }


def _verified(
    made: onnx.ModelProto,
    original: Original,
    head: Head,
    spec: ModelSpec,
    batches: List[np.ndarray[Any, Any]],
    where: str,
) -> Tuple[verify.Agreement, List[str]]:
    """Compares the labels on frames; gives the agreement and warnings."""
    runner = OnnxRunner(made.SerializeToString(), where)
    agreement = verify.Agreement()
    for batch in batches:
        value, scores = original.values(batch, spec)
        assert value is not None
        labels, counted = expected_labels(head, value, scores, spec.input_hw)
        if labels.min() < 0 or labels.max() >= spec.num_classes:
            raise GradsegError(
                f"{where}: gives labels {labels.min()} to {labels.max()}, but {spec.num_classes} classes are "
                "described; correct --classes or --spec"
            )
        agreement.add(runner.first(batch), labels.astype(np.uint8), counted)
    if agreement.fraction < verify.NEEDED:
        raise GradsegError(
            f"{where}: after conversion its labels agree with the original's on only {agreement}; "
            f"{100 * verify.NEEDED:.2f} % are needed. Nothing was written; please report its operators"
        )
    return agreement, verify.check_alive(runner.first, batches, where, lambda batch: scores_of(made, batch, where))
