"""What is quantised in a deployment-form model, and which activations get Q/DQ for it. Needs onnx; no torch.

Targets, see `targets` for their scales:
    cpu   Every quantised operator's output is quantised too, because ONNX Runtime runs an operator in INT8 only between
          two of them.
    trt   A residual sum takes the convolution beside it unquantised, so that TensorRT adds inside the convolution; only
          the other branch is quantised.
    tidl  Every activation between the frame and the label head: a fixed-point device has no other numbers.
    native  What GradSeg's own engine keeps in memory: every activation between the frame and the label head, but a sum
          takes the convolution beside it unquantised, a concatenation takes convolutions and poolings so, and what is
          resized is not rounded between the convolution and its ReLU.
    openvino  As `tidl`: OpenVINO adds inside the convolution where both summands are INT8. But the first convolution
          stays in float, since OpenVINO has no INT8 kernel for three channels.
Left in float: the convolution that makes the logits (its argmax decides on small differences; TI's tools keep such a
layer at 16 bits) and every operator that is not listed here. On the CPU also convolutions whose output is resized,
deconvolutions (ONNX Runtime has no INT8 kernel) and convolutions to 16 channels or fewer, too narrow for ONNX Runtime's
INT8 kernels to be worth the conversions around them. For TensorRT also deconvolutions (its versions disagree on the
axis of their weights' scales) and the first convolution: pixels 0..255 do not fit 7 bits and a sign. Pixels as the
frame has them are integers of 8 bits already: they are never rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Set, Tuple

import numpy as np
import onnx

from gradseg.calibration.qdq.targets import NATIVE, OPENVINO, target_named
from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import group_of, is_plain_convolution, only_reader, weight_of

PASS_THROUGH = ("MaxPool", "Reshape", "Transpose", "Resize")  # no value leaves the input's range: they keep its scale
COMPUTE = ("Conv", "ConvTranspose")
AFTER_LOGITS = ("Reshape", "Transpose", "Squeeze", "Resize", "Softmax", "LogSoftmax", "Sigmoid")
NARROW = 16  # output channels up to which INT8 does not pay on a CPU


@dataclass(frozen=True)
class Plan:
    """What is quantised. nodes: names of operators that run in INT8. tensors: the activations given Q/DQ, each with the
    tensor whose scale it uses (itself, or the one that a pooling or shuffle passes on)."""

    nodes: Tuple[str, ...]
    tensors: Mapping[str, str]

    def observed(self) -> List[str]:
        """The tensors whose ranges are needed, in order."""
        return list(dict.fromkeys(self.tensors.values()))


def plan_for(model: onnx.ModelProto, target: str, keep_float: Tuple[str, ...] = ()) -> Plan:
    """Decides what to quantise in a deployment-form model. `keep_float`: names of nodes to leave alone.

    Whatever is left alone, every tensor uses the scale that it would use without: ranges that were observed once serve.
    """
    target_named(target)
    graph = Graph(model)
    whole = _planned(graph, target, ())
    if not keep_float:
        return whole
    part = _planned(graph, target, keep_float)
    return Plan(part.nodes, {tensor: whole.tensors[tensor] for tensor in part.tensors})


def _planned(graph: Graph, target: str, keep_float: Tuple[str, ...]) -> Plan:
    chosen = [node for node in graph.nodes if node.name not in keep_float and _worth_it(graph, node, target)]
    if target == "cpu":
        chosen = _fed_by_int8(graph, chosen)
    names = {node.name for node in chosen}
    tensors: Dict[str, str] = {}
    if target == NATIVE.name:
        tensors = {tensor: tensor for tensor in _stored(graph, chosen)}
        return Plan(tuple(node.name for node in graph.nodes if node.name in names), tensors)
    exact = pixel_tensors(graph)
    for node in chosen:
        for tensor in _activations(graph, node):
            fused = target == "trt" and node.op_type == "Add" and fused_branch(graph, node) == tensor
            if not fused and not (target in ("tidl", OPENVINO.name) and tensor in exact):
                tensors[tensor] = tensor
        result = result_of(graph, node)
        if target != "trt" and result not in exact and not graph.is_output(result):
            tensors[result] = result
    for node in chosen:
        if node.op_type in PASS_THROUGH and node.input[0] in tensors:
            tensors[node.output[0]] = node.input[0]
    for tensor in list(tensors):  # chains of pass-through operators lead to the first one's input
        while tensors[tensors[tensor]] != tensors[tensor]:
            tensors[tensor] = tensors[tensors[tensor]]
    return Plan(tuple(node.name for node in graph.nodes if node.name in names), tensors)


def _stored(graph: Graph, chosen: List[onnx.NodeProto]) -> List[str]:
    """The tensors that the native engine keeps: what operators read that is not computed on the way."""
    exact, names = centred_pixels(graph), {node.name for node in chosen}
    found: Dict[str, None] = {}
    for node in chosen:
        result = result_of(graph, node)
        if result not in exact and any(reader.name not in names for reader in graph.consumers(result)):
            found[result] = None  # read by the label head, or by what stays in float
        if node.op_type in ("Reshape", "Transpose"):
            continue
        fused = fused_branch(graph, node, shuffled=True) if node.op_type == "Add" else None
        for tensor in _activations(graph, node):
            producer = graph.producer(tensor)
            pooled = producer is not None and producer.op_type == "MaxPool"
            inside = node.op_type in ("Concat", "Resize") and _computed_for(graph, node, tensor)
            if tensor != fused and tensor not in exact and not pooled and not inside:
                found[tensor] = None
    order = {name: index for index, node in enumerate(graph.nodes) for name in node.output}
    return sorted(found, key=lambda name: order.get(name, -1))


def _computed_for(graph: Graph, node: onnx.NodeProto, tensor: str) -> bool:
    """Whether a tensor is a convolution's result that only `node` reads; for a Concat, perhaps through a ReLU."""
    producer = graph.producer(tensor)
    while producer is not None and len(graph.consumers(producer.output[0])) == 1:
        if producer.op_type in COMPUTE:
            return True
        if node.op_type != "Concat" or not is_relu(graph, producer):
            return False
        producer = graph.producer(producer.input[0])
    return False


