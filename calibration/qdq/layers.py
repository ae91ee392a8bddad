"""A network's layers as INT8 sees them. Needs onnx; no torch.

A layer is a convolution or deconvolution, or a sum or concatenation, that the target computes in INT8, with the
pooling, resizing and shuffling that hands on its result. Where that follows an operator in float, it is a layer of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Tuple

import numpy as np

from gradseg.calibration.qdq.plan import COMPUTE, PASS_THROUGH, Plan, pixel_tensors, result_of
from gradseg.graphs.graph import Graph, shapes_of

JOINING = ("Add", "Concat")


@dataclass(frozen=True)
class Layer:
    """name: its first node's. nodes: all that belong to it. output: the tensor it hands on, after the ReLU.

    macs: multiply-accumulates per frame, weights: how many; 0 for sums. values: numbers in the output.
    """

    name: str
    operator: str
    nodes: Tuple[str, ...]
    output: str
    macs: int
    weights: int
    values: int


def layers_of(model: Any, plan: Plan) -> List[Layer]:
    """The layers of a deployment-form model (onnx.ModelProto) that a plan quantises, in the network's order.

    The plan may be of another form of the model, as long as nodes keep their names.
    """
    graph, shapes, chosen = Graph(model), shapes_of(model), set(plan.nodes)
    exact, found = pixel_tensors(graph), []
    for node in graph.nodes:
        leads = node.op_type in (*COMPUTE, *JOINING) or (node.input[0] in plan.tensors and node.input[0] not in exact)
        if node.name not in chosen or not leads:
            continue
        output, macs, weights = result_of(graph, node), 0, 0
        if node.op_type in COMPUTE:
            weights = int(graph.weights[node.input[1]].size)
            # every weight meets every pixel of the smaller of the two maps once
            macs = weights * int(np.prod(shapes[node.output[0] if node.op_type == "Conv" else node.input[0]][2:]))
        nodes = (node.name, *(name for name in _handed_on(graph, output) if name in chosen))
        chosen.difference_update(nodes)
        values = int(np.prod(shapes[node.output[0]]))
        found.append(Layer(node.name, node.op_type, nodes, output, macs, weights, values))
    return found


def _handed_on(graph: Graph, tensor: str) -> List[str]:
    """The names of the poolings, resizings and shuffles that a tensor goes through."""
    found: List[str] = []
    for node in graph.consumers(tensor):
        if node.op_type in PASS_THROUGH and node.input[0] == tensor:
            found += [node.name, *_handed_on(graph, node.output[0])]
    return found


def rounded(model: Any, tensor: str) -> str:
    """What the operators of a quantised model read in place of a tensor: it after its Q/DQ pair, or itself."""
    readers = {(node.op_type, node.input[0]): node.output[0] for node in model.graph.node if node.input}
    packed = readers.get(("QuantizeLinear", tensor))
    return tensor if packed is None else str(readers["DequantizeLinear", packed])
