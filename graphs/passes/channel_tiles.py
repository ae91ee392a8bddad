"""Pass: wide tensors are computed and held in halves along the channels, dense convolutions as sums over the halves.

Needs: stretches of the graph whose tensors can be held in `parts` equal parts (see `parts`), with a depthwise
convolution in them, at least one tensor of more than `least_bytes`, and parts of whole blocks of `block` channels.
Promises: each depthwise convolution, ReLU and interpolation reads what was written just before, a half at a time, from
the cache; a dense 1x1 convolution is parts * parts smaller ones, added up. The same multiply-accumulates.
Exact: the same products, added in another order. Proof: tests/test_pass_chains.py.
"""

from __future__ import annotations

from typing import List

import numpy as np
import onnx

from gradseg.graphs.graph import Graph, shapes_of
from gradseg.graphs.passes.convolutions import is_conv, is_depthwise
from gradseg.graphs.passes.parts import Parts


def channel_tiles(graph: Graph, parts: int = 2, least_bytes: int = 6 * 2**20, block: int = 16) -> int:
    """Applies the pass in place; returns the number of operators that are now written once per part."""
    shapes = shapes_of(graph.to_model())
    splitting = Parts(graph, parts)

    def worth(island: List[onnx.NodeProto]) -> bool:
        sizes = [shapes.get(node.output[0], [0]) for node in island]
        wide = max(4 * int(np.prod(size)) for size in sizes) >= least_bytes
        depthwise = any(is_conv(graph, node) and is_depthwise(graph, node) for node in island)
        return wide and depthwise and all(len(size) == 4 and size[1] % (parts * block) == 0 for size in sizes)

    return splitting.write([island for island in splitting.islands() if worth(island)])
