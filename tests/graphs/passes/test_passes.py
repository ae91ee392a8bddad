"""Each graph pass against what it replaces, on graphs made for it."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.dense_groups import dense_groups
from gradseg.graphs.passes.fold_batchnorm import fold_batchnorm
from gradseg.graphs.passes.fold_input import fold_input
from gradseg.graphs.passes.label_head import label_head
from gradseg.graphs.passes.relu_before_concat import relu_before_concat
from gradseg.graphs.passes.rows_head import rows_head
from gradseg.graphs.passes.to_half import to_half
from gradseg.models.spec import spec_for
from gradseg.runtime.preprocess import normalised_chw

Nodes = List[Tuple[str, List[str], str, Dict[str, Any]]]
HW = (16, 24)


def model_of(
    nodes: Nodes, weights: Dict[str, np.ndarray[Any, Any]], in_shape: List[int], out_shape: List[int]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [out], name=out, **attributes) for op, inputs, out, attributes in nodes],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, in_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def operators(model: onnx.ModelProto) -> List[str]:
    return [node.op_type for node in model.graph.node]


def passed(model: onnx.ModelProto, change: Callable[[Graph], Any]) -> onnx.ModelProto:
    graph = Graph(model)
    change(graph)
    result = graph.to_model()
    onnx.checker.check_model(result, full_check=True)
    return result


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return rng.normal(size=shape).astype(np.float32)


def bn_weights(rng: np.random.Generator, channels: int, prefix: str = "bn") -> Dict[str, np.ndarray[Any, Any]]:
    return {
        f"{prefix}_g": normal(rng, channels),  # negative scales too
        f"{prefix}_b": normal(rng, channels),
        f"{prefix}_m": normal(rng, channels),
        f"{prefix}_v": rng.uniform(0.1, 2.0, channels).astype(np.float32),
    }


def bn(inputs: str, output: str, prefix: str = "bn") -> Tuple[str, List[str], str, Dict[str, Any]]:
    names = [inputs, *(f"{prefix}_{key}" for key in "gbmv")]
    return ("BatchNormalization", names, output, {"epsilon": 1e-3})


def graph_conv(rng: np.random.Generator) -> Tuple[Nodes, Dict[str, Any], int]:
    nodes: Nodes = [("Conv", ["x", "w"], "c", {"pads": [1, 1, 1, 1], "group": 2}), bn("c", "y")]
    return nodes, {"w": normal(rng, 8, 2, 3, 3), **bn_weights(rng, 8)}, 8


def graph_deconv(rng: np.random.Generator) -> Tuple[Nodes, Dict[str, Any], int]:
    attributes = {"pads": [1, 1, 1, 1], "group": 2}
    nodes: Nodes = [("ConvTranspose", ["x", "w", "b"], "c", attributes), bn("c", "y")]
    return nodes, {"w": normal(rng, 4, 3, 3, 3), "b": normal(rng, 6), **bn_weights(rng, 6)}, 6


def graph_concat(rng: np.random.Generator) -> Tuple[Nodes, Dict[str, Any], int]:
    nodes: Nodes = [
        ("Conv", ["x", "w", "b"], "c", {"pads": [1, 1, 1, 1]}),
        ("MaxPool", ["x"], "p", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("Concat", ["c", "p"], "cat", {"axis": 1}),
        bn("cat", "y"),
    ]
    return nodes, {"w": normal(rng, 5, 4, 3, 3), "b": normal(rng, 5), **bn_weights(rng, 9)}, 9


def graph_shuffle(rng: np.random.Generator) -> Tuple[Nodes, Dict[str, Any], int]:
    nodes: Nodes = [
        ("Conv", ["x", "w"], "c", {"group": 2}),
        ("Reshape", ["c", "split"], "r", {}),
        ("Transpose", ["r"], "t", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", ["t", "join"], "s", {}),
        bn("s", "y"),
    ]
    shapes = {"split": np.array([1, 2, 6, *HW]), "join": np.array([1, 12, *HW])}
    return nodes, {"w": normal(rng, 12, 2, 1, 1), **shapes, **bn_weights(rng, 12)}, 12


def graph_shared(rng: np.random.Generator) -> Tuple[Nodes, Dict[str, Any], int]:
    """The convolution's output is read twice, once without the BatchNormalization: it must not be scaled."""
    nodes: Nodes = [("Conv", ["x", "w"], "c", {}), bn("c", "n"), ("Add", ["c", "n"], "y", {})]
    return nodes, {"w": normal(rng, 6, 4, 1, 1), **bn_weights(rng, 6)}, 6


