"""Pass: convolutions that are left in float between INT8 neighbours stay in float. For ONNX Runtime on CPUs.

Needs: Q/DQ pairs as `quantise` writes them. Promises: the same function; a Max of one input, which is a copy, stands
before every convolution or matrix product with float weights that reads a DequantizeLinear and whose result, after its
ReLU, goes to a QuantizeLinear. Without it ONNX Runtime (seen with 1.31, not with 1.22 and older; its
WeightBiasQuantization) rounds such weights to int8 by itself, with one scale per tensor.
Exact: a copy changes nothing. Proof: tests/test_sensitivity.py.
"""

from __future__ import annotations

from gradseg.calibration.qdq.plan import COMPUTE, result_of
from gradseg.graphs.graph import Graph


def shield_floats(graph: Graph) -> int:
    """Applies the pass in place; returns the number of operators shielded."""
    shielded = 0
    for node in list(graph.nodes):
        if node.op_type not in (*COMPUTE, "Gemm") or node.input[1] not in graph.weights:
            continue
        before = graph.producer(node.input[0])
        after = graph.consumers(result_of(graph, node))
        if (
            before is not None
            and before.op_type == "DequantizeLinear"
            and any(reader.op_type == "QuantizeLinear" for reader in after)
        ):
            node.input[0] = graph.add("Max", [node.input[0]], graph.fresh(f"{node.input[0]}_float"))
            shielded += 1
    return shielded
