"""How a network of other origin ends, and the pass that makes it end in uint8 labels (1, H, W). Needs onnx.

Logits (1, C, h, w) or (1, h, w, C) of the input's size: the label is the largest, the first one on ties. A Softmax,
LogSoftmax or Sigmoid at the very end does not change which is largest and is dropped (where float32 saturates, the
network itself has ties there, the pass has not).
Logits smaller than the input: enlarged bilinearly with half-pixel centres (align_corners=False), as the training
frameworks do before they take the argmax. What stands at the end stays, since averaging probabilities is not averaging
logits.
One channel: class 1 where it is above a threshold, else class 0; by default 0.5 if a Sigmoid made it, 0 if not.
Labels of an integer type, or whatever an ArgMax made: taken as they are; smaller ones by a whole factor are repeated.
Where an ArgMax over the classes makes them, it is replaced by ours, so that its convolution is seen as the label head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

import cv2
import numpy as np
import onnx
from onnx import TensorProto

from gradseg.base.errors import GradsegError
from gradseg.graphs.foreign.reading import Trimmed, writers
from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import constant_shape, resized
from gradseg.graphs.passes.label_head import OUTPUT, label_head
from gradseg.graphs.verify import TIE, labels_from_logits

SAME_VALUES = ("Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity")  # between an ArgMax and the output
AVERAGING = (*SAME_VALUES, "Resize", "Upsample", "Transpose", "Slice")  # what may follow a Sigmoid
SKEW = 1.25  # how far height and width may be scaled differently, for sides that do not divide


@dataclass(frozen=True)
class Head:
    """kind: logits, binary (one channel) or labels. tensor: what they are in. axis: of the classes in it, 1 or 3.
    classes: None where labels do not tell. hw: their height and width. threshold: for binary."""

    kind: str
    tensor: str
    hw: Tuple[int, int]
    classes: Optional[int] = None
    axis: int = 1
    threshold: float = 0.0


def scores_behind(model: onnx.ModelProto, output: str) -> Optional[Tuple[str, int]]:
    """(tensor, axis) of the ArgMax that makes the labels `output`; None if none does, or one that takes the last."""
    made_by, tensor = writers(model), output
    while tensor in made_by and made_by[tensor].op_type in SAME_VALUES:
        tensor = made_by[tensor].input[0]
    node = made_by.get(tensor)
    if node is None or node.op_type != "ArgMax" or attribute(node, "select_last_index", 0):
        return None
    return str(node.input[0]), int(attribute(node, "axis", 0))


def head_of(
    net: Trimmed,
    value: np.ndarray[Any, Any],
    scores: Optional[np.ndarray[Any, Any]],
    threshold: Optional[float],
    where: str,
) -> Head:
    """What an output is, from its values on one frame. scores: the values that `scores_behind` names, if it does."""
    behind = scores_behind(net.model, net.output)
    shape = f"output {net.output} ({value.dtype} {list(value.shape)})"
    plane = [side for side in value.shape if side != 1] or [1]
    if behind is not None or not np.issubdtype(value.dtype, np.floating):
        if len(plane) != 2 or not _whole_factor(plane, net.size_hw):
            raise GradsegError(
                f"{where}: {shape}: expected labels (1, {net.size_hw[0]}, {net.size_hw[1]}), or smaller ones by a "
                "whole factor; name another tensor with --output"
            )
        if behind is not None and scores is not None and scores.ndim == 4 and tuple(plane) == net.size_hw:
            axis = behind[1] % 4
            if axis in (1, 3) and scores.shape[0] == 1 and scores.shape[axis] > 1:
                return Head("logits", behind[0], net.size_hw, int(scores.shape[axis]), axis)
        classes = None if scores is None or behind is None else int(scores.shape[behind[1]])
        return Head("labels", net.output, (plane[0], plane[1]), classes)
    for axis in (3, 1) if net.channels_last else (1, 3):
        hw = tuple(side for index, side in enumerate(value.shape) if index not in (0, axis))
        if value.ndim == 4 and value.shape[0] == 1 and value.shape[axis] > 1 and _fits(hw, net.size_hw):
            return Head("logits", net.output, (hw[0], hw[1]), int(value.shape[axis]), axis)
    if len(plane) == 2 and _fits(plane, net.size_hw):
        default = 0.5 if _from_sigmoid(net.model, net.output) else 0.0
        return Head("binary", net.output, (plane[0], plane[1]), 2, 1, default if threshold is None else threshold)
    raise GradsegError(
        f"{where}: {shape} is neither logits (1, C, h, w) nor labels for an input of {net.size_hw[0]}x"
        f"{net.size_hw[1]}; name another tensor with --output"
    )


def _fits(hw: Sequence[int], size_hw: Tuple[int, int]) -> bool:
    tall, wide = size_hw[0] / hw[0], size_hw[1] / hw[1]
    return min(tall, wide) >= 1 and max(tall, wide) <= SKEW * min(tall, wide)


def _whole_factor(hw: Sequence[int], size_hw: Tuple[int, int]) -> bool:
    factor = size_hw[0] // hw[0]
    return factor >= 1 and (hw[0] * factor, hw[1] * factor) == size_hw


def _from_sigmoid(model: onnx.ModelProto, tensor: str) -> bool:
    made_by = writers(model)
    while tensor in made_by and made_by[tensor].op_type in AVERAGING:
        tensor = made_by[tensor].input[0]
    return tensor in made_by and made_by[tensor].op_type == "Sigmoid"


def expected_labels(
    head: Head, value: np.ndarray[Any, Any], scores: Optional[np.ndarray[Any, Any]], size_hw: Tuple[int, int]
) -> Tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What the output says, worked out in NumPy and OpenCV: labels (1, H, W), and which are no near-ties.

    value: the network's own output. scores: what is behind an ArgMax in it, if known.
    """
    if scores is not None or not np.issubdtype(value.dtype, np.floating):  # labels come out
        factor = size_hw[0] // head.hw[0]
        labels = value.reshape(head.hw).astype(np.int64).repeat(factor, 0).repeat(factor, 1)[None]
        if head.kind == "logits" and scores is not None:
            return labels, labels_from_logits(np.moveaxis(scores, head.axis, 1))[1]
        return labels, np.ones(labels.shape, np.bool_)
    if head.kind == "binary":
        plane = _enlarged(value.reshape(1, 1, *head.hw), size_hw)[:, 0] - head.threshold
        return (plane > 0).astype(np.uint8), np.abs(plane) >= TIE * np.abs(plane).max()
    return labels_from_logits(_enlarged(np.moveaxis(value, head.axis, 1), size_hw))


