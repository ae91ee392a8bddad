"""Stretches of a graph whose tensors are held as equal parts along the channels. For `chains` and `channel_tiles`."""

from __future__ import annotations

from typing import Any, Collection, Dict, List, Optional, Set

import numpy as np
import onnx

from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.convolutions import bias_of, group_of, is_conv, is_depthwise, like, weight_of


def by_channel(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether an operator of one tensor treats every channel by itself, and alike however many there are."""
    if node.op_type in ("Relu", "MaxPool"):
        return True
    scales = graph.weights.get(node.input[2]) if node.op_type == "Resize" and len(node.input) == 3 else None
    return scales is not None and scales.shape == (4,) and bool((scales[:2] == 1).all())


class Parts:
    """What could be held as `parts` equal parts, and the rewriting.

    Grouped convolutions of a multiple of `parts` groups, depthwise ones among them, and operators that treat channels
    alike work part by part on such tensors, as sums of two of them do. A dense convolution makes one from anything, and
    from another one as sums.
    """

    def __init__(self, graph: Graph, parts: int) -> None:
        self.graph, self.parts = graph, parts
        self.order = list(graph.to_model().graph.node)  # sorted copies, to look at; tensors are what counts
        self.held: Set[str] = set()
        self.names: Dict[str, List[str]] = {}
        self.whole: Dict[str, str] = {}

    def dense(self, node: onnx.NodeProto) -> bool:
        return is_conv(self.graph, node) and group_of(node) == 1

    def grouped(self, node: onnx.NodeProto) -> bool:
        """A convolution of several groups of more than one channel."""
        return is_conv(self.graph, node) and group_of(node) > 1 and not is_depthwise(self.graph, node)

    def islands(self) -> List[List[onnx.NodeProto]]:
        """The nodes whose results can be held in parts, those linked by operators that work part by part together."""
        parent: Dict[str, str] = {}

        def root(name: str) -> str:
            while parent[name] != name:
                name = parent[name]
            return name

        for node in self.order:
            if len(node.output) != 1 or self.graph.is_output(node.output[0]):
                continue
            output, read = node.output[0], list(node.input[: None if node.op_type == "Add" else 1])
            if is_conv(self.graph, node):
                whole = weight_of(self.graph, node).shape[0] % self.parts == 0 and self.dense(node)
                known = group_of(node) % self.parts == 0 and read[0] in parent
                if whole:
                    read = []
            else:
                whole, known = False, all(name in parent for name in read) and bool(read)
                known = known and (node.op_type == "Add" or by_channel(self.graph, node))
            if whole or known:
                parent[output] = output
                for name in read:
                    parent[root(name)] = root(output)
        found: Dict[str, List[onnx.NodeProto]] = {}
        for node in self.order:
            if node.output[0] in parent:
                found.setdefault(root(node.output[0]), []).append(node)
        return list(found.values())

    def write(self, islands: Collection[List[onnx.NodeProto]]) -> int:
        """Holds these islands in parts; returns how many operators are now written once per part."""
        self.held = {node.output[0] for island in islands for node in island}
        for node in self.order:
            if node.output[0] in self.held:
                self.names[node.output[0]] = self._written(node)
        self.graph.nodes = [node for node in self.graph.nodes if node.output[0] not in self.held]
        for node in [n for n in self.graph.nodes if any(name in self.held for name in n.input)]:
            self._reads(node)
        return len(self.held)

    def _written(self, node: onnx.NodeProto) -> List[str]:
        if node.op_type != "Conv":
            return [self._copy(node, index) for index in range(self.parts)]
        weight, bias, group = weight_of(self.graph, node), bias_of(self.graph, node), group_of(node)
        biases = [None] * self.parts if bias is None else np.split(bias, self.parts)
        rows = list(zip(np.split(weight, self.parts), biases))
        if group == 1 and node.input[0] in self.held:
            return [self._summed(node, part, part_bias) for part, part_bias in rows]
        sources = [node.input[0]] * self.parts if group == 1 else self.names[node.input[0]]
        each = max(1, group // self.parts)
        return [like(self.graph, node, source, *row, each) for source, row in zip(sources, rows)]

    def _copy(self, node: onnx.NodeProto, index: int) -> str:
        inputs = [self.names[name][index] if name in self.held else name for name in node.input]
        output = self.graph.add(node.op_type, inputs, self.graph.fresh(f"{node.output[0]}_part"))
        self.graph.nodes[-1].attribute.extend(node.attribute)
        return output

    def _reads(self, node: onnx.NodeProto) -> None:
        """A reader outside: a dense convolution becomes a sum over the parts, others read them concatenated."""
        if self.dense(node) and node.output[0] not in self.names:
            total = self._summed(node, weight_of(self.graph, node), bias_of(self.graph, node))
            self.graph.remove(node)
            last = self.graph.producer(total)
            assert last is not None
            last.output[0] = node.output[0]
            return
        for index, name in enumerate(node.input):
            if name in self.held:
                if name not in self.whole:
                    self.whole[name] = self.graph.add("Concat", self.names[name], axis=1)
                node.input[index] = self.whole[name]

    def _summed(self, node: onnx.NodeProto, weight: np.ndarray[Any, Any], bias: Optional[np.ndarray[Any, Any]]) -> str:
        """A dense convolution of a tensor that is held in parts: one convolution per part, added up."""
        total = ""
        for source, columns in zip(self.names[node.input[0]], np.split(weight, self.parts, axis=1)):
            made = like(self.graph, node, source, columns, None if total else bias, 1)
            total = self.graph.add("Add", [total, made]) if total else made
        return total