def graph_chain(rng: np.random.Generator) -> Tuple[Nodes, Dict[str, Any], int]:
    """Two in a row, then one behind a ReLU, which nothing can be pushed through."""
    nodes: Nodes = [("Conv", ["x", "w"], "c", {}), bn("c", "n"), bn("n", "o", "two"), ("Relu", ["o"], "r", {})]
    nodes.append(bn("r", "y", "three"))
    weights = {"w": normal(rng, 6, 4, 1, 1), **bn_weights(rng, 6), **bn_weights(rng, 6, "two")}
    return nodes, {**weights, **bn_weights(rng, 6, "three")}, 6


def graph_input(rng: np.random.Generator) -> Tuple[Nodes, Dict[str, Any], int]:
    return [bn("x", "y")], bn_weights(rng, 4), 4


GRAPHS = [graph_conv, graph_deconv, graph_concat, graph_shuffle, graph_shared, graph_chain, graph_input]


@pytest.mark.parametrize("build", GRAPHS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_fold_batchnorm_keeps_the_function(build: Callable[..., Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes, weights, channels = build(rng)
    model = model_of(nodes, weights, [1, 4, *HW], [1, channels, *HW])
    folded = passed(model, fold_batchnorm)
    assert "BatchNormalization" not in operators(folded)
    x = normal(rng, 1, 4, *HW)
    expected = run(model, x)
    np.testing.assert_allclose(run(folded, x), expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


def test_fold_batchnorm_leaves_no_extra_operator_where_it_can_be_absorbed() -> None:
    rng = np.random.default_rng(0)
    for build, expected in (
        (graph_conv, ["Conv"]),
        (graph_deconv, ["ConvTranspose"]),
        (graph_shuffle, ["Conv", "Reshape", "Transpose", "Reshape"]),
        (graph_concat, ["Conv", "MaxPool", "Conv", "Concat"]),
    ):
        nodes, weights, channels = build(rng)
        model = model_of(nodes, weights, [1, 4, *HW], [1, channels, *HW])
        assert operators(passed(model, fold_batchnorm)) == expected


def test_relu_before_concat_is_bitwise_equal() -> None:
    rng = np.random.default_rng(1)
    nodes: Nodes = [
        ("Conv", ["x", "w"], "c", {}),
        ("Concat", ["c", "x"], "cat", {"axis": 1}),
        ("Relu", ["cat"], "y", {}),
    ]
    model = model_of(nodes, {"w": normal(rng, 3, 4, 1, 1)}, [1, 4, *HW], [1, 7, *HW])
    moved = passed(model, relu_before_concat)
    assert operators(moved) == ["Conv", "Relu", "Relu", "Concat"]
    x = normal(rng, 1, 4, *HW)
    np.testing.assert_array_equal(run(moved, x), run(model, x))


def test_relu_stays_where_the_concat_is_read_by_others() -> None:
    nodes: Nodes = [
        ("Concat", ["x", "x"], "cat", {"axis": 1}),
        ("Relu", ["cat"], "r", {}),
        ("Add", ["cat", "r"], "y", {}),
    ]
    model = model_of(nodes, {}, [1, 4, *HW], [1, 8, *HW])
    assert operators(passed(model, relu_before_concat)) == ["Concat", "Relu", "Add"]


def input_graphs(rng: np.random.Generator) -> Dict[str, Tuple[Nodes, Dict[str, Any], int]]:
    """What can stand at a network's input, each with 4 output channels at full size."""
    w3, w1, dw = normal(rng, 4, 3, 3, 3), normal(rng, 4, 3, 1, 1), normal(rng, 6, 1, 1, 1)
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    padded = {"pads": [1, 1, 1, 1]}
    return {
        "padded": ([("Conv", ["x", "w"], "y", padded)], {"w": w3}, 4),
        "unpadded": ([("Conv", ["x", "w", "b"], "y", {})], {"w": w1, "b": normal(rng, 4)}, 4),
        "depthwise": ([("Conv", ["x", "w"], "y", {"group": 3})], {"w": dw}, 6),
        "pool": ([("MaxPool", ["x"], "p", pool), ("Conv", ["p", "w"], "y", padded)], {"w": w3}, 4),
        "pool-concat": (
            [
                ("Conv", ["x", "w"], "c", padded),
                ("MaxPool", ["x"], "p", pool),
                ("Conv", ["p", "s", "b"], "q", {"group": 3}),
                ("Concat", ["c", "q"], "y", {"axis": 1}),
            ],
            {"w": w3, "s": normal(rng, 3, 1, 1, 1), "b": normal(rng, 3)},
            7,
        ),
        "other": ([("Sigmoid", ["x"], "y", {})], {}, 3),
    }


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(input_graphs(np.random.default_rng(0)))),
    seed=st.integers(0, 1000),
    order=st.sampled_from(["rgb", "bgr"]),
    mean=st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(*[st.floats(0, 1)] * 3)),
    std=st.tuples(*[st.floats(0.1, 1.5)] * 3),
)
def test_fold_input_equals_the_preprocessing(
    kind: str, seed: int, order: str, mean: Tuple[float, ...], std: Tuple[float, ...]
) -> None:
    rng = np.random.default_rng(seed)
    nodes, weights, channels = input_graphs(rng)[kind]
    model = model_of(nodes, weights, [1, 3, *HW], [1, channels, *HW])
    spec = spec_for("erfnet", input_hw=HW, mean=mean, std=std, color_order=order)
    folded = passed(model, lambda graph: fold_input(graph, spec))
    frame = rng.integers(0, 256, (1, *HW, 3), dtype=np.uint8)
    expected = run(model, normalised_chw(frame, spec))
    np.testing.assert_allclose(run(folded, frame), expected, rtol=1e-3, atol=2e-5 * max(1.0, np.abs(expected).max()))
    assert folded.graph.node[0].op_type == "Cast"
    assert folded.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_fold_input_leaves_nothing_of_the_normalisation_when_the_mean_is_zero() -> None:
    nodes, weights, channels = input_graphs(np.random.default_rng(0))["pool-concat"]
    model = model_of(nodes, weights, [1, 3, *HW], [1, channels, *HW])
    folded = passed(model, lambda graph: fold_input(graph, spec_for("erfnet", input_hw=HW)))
    assert operators(folded) == ["Cast", "Transpose", "Conv", "MaxPool", "Conv", "Concat"]


def head_model(rng: np.random.Generator, classes: int, kernel: int, tied: bool) -> onnx.ModelProto:
    """Deconvolution logits; with `tied`, small whole numbers, so that equal largest logits are common and exact."""

    def values(*shape: int) -> np.ndarray[Any, Any]:
        return rng.integers(-1, 2, shape).astype(np.float32) if tied else normal(rng, *shape)

    pad = (kernel - 2) // 2
    nodes: Nodes = [("ConvTranspose", ["x", "w", "b"], "y", {"strides": [2, 2], "pads": [pad] * 4})]
    weights = {"w": values(4, classes, kernel, kernel), "b": values(classes)}
    return model_of(nodes, weights, [1, 4, *HW], [1, classes, 2 * HW[0], 2 * HW[1]])


@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("classes", [2, 11, 200])
def test_label_head_is_argmax(kernel: int, tied: bool, classes: int) -> None:
    rng = np.random.default_rng(classes)
    model = head_model(rng, classes, kernel, tied)
    labels = passed(model, lambda graph: label_head(graph, [1, classes, 2 * HW[0], 2 * HW[1]]))
    assert labels.graph.node[-1].op_type == "Cast"
    assert ("ConvTranspose" in operators(labels)) == (kernel == 4)
    x = rng.integers(-2, 3, (1, 4, *HW)).astype(np.float32) if tied else normal(rng, 1, 4, *HW)
    logits = run(model, x)
    if tied:
        top = np.sort(logits, axis=1)
        assert (top[:, -1] == top[:, -2]).any(), "no ties to test"
    changed = []
    rows = passed(labels, lambda graph: changed.append(rows_head(graph)))
    assert changed == [kernel == 2]
    for model_ in (labels, rows):
        result = run(model_, x)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, logits.argmax(axis=1))


