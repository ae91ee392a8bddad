"""Pass: blocks of grouped convolutions that never mix their groups become independent chains, one after another.

Needs: a stretch of the graph whose tensors can all be held as G equal parts along the channels (see `parts`), with
grouped convolutions in it. Without a channel shuffle between them, Conv-modules of G groups are that, whole encoder
stages of them. G is tried from the largest group count, of at most `most`, down.
Promises: the stretch is written G times on 1 / G of the channels each, without Split; a dense convolution that reads
it becomes a sum of G convolutions; for any other reader the parts are concatenated. The same multiply-accumulates, but
a chain's tensors are G times smaller and stay in the cache from one operator to the next.
Exact: the same products; where a dense convolution became a sum, they are added in another order.
Proof: tests/test_pass_chains.py, every architecture, and graphs in which groups mix.
"""

from __future__ import annotations

from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.convolutions import group_of, is_conv, is_depthwise
from gradseg.graphs.passes.parts import Parts


def chains(graph: Graph, most: int = 8) -> int:
    """Applies the pass in place; returns the number of operators that are now written once per group."""
    counts = {group_of(node) for node in graph.nodes if is_conv(graph, node) and not is_depthwise(graph, node)}
    changed = 0
    for count in sorted((count for count in counts if 1 < count <= most), reverse=True):
        parts = Parts(graph, count)
        changed += parts.write([island for island in parts.islands() if any(parts.grouped(node) for node in island)])
    return changed
