"""Pass: a deployment-form network computes in FP16, for strongly typed TensorRT; INT8 gets FP16 as its partner.

Needs: a sorted graph, uint8 frame → uint8 labels, opset 13 or newer; with Q/DQ pairs, symmetric, opset 19 or newer,
from which on ONNX knows float16 scales. `keep`: names of nodes that go on computing in FP32.
Promises: every other node computes in float16, its weights rounded once. Casts stand where a float16 tensor meets a
node that is kept, one per tensor; a Q or DQ needs none, it takes the type of what it reads, or of what reads it.
Operators that ONNX has no float16 form of stay in FP32 too. The casts at both borders stay the first and last nodes:
the frame is cast to float16, which holds 0..255 exactly, and so do labels on their way to the last cast.
Scales: an activation's is rounded to float16 in its Q and its DQs alike, in FP32 copies too, so that all mean the same.
Integer weights stay as they are; their scales move by at most 2^-11 of themselves, a weight by 127 * 2^-11 = 0.06 of a
step. Scales below float16's normal numbers are for `half_ranges` to keep in FP32; there they are not rounded.
Not exact by nature: activations carry 11 significant bits. Proof: tests/test_export_passes.py, tests/test_trt_onnx.py.
"""

from __future__ import annotations

from typing import Any, Collection, Dict, List, Optional, Tuple

import numpy as np
import onnx
from onnx import TensorProto

from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.raise_opset import opset_of

LARGEST = 65504.0  # of float16
SMALLEST = 2.0**-14  # of float16's normal numbers, which have 11 bits
SATURATING = ("Clip", "Min", "Max", "Pad")  # a limit beyond float16's range means its end
FLOATS = ("float", "half")
NAMED = {"float": TensorProto.FLOAT, "half": TensorProto.FLOAT16}


def to_half(graph: Graph, keep: Collection[str] = ()) -> int:
    """Applies the pass in place; returns the number of nodes that compute in float16."""
    return _Halving(graph, keep).run()


