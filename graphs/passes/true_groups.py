"""Pass: convolutions whose weights are block-diagonal become grouped.

Needs: Conv nodes with group 1 and constant weights that are zero outside of equal blocks on the diagonal, as
`dense_groups` writes them and as other people's exporters do. The largest such number of groups is taken.
Promises: the same function with 1 / groups of the multiply-accumulates.
Exact: the products left out are with zero. Proof: tests/test_pass_groups.py, every divisor, back and forth.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.convolutions import bias_of, group_of, is_conv, set_weights, weight_of


def true_groups(graph: Graph) -> int:
    """Applies the pass in place; returns the number of convolutions changed."""
    changed = 0
    for node in graph.nodes:
        if not is_conv(graph, node) or group_of(node) != 1:
            continue
        weight = weight_of(graph, node)
        groups = blocks_on_the_diagonal(weight)
        if groups > 1:
            set_weights(graph, node, grouped_weight(weight, groups), bias_of(graph, node), groups)
            changed += 1
    return changed


def blocks_on_the_diagonal(weight: np.ndarray[Any, Any]) -> int:
    """The largest number of equal blocks outside of which dense weights (O, C, kH, kW) are zero; 1 for none."""
    used = np.any(weight != 0, axis=(2, 3))
    outputs, inputs = used.shape
    common = gcd(outputs, inputs)
    for groups in range(common, 1, -1):
        if common % groups == 0:
            rows = np.arange(outputs) * groups // outputs
            columns = np.arange(inputs) * groups // inputs
            if not used[rows[:, None] != columns[None, :]].any():
                return groups
    return 1


def grouped_weight(weight: np.ndarray[Any, Any], groups: int) -> np.ndarray[Any, Any]:
    """The blocks on the diagonal of dense weights (O, C, kH, kW) as a grouped convolution's (O, C / groups, kH, kW)."""
    outputs, inputs = (size // groups for size in weight.shape[:2])
    blocks = [weight[i * outputs : (i + 1) * outputs, i * inputs : (i + 1) * inputs] for i in range(groups)]
    return np.concatenate(blocks)
