"""An ONNX file of other origin → one float image in, one tensor out, fixed sizes, opset 13 or newer. Needs onnx.

What is not needed for the chosen output is dropped, first of all other inputs. Nothing is computed differently: how the
network ends and what its pixels are is the business of `foreign.head` and `foreign.convert`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional, Set, Tuple

import onnx
from onnx import TensorProto, helper

from gradseg.base.errors import GradsegError
from gradseg.graphs.foreign.spec import Given
from gradseg.graphs.passes.convolutions import set_attribute
from gradseg.graphs.passes.raise_opset import opset_of

LEAST = 13  # Q/DQ with a scale per channel
RESERVED = ("frame", "labels")  # the deployment form's own names
INT8 = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class Trimmed:
    """The network up to one output. image: its input, float32 (1, 3, h, w), or (1, h, w, 3) if `channels_last`."""

    model: onnx.ModelProto
    image: str
    output: str
    channels_last: bool
    size_hw: Tuple[int, int]


def trimmed(model: onnx.ModelProto, given: Given, where: str) -> Trimmed:
    """Fixes the sizes and picks input and output. GradsegError, saying what to do, for what is not a network of floats
    with one three-channel image in."""
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    refuse_odd_networks(model, where)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(copy.ir_version, 8)  # before 4 every weight had to stand among the inputs
    weights = {tensor.name for tensor in copy.graph.initializer}
    inputs = [value for value in copy.graph.input if value.name not in weights]
    image = _image(inputs, given.input, where)
    channels_last, size_hw = _fix_size(image, given, where)
    del copy.graph.input[:], copy.graph.value_info[:]
    copy.graph.input.extend(inputs)
    for value in copy.graph.output:  # as the exporter saw them; they are inferred anew
        value.type.tensor_type.ClearField("shape")
    output = _output(copy, given.output, where)
    del copy.graph.output[:]
    copy.graph.output.append(output)
    needed = _prune(copy)
    others = needed - {image.name}
    if image.name not in needed:
        raise GradsegError(f"{where}: {output.name} does not depend on the image {image.name}; name another --output")
    if others:
        raise GradsegError(
            f"{where}: {output.name} needs the inputs {', '.join(sorted(others))} beside the image {image.name}; "
            "export the network with the image as its only input"
        )
    for name in RESERVED:
        _rename(copy.graph, name, _unused(copy.graph, f"{name}_original"))
    return Trimmed(copy, copy.graph.input[0].name, copy.graph.output[0].name, channels_last, size_hw)


def refuse_odd_networks(model: onnx.ModelProto, where: str) -> None:
    """Raises GradsegError for a network that is quantised, in FP16, or made of operators that are not ONNX's own."""
    operators = {node.op_type for node in model.graph.node}
    if operators & set(INT8):
        raise GradsegError(f"{where}: is quantised already ({min(operators & set(INT8))}); give its float form")
    own = sorted({f"{node.domain} {node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if own:
        raise GradsegError(
            f"{where}: holds operators that are not ONNX's own ({', '.join(own[:3])}); export it again without them, "
            "that is, before any runtime optimised it"
        )
    halves = [tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    halves += [v.name for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT16]
    if halves:
        raise GradsegError(f"{where}: computes in float16 ({halves[0]}); export it in float32, FP16 is made from that")


def upgraded(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The same network at opset 13 or newer, constants computed, without control flow."""
    import onnxsim

    version = opset_of(model)
    try:
        if version < LEAST:
            model = onnx.version_converter.convert_version(model, LEAST)
        result: onnx.ModelProto = onnxsim.simplify(model, perform_optimization=False)[0]
    except Exception as error:  # both raise many classes for what they do not know
        raise GradsegError(
            f"{where}: cannot be brought from opset {version} to fixed shapes at opset {max(version, LEAST)} "
            f"({first_line(error)}); export it again at opset 13 or newer, at a fixed size"
        ) from error
    for node in result.graph.node:
        if node.op_type == "Resize" and version < 11:  # the converter leaves newer defaults in place of what it was
            set_attribute(node, "coordinate_transformation_mode", "asymmetric")
            set_attribute(node, "nearest_mode", "floor")
        if any(found.type == onnx.AttributeProto.GRAPH for found in node.attribute):
            raise GradsegError(
                f"{where}: holds control flow ({node.op_type} {node.name}) that does not vanish at a fixed size; "
                "export it by tracing"
            )
    return result


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _image(inputs: List[Any], name: Optional[str], where: str) -> Any:
    listed = ", ".join(_described(value) for value in inputs) or "none"
    if name is not None:
        found = [value for value in inputs if value.name == name]
        if not found:
            raise GradsegError(f"{where}: has no input {name!r}; its inputs are {listed}")
    else:
        images = [value for value in inputs if len(_dims(value)) == 4]
        found = images if len(images) == 1 else inputs
    if len(found) != 1:
        raise GradsegError(f"{where}: which input is the image? Say it with --input NAME; its inputs are {listed}")
    value = found[0]
    if value.type.tensor_type.elem_type != TensorProto.FLOAT or len(_dims(value)) != 4:
        raise GradsegError(f"{where}: input {_described(value)}; expected a float32 image (1, 3, height, width)")
    return value


def _fix_size(image: Any, given: Given, where: str) -> Tuple[bool, Tuple[int, int]]:
    """Writes the size into the input's shape; (channels last, (height, width))."""
    batch, *dims = _dims(image)
    if batch > 1:
        raise GradsegError(
            f"{where}: input {_described(image)} has a fixed batch of {batch}; export it with a batch of 1, or an open "
            "one (dynamic_axes), which becomes 1"
        )
    channels_last = dims[0] != 3 and dims[2] == 3
    if not channels_last and dims[0] not in (0, 3):
        raise GradsegError(f"{where}: input {_described(image)}; only images of three channels are supported")
    sides = dims[:2] if channels_last else dims[1:]
    wanted = given.input_hw
    if wanted is None and 0 in sides:
        raise GradsegError(f"{where}: input {_described(image)} takes any size; say which with --size HEIGHTxWIDTH")
    size_hw = wanted or (sides[0], sides[1])
    if sides[0] not in (0, size_hw[0]) or sides[1] not in (0, size_hw[1]):
        raise GradsegError(
            f"{where}: input {_described(image)} is fixed at {sides[0]}x{sides[1]} (height x width), described is "
            f"{size_hw[0]}x{size_hw[1]}; export it again at that size, or correct --size or --spec"
        )
    shape = [1, *size_hw, 3] if channels_last else [1, 3, *size_hw]
    image.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, shape))
    return channels_last, size_hw


def _output(model: onnx.ModelProto, name: Optional[str], where: str) -> Any:
    """The graph's output to use: the named tensor, the only one, or the only one that can be logits."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except Exception as error:
        raise GradsegError(f"{where}: its shapes do not fit together ({first_line(error)})") from error
    known = {value.name: value for value in [*inferred.value_info, *inferred.output]}
    outputs = [known.get(value.name, value) for value in model.graph.output]
    listed = ", ".join(_described(value) for value in outputs)
    if name is not None:
        if name not in {output for node in model.graph.node for output in node.output}:
            raise GradsegError(f"{where}: has no tensor {name!r}; its outputs are {listed}")
        return known.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    if len(outputs) > 1:
        outputs = [value for value in outputs if len(_dims(value)) == 4 and _dims(value)[1] > 1]
    if len(outputs) != 1:
        raise GradsegError(f"{where}: which output is the segmentation? Say it with --output NAME; there are {listed}")
    return outputs[0]


def _prune(model: onnx.ModelProto) -> Set[str]:
    """Drops nodes, weights and inputs that the outputs do not need; gives the names of the inputs that remain."""
    needed = {value.name for value in model.graph.output}
    kept: List[onnx.NodeProto] = []
    for node in reversed(model.graph.node):  # a graph is sorted, by ONNX's rules
        if needed & set(node.output):
            kept.append(node)
            needed |= _read_by(node)
    kept.reverse()
    graph = model.graph
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    inputs = [value for value in graph.input if value.name in needed]
    for field, values in ((graph.node, kept), (graph.initializer, weights), (graph.input, inputs)):
        del field[:]
        field.extend(values)
    return {value.name for value in inputs}


def _read_by(node: onnx.NodeProto) -> Set[str]:
    """The tensors that a node reads, those used inside its subgraphs included."""
    names = {name for name in node.input if name}
    for found in node.attribute:
        if found.type == onnx.AttributeProto.GRAPH:
            names |= {output.name for output in found.g.output}
            for inner in found.g.node:
                names |= _read_by(inner)
    return names


def _rename(graph: Any, old: str, new: str) -> None:
    for value in [*graph.input, *graph.output, *graph.initializer]:
        value.name = new if value.name == old else value.name
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = new if name == old else name
        for found in node.attribute:
            if found.type == onnx.AttributeProto.GRAPH:
                _rename(found.g, old, new)


def _unused(graph: Any, stem: str) -> str:
    taken = {name for node in graph.node for name in [*node.input, *node.output]}
    while stem in taken:
        stem += "_"
    return stem


def _dims(value: Any) -> List[int]:
    """The declared shape; 0 for an open dimension."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _described(value: Any) -> str:
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    shape = ", ".join(str(size or "?") for size in _dims(value))
    return f"{value.name} ({kind} [{shape}])"


def uniquely_named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gives every node a name of its own, which quantisation and its reports go by; the same ones every time."""
    seen: Set[str] = set()
    for node in model.graph.node:
        stem = node.name or f"{node.op_type}_{node.output[0]}"
        name, count = stem, 0
        while name in seen:
            count += 1
            name = f"{stem}_{count}"
        seen.add(name)
        node.name = name
    return model


def writers(model: onnx.ModelProto) -> Mapping[str, onnx.NodeProto]:
    """Tensor → the node that writes it."""
    return {name: node for node in model.graph.node for name in node.output}
