"""Pass: the frame's layout is changed while its pixels are still bytes.

Needs: Casts of a uint8 tensor that one Transpose alone reads.
Promises: Transpose, then Cast: a quarter of the bytes are moved. Not for TensorRT, whose first node must be the Cast.
Exact: both work on each element alone. Proof: tests/test_pass_borders.py, bitwise.
"""

from __future__ import annotations

from onnx import TensorProto

from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import only_reader


def bytes_first(graph: Graph) -> int:
    """Applies the pass in place; returns the number of pairs exchanged."""
    frames = {v.name for v in graph.model.graph.input if v.type.tensor_type.elem_type == TensorProto.UINT8}
    changed = 0
    for cast in [node for node in graph.nodes if node.op_type == "Cast" and node.input[0] in frames]:
        reader = only_reader(graph, cast.output[0])
        if reader is None or reader.op_type != "Transpose" or attribute(cast, "to") != TensorProto.FLOAT:
            continue
        perm = attribute(reader, "perm", None)
        moved = graph.add("Transpose", [cast.input[0]], **({} if perm is None else {"perm": perm}))
        graph.remove(reader)
        cast.input[0], cast.output[0] = moved, reader.output[0]
        changed += 1
    return changed
