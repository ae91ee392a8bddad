"""Pass: a ReLU after a channel concat moves into the branches.

Needs: Relu nodes whose input is a Concat that nothing else reads.
Promises: every branch has its own ReLU, which engines fuse into the convolution before it; in INT8 the concat then
joins tensors of one sign.
Exact: ReLU works on each element alone. Proof: tests/test_export_passes.py, bitwise against the original.
"""

from __future__ import annotations

from gradseg.graphs.graph import Graph


def relu_before_concat(graph: Graph) -> int:
    """Applies the pass in place; returns the number of ReLUs moved."""
    moved = 0
    for relu in [node for node in graph.nodes if node.op_type == "Relu"]:
        concat = graph.producer(relu.input[0])
        if concat is None or concat.op_type != "Concat" or graph.is_output(concat.output[0]):
            continue
        if len(graph.consumers(concat.output[0])) != 1:
            continue
        for index, branch in enumerate(list(concat.input)):
            concat.input[index] = graph.add("Relu", [branch])
        graph.remove(relu)
        concat.output[0] = relu.output[0]
        moved += 1
    return moved
