"""Pass: a grouped convolution becomes Split → one dense convolution per group → Concat.

Needs: Conv nodes with constant weights, 2 to `most` groups of more than one channel each.
Promises: the same function by dense convolutions alone, for engines whose grouped kernels are slow. The Split and the
Concat copy the tensor; `chains` is for where they can be left out.
Exact: the same products and sums. Proof: tests/test_pass_groups.py.
"""

from __future__ import annotations

import numpy as np

from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.convolutions import bias_of, group_of, grouped_convs, like, split, weight_of


def split_groups(graph: Graph, most: int = 8) -> int:
    """Applies the pass in place; returns the number of convolutions changed."""
    found = [node for node in grouped_convs(graph) if group_of(node) <= most]
    for node in found:
        weight, bias, group = weight_of(graph, node), bias_of(graph, node), group_of(node)
        biases = [None] * group if bias is None else np.split(bias, group)
        sources = split(graph, node.input[0], [weight.shape[1]] * group)
        parts = [
            like(graph, node, source, part, part_bias, 1)
            for source, part, part_bias in zip(sources, np.split(weight, group), biases)
        ]
        graph.remove(node)
        graph.add("Concat", parts, node.output[0], axis=1)
    return len(found)
