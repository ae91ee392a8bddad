"""A small editable view of an ONNX graph: named weights as arrays, producers, consumers. Needs onnx; no torch."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Graph:
    """A copy of a ModelProto's nodes and initialisers, to be edited and turned into a new model by `to_model`.

    Nodes may be added in any order: `to_model` sorts them topologically, keeping the given order where it can, and
    drops nodes and weights that nothing needs. `weights` maps an initialiser's name to its array.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes: List[onnx.NodeProto] = list(self.model.graph.node)
        self.weights: Dict[str, np.ndarray[Any, Any]] = {}
        for tensor in self.model.graph.initializer:
            self.weights[tensor.name] = numpy_helper.to_array(tensor)
        for node in [n for n in self.nodes if n.op_type == "Constant"]:
            value = attribute(node, "value")
            if value is not None:
                self.weights[node.output[0]] = numpy_helper.to_array(value)
                self.remove(node)
        for node in [n for n in self.nodes if n.op_type == "Identity" and n.input[0] in self.weights]:
            if not self.is_output(node.output[0]):  # exporters merge equal weights and hand them out by Identity
                self.weights[node.output[0]] = self.weights[node.input[0]]
                self.remove(node)
        self._names: Set[str] = set(self.weights) | {name for n in self.nodes for name in [*n.input, *n.output, n.name]}

    def fresh(self, stem: str) -> str:
        """A name that is not used yet, `stem` itself if it is free."""
        name, count = stem, 1
        while name in self._names:
            name, count = f"{stem}_{count}", count + 1
        self._names.add(name)
        return name

    def constant(self, stem: str, value: np.ndarray[Any, Any]) -> str:
        """Adds an initialiser, returns its name."""
        name = self.fresh(stem)
        self.weights[name] = value
        return name

    def add(self, op_type: str, inputs: Sequence[str], output: Optional[str] = None, **attributes: Any) -> str:
        """Adds a node with one output, named `output` or freshly after the operator; returns the output's name."""
        stem = output or self.fresh(f"{inputs[0]}_{op_type}")
        node = helper.make_node(op_type, list(inputs), [stem], name=self.fresh(f"{stem}/{op_type}"), **attributes)
        self.nodes.append(node)
        return stem

    def remove(self, node: onnx.NodeProto) -> None:
        self.nodes = [other for other in self.nodes if other is not node]

    def producer(self, tensor: str) -> Optional[onnx.NodeProto]:
        """The node that writes `tensor`; None for inputs and weights."""
        return next((node for node in self.nodes if tensor in node.output), None)

    def consumers(self, tensor: str) -> List[onnx.NodeProto]:
        return [node for node in self.nodes if tensor in node.input]

    def is_output(self, tensor: str) -> bool:
        return any(output.name == tensor for output in self.model.graph.output)

    def replace_uses(self, old: str, new: str, nodes: Optional[Iterable[onnx.NodeProto]] = None) -> None:
        """Every node (of `nodes`) that reads `old` reads `new` instead; graph outputs are not touched."""
        for node in self.nodes if nodes is None else nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new

    def to_model(self) -> onnx.ModelProto:
        """A new ModelProto: sorted nodes, only what the outputs need, no stale shapes; metadata and opset kept."""
        nodes = self._sorted_live()
        used = {name for node in nodes for name in node.input}
        old = self.model.graph
        graph = helper.make_graph(
            nodes,
            old.name or "gradseg",
            old.input,
            old.output,
            [numpy_helper.from_array(np.asarray(v, order="C"), k) for k, v in self.weights.items() if k in used],
        )
        model = helper.make_model(graph, opset_imports=self.model.opset_import, producer_name="gradseg")
        model.ir_version = min(self.model.ir_version, 8)  # 8 is opset 17's, which older runtimes read
        model.metadata_props.extend(self.model.metadata_props)
        return model

    def _sorted_live(self) -> List[onnx.NodeProto]:
        writer = {name: node for node in self.nodes for name in node.output}
        order: List[onnx.NodeProto] = []
        done: Set[int] = set()
        for output in self.model.graph.output:
            stack = [(writer[output.name], False)] if output.name in writer else []
            while stack:
                node, expanded = stack.pop()
                if id(node) in done:
                    continue
                if expanded:
                    done.add(id(node))
                    order.append(node)
                    continue
                stack.append((node, True))
                stack.extend((writer[name], False) for name in reversed(node.input) if name in writer)
        return order


def rewritten(model: onnx.ModelProto, *passes: Callable[[Graph], Any]) -> onnx.ModelProto:
    """A new model, to which passes were applied one after the other; `model` is not touched."""
    graph = Graph(model)
    for change in passes:
        change(graph)
    return graph.to_model()


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or `default`."""
    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default


def shapes_of(model: onnx.ModelProto) -> Dict[str, List[int]]:
    """Static shapes of every tensor by ONNX shape inference; a dynamic dimension is 0."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        found[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return found


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a model holds Q/DQ pairs already."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)
