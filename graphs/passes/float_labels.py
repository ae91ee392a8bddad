"""Pass: labels reach the last Cast, to uint8, as floats.

Needs: a deployment-form graph whose last node is a Cast to uint8. Promises: that Cast reads float32 where it read
int32 or int64. TensorRT 8.5's ONNX parser asserts that uint8 is cast from floats alone, and Identity's documentation
names no other conversion to uint8 up to TensorRT 10 (docs.nvidia.com, operators, Identity).
Exact: labels are 0..255. Proof: tests/test_trt_onnx.py.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from gradseg.graphs.graph import Graph, attribute

INTEGERS = (TensorProto.INT32, TensorProto.INT64)


def float_labels(graph: Graph) -> bool:
    """Applies the pass in place; False if there was nothing to do."""
    last = graph.producer(graph.model.graph.output[0].name)
    if last is None or last.op_type != "Cast" or attribute(last, "to") != TensorProto.UINT8:
        return False
    inferred = onnx.shape_inference.infer_shapes(graph.to_model(), strict_mode=True).graph
    kind = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}.get(last.input[0])
    if kind not in INTEGERS:
        return False
    before = graph.producer(last.input[0])
    if before is not None and before.op_type == "Cast" and len(graph.consumers(last.input[0])) == 1:
        before.attribute[0].i = TensorProto.FLOAT
        return True
    last.input[0] = graph.add("Cast", [last.input[0]], graph.fresh("labels_float"), to=TensorProto.FLOAT)
    return True
