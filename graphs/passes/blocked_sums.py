"""Pass: what is added to a convolution's result, and comes from no convolution, goes through a 1x1 max-pool first.

Needs: Add nodes of two tensors of one shape with static channels, a multiple of `block`, one of them a convolution's
that nothing else reads, the other made by an operator that ONNX Runtime keeps in plain NCHW (it is read by a
convolution, too, or it would not matter).
Promises: the max-pool is the identity, but one that ONNX Runtime's CPU runs in the blocked layout of its convolutions
(NCHWc): its result is read in that layout by the sum, which is then done inside the convolution before it, instead of
being reordered to NCHW and back around it.
Exact: the largest of one number is that number. Proof: tests/test_pass_concat.py, bitwise.
"""

from __future__ import annotations

from typing import Set

from gradseg.graphs.graph import Graph, shapes_of
from gradseg.graphs.passes.convolutions import is_conv

BLOCKED = ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool")
PASSING = ("Relu", "Add", "Concat", "Resize")  # run in the layout of what they read


def _is_blocked(graph: Graph, tensor: str) -> bool:
    """Whether ONNX Runtime has this tensor in its blocked layout."""
    maker = graph.producer(tensor)
    if maker is None or maker.op_type not in (*BLOCKED, *PASSING):
        return False
    if maker.op_type == "Conv":
        return is_conv(graph, maker)
    read = maker.input if maker.op_type in ("Add", "Concat") else maker.input[:1]
    return maker.op_type in BLOCKED or all(_is_blocked(graph, name) for name in read)


def blocked_sums(graph: Graph, block: int = 16) -> int:
    """Applies the pass in place; returns the number of tensors that go through a max-pool."""
    sums = [node for node in graph.nodes if node.op_type == "Add"]
    shapes = shapes_of(graph.to_model()) if sums else {}
    done: Set[str] = set()
    for node in sums:
        a, b = node.input
        if len(shapes.get(a, ())) != 4 or shapes.get(a) != shapes.get(b) or shapes[a][1] % block or not shapes[a][1]:
            continue
        for name, other in ((a, b), (b, a)):
            if name in done or _is_blocked(graph, name):
                continue
            if is_conv(graph, graph.producer(other)) and len(graph.consumers(other)) == 1:
                done.add(name)
                pooled = graph.fresh(f"{name}_blocked")
                graph.replace_uses(name, pooled)
                graph.add("MaxPool", [name], pooled, kernel_shape=[1, 1])
    return len(done)
