"""What the lowering to the native engine reads from a Q/DQ model. Needs onnx; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Tuple

import numpy as np
import onnx

from gradseg.base.errors import GradsegError
from gradseg.commands import command
from gradseg.export.native.ops import Convolution, Stored, deconvolution_parts
from gradseg.graphs.graph import Graph, attribute, shapes_of
from gradseg.graphs.passes.fold_batchnorm import shuffle_before
from gradseg.graphs.passes.fold_input import dense_weight
from gradseg.runtime.native.program import NativeTensor

SHUFFLE = ("Reshape", "Transpose")


class NotLowered(GradsegError):  # noqa: N818 it is a state of the network, not a fault
    """The native engine has no operator for something in a network."""

    def __init__(self, node: Any, why: str = "") -> None:
        what = "this network" if node is None else f"operator {node.op_type} ({node.name or node.output[0]})"
        super().__init__(
            f"the native engine cannot run {what}{': ' + why if why else ''}; build for ONNX Runtime instead: "
            f"{command('export/to_ort.py', 'MODEL')}"
        )


@dataclass
class Weights:
    """Of a convolution as ONNX has them: int8, real = weight * steps[output channel]. bias: (output channels,)."""

    weight: Any
    steps: Any
    bias: Any
    group: int


class Reader:
    """A model with its constants, shapes, and the node that writes each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = Graph(model)
        self.shapes: Dict[str, List[int]] = shapes_of(model)
        self.writer: Dict[str, Any] = {name: node for node in self.graph.nodes for name in node.output}

    def constant(self, node: Any, index: int) -> Any:
        """A node's constant input as an array."""
        name = node.input[index] if len(node.input) > index else ""
        if name not in self.graph.weights:
            raise NotLowered(node, f"its input {index} is not constant")
        return self.graph.weights[name]

    def bias(self, node: Any, outputs: int) -> Any:
        """A convolution's, deconvolution's or Gemm's bias (outputs,), zeros where it has none."""
        return self.constant(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros(outputs)

    def map_shape(self, name: str) -> Tuple[int, int, int]:
        """(channels, height, width) of a float tensor."""
        shape = self.shapes.get(name, [])
        if len(shape) != 4 or shape[0] != 1 or min(shape) < 1:
            raise NotLowered(self.writer.get(name), f"gives shape {shape}, not (1, channels, height, width)")
        return shape[1], shape[2], shape[3]

    def scale_zero(self, node: Any) -> Tuple[float, int]:
        """Of a QuantizeLinear or DequantizeLinear of an activation."""
        scale, zero = self.constant(node, 1), self.constant(node, 2)
        if scale.size != 1 or zero.dtype != np.uint8:
            raise NotLowered(node, "activations are uint8 with one scale each")
        return float(scale.reshape(())), int(zero.reshape(()))

    def weights(self, node: Any) -> Weights:
        """A Conv's or ConvTranspose's weights, int8 behind a DequantizeLinear."""
        unpacked = self.writer.get(node.input[1])
        if unpacked is None or unpacked.op_type != "DequantizeLinear":
            raise NotLowered(node, "its weights are in float")
        packed = self.constant(unpacked, 0)
        if packed.dtype != np.int8 or packed.ndim != 4 or np.any(self.constant(unpacked, 2)):
            raise NotLowered(node, "its weights are not int8 (output, input, height, width) with zero point 0")
        group = int(attribute(node, "group", 1))
        deconvolution = node.op_type == "ConvTranspose"
        outputs = packed.shape[1] * group if deconvolution else packed.shape[0]
        steps = self.constant(unpacked, 1).astype(np.float64).reshape(-1)
        if steps.size != 1 and (steps.size != outputs or attribute(unpacked, "axis", 1) != int(deconvolution)):
            raise NotLowered(node, "the scales of its weights are not per output channel")
        bias = self.bias(node, outputs).astype(np.float64)
        return Weights(packed, np.broadcast_to(steps, (outputs,)).copy(), bias, group)

    def parts(self, node: Any, found: Weights, shuffle: Any, out_hw: Tuple[int, int]) -> List[Convolution]:
        """The convolutions that a Conv or ConvTranspose consists of; their output i is its output shuffle[i]."""
        strides, dilations, pads = windows(node)
        if node.op_type == "ConvTranspose":
            if found.group != 1:
                raise NotLowered(node, "a grouped deconvolution")
            weight, steps, bias = found.weight[:, shuffle], found.steps[shuffle], found.bias[shuffle]
            return list(deconvolution_parts(weight, steps, bias, strides, dilations, pads, out_hw))
        dense = dense_weight(found.weight, found.group)[shuffle]
        return [Convolution(dense, found.steps[shuffle], found.bias[shuffle], strides, dilations, pads)]

    def shuffle_before(self, node: Any) -> Tuple[str, Any]:
        """(input, channel of the input for each of the output) of the channel shuffle that ends in `node`."""
        found = shuffle_before(self.graph, node.output[0])
        if found is None or self.map_shape(found[0]) != self.map_shape(node.output[0]):
            raise NotLowered(node, "no channel shuffle")
        return found[0], found[2]

    def shuffled(self) -> Dict[int, int]:
        """How many groups the channel shuffles of so many channels have."""
        found = {}
        for node in self.graph.nodes:
            shape = self.shapes.get(node.output[0], [])
            if node.op_type == "Reshape" and len(shape) == 5 and shape[1] > 1 and shape[2] > 1:
                found[shape[1] * shape[2]] = shape[1]
        return found


def windows(node: Any) -> Tuple[Tuple[int, int], Tuple[int, int], Tuple[int, int]]:
    """(strides, dilations, padding at top and left) of a convolution."""
    if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        raise NotLowered(node, "auto_pad")
    strides, dilations = (attribute(node, name, [1, 1]) for name in ("strides", "dilations"))
    pads = attribute(node, "pads", [0, 0, 0, 0])
    if len(strides) != 2 or len(pads) != 4:
        raise NotLowered(node, "not two-dimensional")
    return (strides[0], strides[1]), (dilations[0], dilations[1]), (pads[0], pads[1])


def keeps_size(node: Any) -> bool:
    """Whether a 3x3 convolution has stride 1, one dilation, and as much padding."""
    strides, dilations, _ = windows(node)
    pads = list(attribute(node, "pads", [0] * 4))
    return strides == (1, 1) and dilations[0] == dilations[1] and pads == [dilations[0]] * 4


def one_input_each(weight: Any) -> Any:
    """For 1x1 weights (cout, cin, 1, 1) whose outputs read one input each, none twice: those inputs; else None."""
    outputs, inputs = weight.shape[:2]
    used = weight.reshape(outputs, inputs, -1) != 0
    if weight.shape[2:] != (1, 1) or outputs != inputs or not (used[:, :, 0].sum(axis=1) == 1).all():
        return None
    taken = used[:, :, 0].argmax(axis=1)
    return taken if len(set(taken.tolist())) == outputs else None


def frame_of(reader: Reader) -> Tuple[NativeTensor, Dict[str, Stored]]:
    """(the tensor, the names under which a model reads it): it as floats, in another layout, less a mean, are all one.

    Around it lies the mean, which must be of whole numbers, as `native_form` makes it.
    """
    name = reader.graph.model.graph.input[0].name
    shape = reader.shapes[name]
    if len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
        raise NotLowered(None, f"{name} of shape {shape}, not one frame (1, height, width, 3)")
    tensor = NativeTensor(shape[1], shape[2], 3)
    found = {name: Stored(0, 1.0, np.zeros(3), np.arange(3), shape[1], shape[2])}
    for node in reader.graph.nodes:
        if node.input[0] not in found or node.op_type not in ("Cast", "Transpose", "Sub"):
            continue
        frame = found[node.input[0]]
        if node.op_type == "Transpose" and list(attribute(node, "perm")) != [0, 3, 1, 2]:
            raise NotLowered(node, "of the frame")
        if node.op_type == "Sub":
            mean = np.broadcast_to(reader.constant(node, 1).reshape(-1), (3,)).astype(np.float64)
            if not np.array_equal(mean, np.clip(np.rint(mean), 0, 255)):
                raise NotLowered(node, "a mean of the pixels that is no whole number from 0 to 255")
            packed = sum(int(value) << 8 * index for index, value in enumerate(mean))
            if tensor.zero not in (0, packed):
                raise NotLowered(node, "two means for one frame")
            tensor.zero, frame = packed, replace(frame, zero=mean)
        found[node.output[0]] = frame
    return tensor, found
