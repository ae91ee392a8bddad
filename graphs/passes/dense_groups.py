"""Pass: convolutions of up to eight wide groups become dense, their other weights zero.

Needs: Conv nodes with constant weights. Depthwise convolutions and those of more than `most` groups stay.
Promises: the same function with `group` times the multiply-accumulates. Worth it only where one dense kernel call costs
less than a call per group, as with ONNX Runtime's INT8 kernels; float kernels pay for the arithmetic. So it is for INT8
on CPUs alone.
Exact: the added products are with zero. Proof: tests/test_export_passes.py.
"""

from __future__ import annotations

import numpy as np

from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.fold_input import dense_weight


def dense_groups(graph: Graph, most: int = 8) -> int:
    """Applies the pass in place; returns the number of convolutions changed."""
    changed = 0
    for node in graph.nodes:
        group = attribute(node, "group", 1) if node.op_type == "Conv" else 1
        if not 1 < group <= most or node.input[1] not in graph.weights:
            continue
        weight = graph.weights[node.input[1]]
        if weight.shape[1] == 1:
            continue
        node.input[1] = graph.constant(f"{node.input[1]}_dense", np.ascontiguousarray(dense_weight(weight, group)))
        for found in node.attribute:
            if found.name == "group":
                found.i = 1
        changed += 1
    return changed
