"""Pass: a deployment-form FP32 network computes in FP16, for strongly typed TensorRT.

Needs: an unquantised deployment-form graph (uint8 in, uint8 out).
Promises: every float weight becomes float16, rounded once, and the casts at both borders are kept: the frame is cast to
float16, which holds 0..255 exactly, and labels leave through an integer cast as before. Scales of Resize stay float32,
as ONNX wants them. A weight beyond float16's range is refused.
Not exact by nature: activations carry 11 significant bits. Proof: tests/test_export_passes.py (borders, types, labels).
"""

from __future__ import annotations

from typing import Set

import numpy as np
from onnx import TensorProto

from gradseg.calibration.graph import Graph
from gradseg.models.errors import GradsegError

LARGEST = 65504.0


def to_half(graph: Graph) -> int:
    """Applies the pass in place; returns the number of weights converted."""
    kept: Set[str] = set()
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise GradsegError("an INT8 model is not converted to FP16; give its FP32 form")
        if node.op_type == "Resize":
            kept.update(node.input[1:])
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    converted = 0
    for name, value in graph.weights.items():
        if value.dtype != np.float32 or name in kept:
            continue
        if value.size and np.abs(value).max() > LARGEST:
            raise GradsegError(f"{name}: a weight of {np.abs(value).max():.3g} does not fit FP16; use --precision fp32")
        graph.weights[name] = value.astype(np.float16)
        converted += 1
    return converted