def centred_pixels(graph: Graph) -> Set[str]:
    """`pixel_tensors`, and those that a constant mean is subtracted from."""
    found = pixel_tensors(graph)
    for node in graph.nodes:
        centring = node.op_type == "Sub" and node.input[1] in graph.weights
        if node.input[0] in found and (centring or node.op_type == "MaxPool"):
            found.update(node.output)
    return found


def _worth_it(graph: Graph, node: onnx.NodeProto, target: str) -> bool:
    if node.op_type in COMPUTE:
        return is_plain_convolution(graph, node) and _convolution_worth_it(graph, node, target)
    if any(name in graph.weights for name in node.input[:1]):
        return False
    if node.op_type == "Add":
        return all(name not in graph.weights for name in node.input)
    if node.op_type in ("Concat", "MaxPool"):
        if len(node.output) > 1 or any(name in graph.weights for name in node.input):
            return False
        return not (target == "trt" and _reads_pixels(graph, node))
    if node.op_type == "Resize":
        wanted = target in ("tidl", NATIVE.name, OPENVINO.name)
        return wanted and not _makes_logits(graph, node.output[0]) and _stays_within(node)
    return node.op_type in ("Reshape", "Transpose") and target != "trt" and _inside_shuffle(graph, node)


def _convolution_worth_it(graph: Graph, node: onnx.NodeProto, target: str) -> bool:
    if _makes_logits(graph, node.output[0]):
        return False
    if target == "tidl":
        return True
    weight, group = weight_of(graph, node), group_of(node)
    if target == "cpu":
        resized = any(reader.op_type == "Resize" for reader in graph.consumers(node.output[0]))
        return node.op_type == "Conv" and not resized and weight.shape[0] > NARROW
    if target == NATIVE.name:
        return bool(node.op_type == "Conv" or group == 1)
    if target == OPENVINO.name:
        return bool(weight.shape[1] * group > 3 if node.op_type == "Conv" else group == 1)
    if node.op_type == "ConvTranspose":
        return False  # TensorRT 8 takes their scales along the input channels, or fails: its issues 2380, 1519, 1293
    return bool(weight.shape[1] * group > 3)


