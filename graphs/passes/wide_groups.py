"""Pass: narrow groups of a convolution are joined to wider ones, block-diagonal inside.

Needs: Conv nodes with constant weights, more than one group and more than one channel in each. Groups whose width, in
and out, is a multiple of `block` already stay; so do convolutions whose channels cannot be cut that way.
Promises: the fewest joined groups whose width is such a multiple; multiply-accumulates grow by as much. For engines
whose fast kernels take channels in blocks (ONNX Runtime's NCHWc: 16 with AVX-512, 8 with AVX2) and fall back otherwise.
Exact: the added products are with zero. Proof: tests/test_pass_groups.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.convolutions import bias_of, group_of, grouped_convs, set_weights, weight_of
from gradseg.graphs.passes.fold_input import dense_weight


def wide_groups(graph: Graph, block: int = 16) -> int:
    """Applies the pass in place; returns the number of convolutions changed."""
    changed = 0
    for node in grouped_convs(graph):
        weight, group = weight_of(graph, node), group_of(node)
        joined = _joined(weight.shape[0] // group, weight.shape[1], group, block)
        if joined > 1:
            set_weights(graph, node, joined_weight(weight, group, joined), bias_of(graph, node), group // joined)
            changed += 1
    return changed


def _joined(outputs: int, inputs: int, group: int, block: int) -> int:
    """How many neighbouring groups make one: the smallest divisor of `group` that gives whole blocks, 1 if none."""
    for count in range(1, group + 1):
        if group % count == 0 and outputs * count % block == 0 and inputs * count % block == 0:
            return count
    return 1


def joined_weight(weight: np.ndarray[Any, Any], group: int, count: int) -> np.ndarray[Any, Any]:
    """Weights of `group` groups → of group / count groups, each a block-diagonal matrix of `count` old ones."""
    parts = np.split(weight, group // count)
    return np.concatenate([dense_weight(part, count) for part in parts])
