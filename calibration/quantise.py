"""INT8 as explicit Q/DQ: which tensors are quantised, and the writer. Needs onnx; no torch.

Targets:
    cpu  ONNX Runtime, OpenVINO: activations uint8 with a zero point, weights int8 per output channel, within ±63 for
         CPUs whose kernels would saturate (`reduce_range`). Every quantised operator's output is quantised too, because
         ONNX Runtime runs an operator in INT8 only between two of them.
    trt  TensorRT: activations int8, symmetric; weights int8 per output channel. A residual sum takes the convolution
         beside it unquantised, so that TensorRT adds inside the convolution; only the other branch is quantised.
Biases stay float for both: TensorRT refuses a DequantizeLinear on a bias and OpenVINO crashes on one.
Left in float: the convolution that makes the logits (its argmax decides on small differences). On the CPU also
convolutions whose output is resized, deconvolutions (ONNX Runtime has no INT8 kernel) and convolutions to 16 channels
or fewer, too narrow for ONNX Runtime's INT8 kernels to be worth the conversions around them. For TensorRT also the
first convolution: pixels 0..255 do not fit 7 bits and a sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple

import numpy as np
import onnx

from gradseg.calibration.graph import Graph, attribute
from gradseg.calibration.observers import Range
from gradseg.models.errors import GradsegError

TARGETS = ("cpu", "trt")
PASS_THROUGH = ("MaxPool", "Reshape", "Transpose")  # values in = values out: they keep the scale of their input
COMPUTE = ("Conv", "ConvTranspose")
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
    """Decides what to quantise in a deployment-form model. `keep_float`: names of nodes to leave alone."""
    if target not in TARGETS:
        raise GradsegError(f"INT8 target {target!r}; one of {', '.join(TARGETS)}")
    graph = Graph(model)
    chosen = [node for node in graph.nodes if node.name not in keep_float and _worth_it(graph, node, target)]
    if target == "cpu":
        chosen = _fed_by_int8(graph, chosen)
    names = {node.name for node in chosen}
    tensors: Dict[str, str] = {}
    for node in chosen:
        for tensor in _activations(graph, node):
            if not (target == "trt" and node.op_type == "Add" and _fused_branch(graph, node) == tensor):
                tensors[tensor] = tensor
        if target == "cpu":
            tensors[_result(graph, node)] = _result(graph, node)
    for node in chosen:
        if node.op_type in PASS_THROUGH and node.input[0] in tensors:
            tensors[node.output[0]] = node.input[0]
    for tensor in list(tensors):  # chains of pass-through operators lead to the first one's input
        while tensors[tensors[tensor]] != tensors[tensor]:
            tensors[tensor] = tensors[tensors[tensor]]
    return Plan(tuple(node.name for node in graph.nodes if node.name in names), tensors)


def _worth_it(graph: Graph, node: onnx.NodeProto, target: str) -> bool:
    if node.op_type in COMPUTE:
        if node.input[1] not in graph.weights or _makes_logits(graph, node.output[0]):
            return False
        if target == "cpu":
            resized = any(reader.op_type == "Resize" for reader in graph.consumers(node.output[0]))
            return node.op_type == "Conv" and not resized and graph.weights[node.input[1]].shape[0] > NARROW
        inputs = graph.weights[node.input[1]].shape[1] * attribute(node, "group", 1)
        return node.op_type == "ConvTranspose" or bool(inputs > 3)
    if node.op_type == "Add":
        return all(name not in graph.weights for name in node.input)
    if node.op_type in ("Concat", "MaxPool"):
        return not (target == "trt" and _reads_pixels(graph, node))
    return node.op_type in ("Reshape", "Transpose") and target == "cpu" and _inside_shuffle(graph, node)


def _fed_by_int8(graph: Graph, chosen: List[onnx.NodeProto]) -> List[onnx.NodeProto]:
    """Drops sums, concats, poolings and shuffles none of whose inputs comes from an operator in INT8."""
    kept: List[onnx.NodeProto] = []
    written: Set[str] = set()
    for node in graph.nodes:  # in topological order
        if node.op_type == "Relu" and node.input[0] in written:
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
    readers = graph.consumers(tensor)
    return any(
        reader.op_type in ("ArgMax", "Gemm") or (reader.op_type == "Reshape" and _makes_logits(graph, reader.output[0]))
        for reader in readers
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


def _result(graph: Graph, node: onnx.NodeProto) -> str:
    """A node's output, after the ReLU that belongs to it if there is one."""
    readers = graph.consumers(node.output[0])
    if len(readers) == 1 and readers[0].op_type == "Relu" and not graph.is_output(node.output[0]):
        return str(readers[0].output[0])
    return str(node.output[0])