def test_dense_groups_keeps_the_function_and_leaves_depthwise_alone() -> None:
    rng = np.random.default_rng(3)
    nodes: Nodes = [
        ("Conv", ["x", "w", "b"], "c", {"group": 2}),
        ("Conv", ["c", "d"], "e", {"group": 8}),
        ("Conv", ["e", "f"], "y", {"group": 4}),
    ]
    weights = {"w": normal(rng, 8, 2, 1, 1), "b": normal(rng, 8), "d": normal(rng, 8, 1, 1, 1)}
    weights["f"] = normal(rng, 8, 2, 1, 1)
    model = model_of(nodes, weights, [1, 4, *HW], [1, 8, *HW])
    dense = passed(model, dense_groups)
    groups = [next((a.i for a in node.attribute if a.name == "group"), 1) for node in dense.graph.node]
    assert groups == [1, 8, 1]
    x = normal(rng, 1, 4, *HW)
    np.testing.assert_allclose(run(dense, x), run(model, x), rtol=1e-4, atol=1e-5)


# ---- FP16


def deployed(nodes: Nodes, weights: Dict[str, np.ndarray[Any, Any]], channels: int) -> onnx.ModelProto:
    """A small deployment-form network: uint8 frame → labels of `channels` classes."""
    spec = spec_for("erfnet", input_hw=HW)

    def deploy(graph: Graph) -> None:
        fold_input(graph, spec)
        label_head(graph, [1, channels, *HW])

    return passed(model_of(nodes, weights, [1, 3, *HW], [1, channels, *HW]), deploy)


