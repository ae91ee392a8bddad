"""A network's nodes and what each computes, and which step of an engine stands for which of them.

Engines fuse nodes and rename the result: after its last tensor (ONNX Runtime's blocked convolutions), or with a number
behind the first node's name; OpenVINO lists all. What no rule finds is reported, never guessed away.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

import onnx

from gradseg.benchmarks.common.onnx_macs import macs_of, tensors_of
from gradseg.graphs.graph import Graph

# what ONNX Runtime and OpenVINO append to a name: layout, a number that makes it unique, a form without its bias
SUFFIXES = re.compile(r"(_nchwc|_token_\d+|_quant|_original|/WithoutBiases)$")
CONVOLUTIONS = ("Convolution", "GroupConvolution")
BACKWARD = ("ConvolutionBackpropData", "GroupConvolutionBackpropData")


@dataclass(frozen=True)
class Node:
    """name, op: as in the model. inputs, outputs: tensors, weights left out. macs: multiply-accumulates per run."""

    name: str
    op: str
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]
    macs: int


def nodes_of_onnx(model: onnx.ModelProto) -> List[Node]:
    """In topological order, without those that only prepare weights. Shapes must be static."""
    graph = Graph(model)
    sizes, _ = tensors_of(model)
    made = {value.name for value in model.graph.input if value.name not in graph.weights}
    found: List[Node] = []
    for node in graph.nodes:
        inputs = tuple(name for name in node.input if name in made)
        if inputs:
            made.update(node.output)
            name, outputs = node.name or node.output[0], tuple(node.output)
            found.append(Node(name, node.op_type, inputs, outputs, macs_of(node, sizes)))
    return found


def nodes_of_openvino(model: Any) -> List[Node]:
    """The same of an openvino.Model."""
    found: List[Node] = []
    made: Dict[str, bool] = {}
    for op in model.get_ordered_ops():
        name, kind = op.get_friendly_name(), op.get_type_name()
        sources = [op.input_value(index).get_node().get_friendly_name() for index in range(op.get_input_size())]
        # of a static shape, ShapeOf and what is computed from it are constants
        made[name] = kind == "Parameter" or (kind != "ShapeOf" and any(made[source] for source in sources))
        if kind not in ("Parameter", "Constant", "Result") and made[name]:
            inputs = tuple(source for source in sources if made[source])
            found.append(Node(name, kind, inputs, (name,), _openvino_macs(op, kind)))
    return found


def _openvino_macs(op: Any, kind: str) -> int:
    if kind in (*CONVOLUTIONS, *BACKWARD):
        pixels: List[int] = list(op.output(0).get_shape() if kind in CONVOLUTIONS else op.input_value(0).get_shape())
        return math.prod(list[int](op.input_value(1).get_shape())) * pixels[0] * math.prod(pixels[2:])
    if kind == "MatMul":
        shape = list(op.input_value(0).get_shape())
        inner = int(shape[-2 if op.get_attributes()["transpose_a"] else -1])
        return math.prod(list[int](op.output(0).get_shape())) * inner
    return 0


def plain(name: str) -> str:
    """A step's name without what the engine appended."""
    shorter = SUFFIXES.sub("", name)
    return name if shorter == name else plain(shorter)


def attributed(nodes: Sequence[Node], claims: Sequence[Sequence[str]]) -> List[List[Node]]:
    """The nodes that each step of an engine stands for; no node twice, some perhaps nowhere.

    claims: per step, in the order in which they run, the names of nodes or tensors that it goes by.
    """
    by_name = {node.name: index for index, node in enumerate(nodes)}
    unbiased = {plain(node.name): index for index, node in enumerate(nodes) if plain(node.name) != node.name}
    maker = {name: index for index, node in enumerate(nodes) for name in node.outputs}
    owner: Dict[int, int] = {}
    by_tensor: List[Tuple[int, int]] = []
    for step, names in enumerate(claims):
        for name in dict.fromkeys(each for given in names for each in (given, plain(given))):
            if name in unbiased:  # OpenVINO's readers split a product from its bias, its compiler joins them again
                owner.setdefault(unbiased[name], step)
            index = by_name.get(name, maker.get(name))
            if index is not None and owner.setdefault(index, step) == step and name not in by_name:
                by_tensor.append((index, step))
    for index, step in by_tensor:
        _claim_upstream(nodes, maker, owner, index, step)
    for index, node in enumerate(nodes):  # what follows a step's last node was fused into it
        before = [owner[maker[name]] for name in node.inputs if maker.get(name) in owner]
        if index not in owner and before and not node.macs:
            owner[index] = max(before)
    readers = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    for index in reversed(range(len(nodes))):  # what stands before the first step
        after = [readers[name] for name in nodes[index].outputs if readers.get(name) in owner]
        if index not in owner and after and not nodes[index].macs:
            owner[index] = owner[after[0]]
    found: List[List[Node]] = [[] for _ in claims]
    for index, step in sorted(owner.items()):
        found[step].append(nodes[index])
    return found


def _claim_upstream(nodes: Sequence[Node], maker: Dict[str, int], owner: Dict[int, int], index: int, step: int) -> None:
    """A step named after a tensor makes it from what other steps made: what is unclaimed before it is its own, as far
    as one node that multiplies; a second would be another step's, whose name is not understood."""
    waiting = [index]
    while waiting:
        node = nodes[waiting.pop()]
        if node.macs:
            return
        for before in (maker.get(name) for name in node.inputs):
            if before is not None and before not in owner:
                owner[before] = step
                waiting.append(before)