def _enlarged(logits: np.ndarray[Any, Any], size_hw: Tuple[int, int]) -> np.ndarray[Any, Any]:
    if logits.shape[2:] == size_hw:
        return logits
    height, width = size_hw
    planes = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in logits[0]]
    return np.stack(planes)[None]


def labels_from_head(graph: Graph, head: Head, size_hw: Tuple[int, int]) -> Graph:
    """Applies the pass; returns the graph whose output is `labels`, uint8 (1, H, W)."""
    if head.kind == "labels":
        _taken_labels(graph, head, size_hw)
        return Graph(graph.to_model())
    assert head.classes is not None
    tensor, threshold = head.tensor, head.threshold
    if head.hw == size_hw:
        plain = _without_softmax(graph, tensor, head.axis)
        if head.kind == "logits":
            tensor = plain
        elif plain != tensor and threshold == 0.5:  # a Sigmoid is above 0.5 where its input is above 0
            tensor, threshold = plain, 0.0
    if head.kind == "binary":
        tensor = _two_channels(graph, tensor, head, threshold)
    elif head.axis == 3:
        tensor = graph.add("Transpose", [tensor], perm=[0, 3, 1, 2])
    if head.hw != size_hw:
        tensor = resized(graph, tensor, graph.fresh("logits_enlarged"), 1, head.classes, *size_hw)
    graph.model.graph.output[0].name = tensor
    graph = Graph(graph.to_model())  # without what was cut off
    label_head(graph, (1, head.classes, *size_hw))
    return graph