def float_tensors(model: onnx.ModelProto) -> List[str]:
    """The names of a model's float32 activations, in the order in which they come about."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = {value.name: value for value in [*inferred.value_info, *inferred.output]}
    written = [name for node in model.graph.node for name in node.output if name in values]
    return [name for name in written if values[name].type.tensor_type.elem_type == TensorProto.FLOAT]


def has_half_form(node: onnx.NodeProto, opset: int, floats: Collection[str], weights: Collection[str]) -> bool:
    """Whether ONNX knows the operator with float16 in place of the tensors named in `floats` that it reads and writes.

    Constants (`weights`) may stay float32 where it insists on that.
    """
    if any(found.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for found in node.attribute):
        return False
    schema = _schema(node, opset)
    if schema is None or (node.op_type != "Cast" and not any(name in floats for name in node.input)):
        return False
    reads = [_takes_half(schema, schema.inputs, index) or name in weights for index, name in _used(node.input, floats)]
    writes = [_takes_half(schema, schema.outputs, index) for index, name in _used(node.output, floats)]
    return all(reads) and all(writes)


def _used(names: Any, floats: Collection[str]) -> List[Tuple[int, str]]:
    return [(index, str(name)) for index, name in enumerate(names) if name in floats]


def _schema(node: onnx.NodeProto, opset: int) -> Optional[Any]:
    try:
        return onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None


def _takes_half(schema: Any, formal: Any, index: int) -> bool:
    """Whether the input or output number `index` of an operator may be float16."""
    if not formal:
        return False
    kind = formal[min(index, len(formal) - 1)].type_str
    allowed = [c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == kind]
    return "tensor(float16)" in (allowed[0] if allowed else [kind])


class _Halving:
    """What one run of the pass knows: `types` says of every float tensor written so far whether it is float or half."""

    def __init__(self, graph: Graph, keep: Collection[str]) -> None:
        self.graph, self.keep = graph, set(keep)
        model = graph.to_model()
        self.opset = opset_of(model)
        self.floats = set(float_tensors(model)) | {n for n, v in graph.weights.items() if v.dtype == np.float32}
        inputs = [value for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT]
        self.floats.update(value.name for value in inputs)
        self.types: Dict[str, str] = {}
        self.copies: Dict[Tuple[str, str], str] = {}  # (tensor, type) → its name in that type
        self.dequantised: Dict[str, onnx.NodeProto] = {}  # the DQ of a tensor, to be written once per type

    def run(self) -> int:
        with np.errstate(over="ignore"):  # a weight beyond float16 that nobody kept becomes infinity
            return self._run()

    def _run(self) -> int:
        count, nodes = 0, list(self.graph.nodes)
        self.graph.nodes = []
        for node in nodes:
            if node.op_type == "DequantizeLinear":
                self.dequantised[node.output[0]] = node
                continue
            kind = self._kind(node)
            count += kind == "half"
            self._convert(node, kind)
            self.graph.nodes.append(node)
        return count

    def _kind(self, node: onnx.NodeProto) -> str:
        if node.op_type == "QuantizeLinear":
            return "half" if node.input[0] in self.dequantised else self.types.get(node.input[0], "float")
        if node.name in self.keep or not has_half_form(node, self.opset, self.floats, self.graph.weights):
            return "float"
        if node.op_type != "Cast":
            return "half"
        return "half" if node.output[0] in self.floats else self.types.get(node.input[0], "float")

    def _convert(self, node: onnx.NodeProto, kind: str) -> None:
        schema = _schema(node, self.opset)
        for index, name in _used(node.input, self.floats):
            half = kind == "half" and schema is not None and _takes_half(schema, schema.inputs, index)
            if node.op_type == "Resize" and index > 0:
                half = False
            node.input[index] = self._read(node, name, "half" if half else "float")
        for name in node.output:
            if name in self.floats:
                self.types[name] = kind
        if node.op_type == "Cast" and kind == "half" and node.output[0] in self.floats:
            for found in node.attribute:
                if found.name == "to":
                    found.i = TensorProto.FLOAT16

    def _read(self, node: onnx.NodeProto, name: str, kind: str) -> str:
        """The name under which `node` reads a float tensor as that type; a copy is made where there is none yet."""
        if name in self.graph.weights:
            return self._constant(node, name, kind)
        if name in self.dequantised:
            return self._dequantise(name, kind)
        if self.types.get(name, "float") == kind:
            return name
        if (name, kind) not in self.copies:
            output = self.graph.fresh(f"{name}_{kind}")
            self.copies[name, kind] = self.graph.add("Cast", [name], output, to=NAMED[kind])
        return self.copies[name, kind]

    def _constant(self, node: onnx.NodeProto, name: str, kind: str) -> str:
        value = self.graph.weights[name]
        if node.op_type == "QuantizeLinear":
            return self._scale(name, kind)
        if kind == "float":
            return name
        clipped = node.op_type in SATURATING
        key = (name, "clipped" if clipped else kind)
        if key not in self.copies:
            if clipped:
                value = np.clip(value, -LARGEST, LARGEST)
            self.copies[key] = self.graph.constant(f"{name}_half", value.astype(np.float16))
        return self.copies[key]

    def _dequantise(self, name: str, kind: str) -> str:
        if (name, kind) not in self.copies:
            node, copy = self.dequantised[name], onnx.NodeProto()
            copy.CopyFrom(node)
            first = not any((name, other) in self.copies for other in FLOATS)
            if not first:
                copy.output[0] = self.graph.fresh(f"{name}_{kind}")
                copy.name = self.graph.fresh(f"{copy.output[0]}/{node.op_type}")
            if node.input[0] in self.graph.weights:
                copy.input[1] = self._constant(node, node.input[1], kind)
            else:
                copy.input[1] = self._scale(node.input[1], kind)
            self.graph.nodes.append(copy)
            self.copies[name, kind] = copy.output[0]
        return self.copies[name, kind]

    def _scale(self, name: str, kind: str) -> str:
        """An activation's scale as that type: one value for every Q and DQ that shares it."""
        key = (name, f"scale {kind}")
        if key not in self.copies:
            exact = self.graph.weights[name]
            rounded = exact.astype(np.float16)
            if kind == "float":
                rounded = np.where(np.abs(exact) < SMALLEST, exact, rounded.astype(np.float32)).astype(np.float32)
            self.copies[key] = self.graph.constant(f"{name}_{kind}", rounded)
        return self.copies[key]