def types_of(model: onnx.ModelProto) -> Dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def some_frame(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (1, *HW, 3), dtype=np.uint8)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(sorted(input_graphs(np.random.default_rng(0)))),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_to_half_with_any_nodes_kept(kind: str, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    model = deployed(*input_graphs(rng)[kind])
    names = [node.name for node in model.graph.node]
    keep = data.draw(st.sets(st.sampled_from(names)))
    half = passed(model, lambda graph: to_half(graph, keep))
    assert operators(half)[0] == operators(half)[-1] == "Cast"
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    frame = some_frame(seed)
    assert (run(half, frame) == run(model, frame)).mean() > 0.95  # noise: the logits lie close together
    whole = passed(model, lambda graph: to_half(graph, names))
    assert TensorProto.FLOAT16 not in types_of(whole).values()
    np.testing.assert_array_equal(run(whole, frame), run(model, frame))


def test_to_half_converts_weights_and_keeps_the_borders() -> None:
    model = deployed(*input_graphs(np.random.default_rng(4))["padded"])
    counts: List[int] = []
    half = passed(model, lambda graph: counts.append(to_half(graph)))
    assert set(types_of(half).values()) <= {TensorProto.FLOAT16, TensorProto.INT64}
    assert operators(half) == operators(model)  # no Cast is added where nothing is kept
    assert counts == [6]  # Cast, Transpose, Conv, ArgMax, Cast, Cast
    again = passed(half, to_half)
    assert again.SerializeToString() == half.SerializeToString()


def test_to_half_puts_one_cast_per_tensor_around_what_is_kept() -> None:
    nodes: Nodes = [
        ("Conv", ["x", "w"], "c", {}),
        ("Relu", ["c"], "r", {}),
        ("Sigmoid", ["r"], "s", {}),
        ("Add", ["r", "s"], "a", {}),
        ("Mul", ["a", "r"], "y", {}),
    ]
    model = model_of(nodes, {"w": normal(np.random.default_rng(0), 4, 3, 1, 1)}, [1, 3, *HW], [1, 4, *HW])
    model = passed(model, lambda graph: label_head(graph, [1, 4, *HW]))
    half = passed(model, lambda graph: to_half(graph, ["s", "a"]))
    assert operators(half) == [
        "Cast", "Conv", "Relu", "Cast", "Sigmoid", "Add", "Cast", "Mul", "ArgMax", "Cast", "Cast",
    ]  # fmt: skip


def test_to_half_keeps_what_onnx_wants_in_float32_and_saturates_limits() -> None:
    nodes: Nodes = [
        ("Clip", ["x", "low", "high"], "c", {}),
        ("Resize", ["c", "", "scales"], "y", {"mode": "nearest"}),
    ]
    weights = {"low": np.float32(0), "high": np.float32(3.4e38), "scales": np.float32([1, 1, 2, 2])}
    model = model_of(nodes, weights, [1, 4, *HW], [1, 4, 2 * HW[0], 2 * HW[1]])
    model = passed(model, lambda graph: label_head(graph, [1, 4, 2 * HW[0], 2 * HW[1]]))
    half = passed(model, to_half)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in half.graph.initializer}
    assert found["scales"].dtype == np.float32
    assert found["high_half"] == np.float16(65504)
    x = normal(np.random.default_rng(0), 1, 4, *HW)
    assert (run(half, x) == run(model, x)).mean() > 0.999