def _fused_branch(graph: Graph, add: onnx.NodeProto) -> Optional[str]:
    """The summand that comes straight from a convolution and that nothing else reads."""
    for name in reversed(add.input):
        producer = graph.producer(name)
        if producer is not None and producer.op_type in COMPUTE and len(graph.consumers(name)) == 1:
            return str(name)
    return None


def quantised(
    model: onnx.ModelProto,
    plan: Plan,
    ranges: Mapping[str, Range],
    target: str,
    power_of_two: bool = False,
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """The model with QuantizeLinear / DequantizeLinear pairs as planned. Metadata is kept, precision is not set.

    ranges: for every tensor of `plan.observed()`. power_of_two: activation scales are rounded up to powers of two,
    as fixed-point accelerators want them. reduce_range: weights are -63..63 in place of -127..127.
    """
    graph = Graph(model)
    parameters = {name: _parameters(ranges[name], target, power_of_two) for name in plan.observed()}
    shared: Dict[str, Tuple[str, str]] = {}
    for tensor, source in plan.tensors.items():
        if source not in shared:
            scale, zero = parameters[source]
            shared[source] = (graph.constant(f"{source}_scale", scale), graph.constant(f"{source}_zero_point", zero))
        _quantise_activation(graph, tensor, shared[source])
    chosen: Set[str] = set(plan.nodes)
    for node in [node for node in graph.nodes if node.name in chosen and node.op_type in COMPUTE]:
        _quantise_weights(graph, node, 63 if reduce_range else 127)
    return graph.to_model()


def _parameters(limits: Range, target: str, power_of_two: bool) -> Tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(scale float32, zero point) of an activation."""
    low, high = min(limits.low, 0.0), max(limits.high, 0.0)
    step = max(-low, high) / 127.0 if target == "trt" else (high - low) / 255.0
    step = max(step, 1e-12)
    if power_of_two:
        step = float(2.0 ** np.ceil(np.log2(step) - 1e-9))
    if target == "trt":
        return np.array(step, np.float32), np.zeros((), np.int8)
    return np.array(step, np.float32), np.array(np.clip(np.rint(-low / step), 0, 255), np.uint8)


def _quantise_activation(graph: Graph, tensor: str, scale_zero: Tuple[str, str]) -> None:
    """Puts a Q/DQ pair behind a tensor; all its readers read the pair's result."""
    readers = graph.consumers(tensor)
    packed = graph.add("QuantizeLinear", [tensor, *scale_zero], graph.fresh(f"{tensor}_quantised"))
    unpacked = graph.add("DequantizeLinear", [packed, *scale_zero], graph.fresh(f"{tensor}_dequantised"))
    for node in readers:
        for index, name in enumerate(node.input):
            if name == tensor:
                node.input[index] = unpacked


def _quantise_weights(graph: Graph, node: onnx.NodeProto, most: int) -> None:
    """int8 weights within ±most, one symmetric scale per output channel: axis 0 of Conv, axis 1 of ConvTranspose."""
    stem = node.input[1]
    weight = graph.weights[stem].astype(np.float64)
    axis = 0 if node.op_type == "Conv" else 1
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
        raise GradsegError(f"{node.name}: a grouped deconvolution has no per-channel axis; leave it in float")
    others = tuple(index for index in range(weight.ndim) if index != axis)
    scale = np.abs(weight).max(axis=others) / most
    scale = np.where(scale < 1e-12, 1.0, scale).astype(np.float32)
    view = [-1 if index == axis else 1 for index in range(weight.ndim)]
    packed = np.clip(np.rint(weight / scale.reshape(view)), -most, most).astype(np.int8)
    inputs = [
        graph.constant(f"{stem}_int8", packed),
        graph.constant(f"{stem}_scale", scale),
        graph.constant(f"{stem}_zero_point", np.zeros(len(scale), np.int8)),
    ]
    node.input[1] = graph.add("DequantizeLinear", inputs, graph.fresh(f"{stem}_dequantised"), axis=axis)


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a model holds Q/DQ pairs already."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def quantisation_target(model: onnx.ModelProto) -> str:
    """Whom a quantised model is for, by its activations: int8 with zero point 0 everywhere is TensorRT's form."""
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            zero = graph.weights.get(node.input[2]) if len(node.input) > 2 else None
            if zero is None or zero.dtype != np.int8 or np.any(zero):
                return "cpu"
    return "trt"


def count_quantised(model: onnx.ModelProto) -> Tuple[int, int]:
    """(convolutions with INT8 weights, convolutions in all)."""
    graph = Graph(model)
    convs = [node for node in graph.nodes if node.op_type in COMPUTE]
    packed = [node for node in convs if graph.producer(node.input[1]) is not None]
    return len(packed), len(convs)
