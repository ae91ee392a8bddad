"""Small graphs for the tests of graph passes, and ways to run and compare them."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from gradseg.graphs.graph import Graph

Nodes = List[Tuple[str, List[str], str, Dict[str, Any]]]
Weights = Dict[str, np.ndarray[Any, Any]]


def model_of(nodes: Nodes, weights: Weights, in_shape: Sequence[int], opset: int = 17) -> onnx.ModelProto:
    """float32 `x` → float32 `y`, whose shape is inferred."""
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [out], name=out, **attributes) for op, inputs, out, attributes in nodes],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(in_shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    model.graph.output[0].CopyFrom(inferred.graph.output[0])
    onnx.checker.check_model(model, full_check=True)
    return model


def passed(model: onnx.ModelProto, change: Callable[[Graph], Any]) -> Tuple[onnx.ModelProto, Any]:
    """(the changed model, checked; what the pass returned)."""
    graph = Graph(model)
    found = change(graph)
    result = graph.to_model()
    onnx.checker.check_model(result, full_check=True)
    return result, found


def unchanged(model: onnx.ModelProto, change: Callable[[Graph], Any]) -> bool:
    result, found = passed(model, change)
    return not found and result.graph.SerializeToString() == Graph(model).to_model().graph.SerializeToString()


def run(model: onnx.ModelProto, x: np.ndarray[Any, Any], optimise: bool = False) -> np.ndarray[Any, Any]:
    options = ort.SessionOptions()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def close(result: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Equal but for the rounding of sums."""
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-5 * max(1.0, np.abs(expected).max()))


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def operators(model: onnx.ModelProto) -> List[str]:
    return [node.op_type for node in model.graph.node]


def groups(model: onnx.ModelProto) -> List[int]:
    """Of its convolutions, in order."""
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    return [next((int(a.i) for a in node.attribute if a.name == "group"), 1) for node in convs]