def _stays_within(node: onnx.NodeProto) -> bool:
    """Whether a Resize only repeats or averages values; cubic interpolation overshoots."""
    return attribute(node, "mode", b"nearest") in (b"nearest", b"linear")


def pixel_tensors(graph: Graph) -> Set[str]:
    """The float tensors that hold the frame's own 8-bit integers: it cast, transposed, pooled."""
    found: Set[str] = set()
    frames = {v.name for v in graph.model.graph.input if v.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    for node in graph.nodes:
        if node.op_type in ("Cast", "Transpose", "MaxPool") and (node.input[0] in frames or node.input[0] in found):
            found.update(node.output)
    return found


def _fed_by_int8(graph: Graph, chosen: List[onnx.NodeProto]) -> List[onnx.NodeProto]:
    """Drops sums, concats, poolings and shuffles none of whose inputs comes from an operator in INT8."""
    kept: List[onnx.NodeProto] = []
    written: Set[str] = set()
    for node in graph.nodes:  # in topological order
        if is_relu(graph, node) and node.input[0] in written:
            written.add(node.output[0])
        fed = node.op_type in COMPUTE or any(name in written for name in node.input)
        if fed and any(node is other for other in chosen):
            kept.append(node)
            written.update(node.output)
    return kept


def _makes_logits(graph: Graph, tensor: str) -> bool:
    """Whether nothing but reshaping lies between a tensor and the argmax (or the graph's output)."""
    if graph.is_output(tensor):
        return True
    return any(
        reader.op_type in ("ArgMax", "Gemm")
        or (reader.op_type in AFTER_LOGITS and _makes_logits(graph, reader.output[0]))
        for reader in graph.consumers(tensor)
    )


def _reads_pixels(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether an operator works on the frame's own three channels."""
    producer = graph.producer(node.input[0])
    while producer is not None and producer.op_type in ("Sub", "Transpose", "Cast", "MaxPool"):
        producer = graph.producer(producer.input[0])
    return producer is None


def _inside_shuffle(graph: Graph, node: onnx.NodeProto) -> bool:
    """A Reshape or Transpose that shuffles activations, not one on the way to the argmax or at the frame."""
    producer: Optional[onnx.NodeProto] = node
    while producer is not None and producer.op_type in ("Reshape", "Transpose"):
        producer = graph.producer(producer.input[0])
    return (
        producer is not None
        and producer.op_type in ("Conv", "Add", "Relu")
        and not _makes_logits(graph, node.output[0])
    )


def _activations(graph: Graph, node: onnx.NodeProto) -> List[str]:
    if node.op_type in ("Add", "Concat"):
        return list(node.input)
    return [node.input[0]]


def result_of(graph: Graph, node: onnx.NodeProto) -> str:
    """A node's output, after the ReLU that belongs to it if there is one."""
    reader = only_reader(graph, node.output[0])
    return str(reader.output[0] if reader is not None and is_relu(graph, reader) else node.output[0])


def is_relu(graph: Graph, node: onnx.NodeProto) -> bool:
    """Relu, or a Clip from 0 (ReLU6)."""
    if node.op_type == "Clip" and len(node.input) > 1:
        low = graph.weights.get(node.input[1])
        return low is not None and bool(np.all(low == 0))
    return bool(node.op_type == "Relu")


def fused_branch(graph: Graph, add: onnx.NodeProto, shuffled: bool = False) -> Optional[str]:
    """The summand that comes straight from a convolution, or `shuffled`, and that nothing else reads."""
    if add.input[0] == add.input[1]:
        return None
    for name in reversed(add.input):
        tensor = name
        producer = graph.producer(tensor)
        while producer is not None and len(graph.consumers(tensor)) == 1:
            if producer.op_type in COMPUTE:
                return str(name)
            if not shuffled or producer.op_type not in ("Reshape", "Transpose"):
                break
            tensor = producer.input[0]
            producer = graph.producer(tensor)
    return None
