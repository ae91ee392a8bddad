"""What every layer of an ONNX network computes and moves: multiply-accumulates and bytes. Needs onnx; no torch.

A layer is a convolution, a pooling or a resize with everything behind it that works on single values or only moves
them (bias, ReLU, sum with a skip connection, casts, Q/DQ, transposition): engines compute these on the way to memory.
Reshape and Concat cost nothing: engines write their inputs where the result is to lie.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, Iterable, List, Set, Tuple

import numpy as np
import onnx
from onnx import TensorProto

from gradseg.benchmarks.common.onnx_macs import macs_of, tensors_of
from gradseg.graphs.graph import Graph

VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Concat")
QDQ = ("QuantizeLinear", "DequantizeLinear")
# one value in, one value out, or the same values in another order
FOLLOWS = (
    *("Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "HardSigmoid", "BatchNormalization", "Cast"),
    *("Add", "Sub", "Mul", "Div", "Transpose", "DepthToSpace", "SpaceToDepth", "Floor", "Round", "Min", "Max"),
)
SETTINGS = ("Resize", "Reshape", "Slice", "Pad", "Clip", *QDQ)  # their constants are settings, not weights
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
BYTES: Dict[int, int] = {  # of a value, for what is no float
    TensorProto.UINT8: 1,
    TensorProto.INT8: 1,
    TensorProto.BOOL: 1,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
}

Stored = Tuple[str, bool]  # a tensor that lies in memory, and whether as int8


def counts_of(model: onnx.ModelProto, float_bytes: int) -> Dict[str, Any]:
    """{"layers": […], "fused": {"weights", "input", "output", "skips"}}, bytes and multiply-accumulates per run.

    A layer is {"name", "op": its first node's, "macs", "int8": whether computed on int8 values, "weights", "reads",
    "writes": bytes without what stays inside the layer}.

    fused: what is left to move if every layer but the skip connections stayed on the chip: a tensor that more than one
    layer reads is written once and read once.

    Args:
        model: static shapes.
        float_bytes: of a floating-point value as the engine stores it: 4 for FP32, 2 for FP16 and beside INT8.
    """
    counter = _Counter(model, float_bytes)
    for node in counter.graph.nodes:
        counter.visit(node)
    return counter.finished()


class _Counter:
    def __init__(self, model: onnx.ModelProto, float_bytes: int) -> None:
        self.graph, self.float_bytes = Graph(model), float_bytes
        self.sizes, self.kinds = tensors_of(model)
        self.layers: List[Dict[str, Any]] = []
        self.inputs: List[Set[Stored]] = []  # of every layer
        self.maker: Dict[str, int] = {}  # tensor in memory → index of its layer
        self.stored: Dict[str, List[Stored]] = {}  # tensor of the graph → where it lies
        self.packed: Set[str] = set()  # results of DequantizeLinear
        for value in self.graph.model.graph.input:
            if value.name not in self.graph.weights:
                self.stored[value.name] = [(value.name, False)]
        self.readers = self._readers()

    def visit(self, node: Any) -> None:
        """Adds the node to a layer, or notes that it costs nothing."""
        inputs = [name for name in node.input if name and name in self.stored]
        sources = [each for name in inputs for each in self.stored[name]]
        output = node.output[0]
        if not sources:  # made of weights alone
            self.graph.weights.setdefault(output, np.empty(self.sizes[output], np.uint8))  # its size alone matters
            self.packed.update({output} if node.op_type == "DequantizeLinear" else ())
            return
        if node.op_type in VIEWS:
            self.stored[output] = sources
            return
        if node.op_type in QDQ:
            self.packed.add(output)
            small = node.op_type == "QuantizeLinear"
            self.stored[output] = [(name, small or int8) for name, int8 in sources]
            return
        index = self._layer_for(node, sources)
        self.inputs[index].update(each for each in sources if self.maker.get(each[0]) != index)
        self._add_costs(node, self.layers[index])
        for name in node.output:
            self.maker[name], self.stored[name] = index, [(name, False)]

    def finished(self) -> Dict[str, Any]:
        """Bytes of every layer's inputs and outputs, and the sums without what could stay on the chip."""
        ends = {each for value in self.graph.model.graph.output for each in self.stored[value.name]}
        read = {each for inputs in self.inputs for each in inputs}
        written = ends | {each for each in read if each[0] in self.maker}
        read_by = Counter(name for inputs in self.inputs for name in {name for name, _ in inputs})
        for layer, inputs in zip(self.layers, self.inputs):
            layer["reads"] = self._bytes(inputs)
        for each in written:
            self.layers[self.maker[each[0]]]["writes"] += self._bytes([each])
        fused = {
            "weights": sum(layer["weights"] for layer in self.layers),
            "input": self._bytes(read - written),
            "output": self._bytes(ends),
            "skips": 2 * self._bytes(each for each in written if read_by[each[0]] > 1),
        }
        return {"layers": self.layers, "fused": fused}

    def _layer_for(self, node: Any, sources: List[Stored]) -> int:
        """The layer that makes the node's latest input, if the node only follows and is alone to read it; else new."""
        made = [self.maker.get(name, -1) for name, _ in sources]
        latest = max(range(len(sources)), key=lambda index: made[index])
        name = sources[latest][0]
        if node.op_type in FOLLOWS and made[latest] >= 0 and self.readers.get(name, 0) <= 1:
            return made[latest]
        nothing = {"macs": 0, "int8": False, "weights": 0, "reads": 0, "writes": 0}
        self.layers.append({"name": node.name or node.output[0], "op": node.op_type, **nothing})
        self.inputs.append(set())
        return len(self.layers) - 1

    def _add_costs(self, node: Any, layer: Dict[str, Any]) -> None:
        weights = self.graph.weights
        for name in node.input if node.op_type not in SETTINGS else ():
            if name in weights:
                layer["weights"] += int(weights[name].size) * (1 if name in self.packed else self.float_bytes)
        layer["macs"] += macs_of(node, self.sizes)
        if node.op_type in ("Conv", "ConvTranspose"):
            layer["int8"] = node.input[0] in self.packed and node.input[1] in self.packed

    def _bytes(self, tensors: Iterable[Stored]) -> int:
        def width(name: str, int8: bool) -> int:
            return 1 if int8 else self.float_bytes if self.kinds[name] in FLOATS else BYTES[self.kinds[name]]

        return sum(int(np.prod(self.sizes[name])) * width(name, int8) for name, int8 in tensors)

    def _readers(self) -> Dict[str, int]:
        """How many nodes that compute read each tensor, through those that cost nothing."""
        found: Counter[str] = Counter()
        lies: Dict[str, List[str]] = {}
        for node in self.graph.nodes:
            names = [each for name in node.input for each in lies.get(name, [name] if name else [])]
            if node.op_type in VIEWS or node.op_type in QDQ:
                lies[node.output[0]] = names
            else:
                found.update(names)
        for value in self.graph.model.graph.output:
            found.update(lies.get(value.name, [value.name]))
        return found