def _without_softmax(graph: Graph, tensor: str, axis: int) -> str:
    """The tensor before a final Softmax, LogSoftmax or Sigmoid over `axis`, in the same layout; else `tensor`."""
    node = graph.producer(tensor)
    if node is None:
        return tensor
    if node.op_type in ("Identity", "Dropout", "Sigmoid") or (
        node.op_type in ("Softmax", "LogSoftmax") and attribute(node, "axis", -1) in (axis, axis - 4)
    ):
        return _without_softmax(graph, node.input[0], axis)
    if node.op_type == "Transpose" and len(attribute(node, "perm", [])) == 4:
        perm: List[int] = list(attribute(node, "perm"))
        inner = _without_softmax(graph, node.input[0], perm[axis])
        return tensor if inner == node.input[0] else graph.add("Transpose", [inner], perm=perm)
    if node.op_type == "Reshape":  # how a Softmax of opset 12 over the second axis becomes one of opset 13
        softmax = graph.producer(node.input[0])
        flat = graph.producer(softmax.input[0]) if softmax is not None and "Softmax" in softmax.op_type else None
        if flat is not None and flat.op_type == "Flatten" and attribute(flat, "axis", 1) <= axis:
            return str(flat.input[0])
    return tensor


def _two_channels(graph: Graph, tensor: str, head: Head, threshold: float) -> str:
    """Logits (1, 2, h, w) of a one-channel tensor: the threshold, and the channel. Exact: products with 0 and 1.

    A convolution that makes the channel, and is read by nobody else, is given the second channel itself.
    """
    conv = graph.producer(tensor)
    alone = len(graph.consumers(tensor)) == 0 or tensor != head.tensor
    if conv is not None and conv.op_type == "Conv" and conv.input[1] in graph.weights and alone:
        weight = graph.weights[conv.input[1]]
        bias = graph.weights.get(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else np.zeros(1, np.float32)
        if weight.shape[0] == 1 and weight.ndim == 4 and bias is not None:
            both = np.concatenate([np.zeros_like(weight), weight])
            inputs = [conv.input[0], graph.constant("two_channels", both)]
            inputs.append(graph.constant("two_biases", np.asarray([threshold, bias[0]], np.float32)))
            kept = {found.name: attribute(conv, found.name) for found in conv.attribute}
            return graph.add("Conv", inputs, graph.fresh("two_logits"), **kept)
    shape = constant_shape(graph, "channel_shape", 1, 1, *head.hw)
    inputs = [graph.add("Reshape", [tensor, shape], graph.fresh("channel"))]
    inputs.append(graph.constant("channel_weight", np.asarray([0, 1], np.float32).reshape(2, 1, 1, 1)))
    inputs.append(graph.constant("channel_bias", np.asarray([threshold, 0], np.float32)))
    return graph.add("Conv", inputs, graph.fresh("two_logits"), kernel_shape=[1, 1])


def _taken_labels(graph: Graph, head: Head, size_hw: Tuple[int, int]) -> None:
    """Labels of any type and of (h, w) with ones around → uint8 (1, H, W), the last node a Cast."""
    labels = graph.add("Cast", [head.tensor], graph.fresh("labels_int32"), to=TensorProto.INT32)
    labels = graph.add("Cast", [labels], graph.fresh("labels_float"), to=TensorProto.FLOAT)  # TensorRT: see label_head
    if head.hw != size_hw:
        labels = graph.add("Reshape", [labels, constant_shape(graph, "small", 1, 1, *head.hw)])
        factor = size_hw[0] // head.hw[0]
        scales = graph.constant("label_factor", np.asarray([1, 1, factor, factor], np.float32))
        places = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        labels = graph.add("Resize", [labels, "", scales], graph.fresh("labels_repeated"), mode="nearest", **places)
    labels = graph.add("Reshape", [labels, constant_shape(graph, "labels_shape", 1, *size_hw)])
    graph.add("Cast", [labels], OUTPUT, to=TensorProto.UINT8)
    declared = onnx.helper.make_tensor_value_info(OUTPUT, TensorProto.UINT8, [1, *size_hw])
    graph.model.graph.output[0].CopyFrom(declared)
