"""A deployment-form model in the form that OpenVINO's CPU plugin runs fastest. Needs onnx; no torch, no OpenVINO.

Only what its own optimiser does not find by itself is done here. Grouped 1x1 convolutions stay as they are: as dense
ones, or split and concatenated, they took longer in every precision.
"""

from __future__ import annotations

from typing import Any

from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.columns_head import columns_head
from gradseg.graphs.passes.unshield_floats import unshield_floats


def openvino_form(model: Any) -> Any:
    """onnx.ModelProto (deployment form, FP32 or with Q/DQ) → a new one with the same labels; metadata is kept."""
    graph = Graph(model)
    unshield_floats(graph)
    columns_head(graph)
    return graph.to_model()
