"""Pass: convolutions of up to eight wide groups become dense, their other weights zero.

Needs: Conv nodes with constant weights. Depthwise convolutions and those of more than `most` groups stay.
Promises: the same function with `group` times the multiply-accumulates. Worth it only where one dense kernel call costs
less than a call per group, as with ONNX Runtime's INT8 kernels; float kernels pay for the arithmetic. So it is for INT8
on CPUs alone.
Exact: the added products are with zero. Proof: tests/test_export_passes.py.
"""

from __future__ import annotations

from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.convolutions import bias_of, group_of, grouped_convs, set_weights, weight_of
from gradseg.graphs.passes.fold_input import dense_weight


def dense_groups(graph: Graph, most: int = 8) -> int:
    """Applies the pass in place; returns the number of convolutions changed."""
    found = [node for node in grouped_convs(graph) if group_of(node) <= most]
    for node in found:
        set_weights(graph, node, dense_weight(weight_of(graph, node), group_of(node)), bias_of(graph, node), 1)
    return len(found)
