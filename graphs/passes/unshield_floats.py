"""Pass: the copies that keep ONNX Runtime from rounding float weights go, for other engines.

Needs: nothing. Promises: a Max of one input, as `calibration.shield` writes it, is gone and its readers read its input;
where it writes the graph's output it stays. OpenVINO would compute it.
Exact: a Max of one input is a copy. Proof: tests/test_openvino_passes.py.
"""

from __future__ import annotations

from gradseg.graphs.graph import Graph


def unshield_floats(graph: Graph) -> int:
    """Applies the pass in place; returns the number of copies removed."""
    copies = [node for node in graph.nodes if node.op_type == "Max" and len(node.input) == 1]
    removed = 0
    for node in copies:
        if not graph.is_output(node.output[0]):
            graph.remove(node)
            graph.replace_uses(node.output[0], node.input[0])
            removed += 1
    return removed
