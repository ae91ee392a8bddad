"""The passes of OpenVINO's form, each against what it replaces, in ONNX Runtime and in OpenVINO."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from test_passes import HW, Nodes, head_model, model_of, normal, operators, passed, run

from gradseg.export.openvino_ir.make import openvino_form
from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.columns_head import columns_head
from gradseg.graphs.passes.label_head import label_head
from gradseg.graphs.passes.rows_head import rows_head
from gradseg.graphs.passes.unshield_floats import unshield_floats


def in_openvino(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    openvino = pytest.importorskip("openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)
    return np.array(compiled([x])[0])


def inputs(rng: np.random.Generator, tied: bool) -> np.ndarray[Any, Any]:
    return rng.integers(-2, 3, (1, 4, *HW)).astype(np.float32) if tied else normal(rng, 1, 4, *HW)


def labelled(model: onnx.ModelProto, classes: int) -> onnx.ModelProto:
    return passed(model, lambda graph: label_head(graph, [1, classes, 2 * HW[0], 2 * HW[1]]))


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("classes", [2, 11, 200])
def test_columns_head_is_argmax(classes: int, tied: bool, rows: bool) -> None:
    rng = np.random.default_rng(classes)
    model = head_model(rng, classes, 2, tied)
    head = labelled(model, classes)
    if rows:
        head = passed(head, rows_head)
    changed = []
    columns = passed(head, lambda graph: changed.append(columns_head(graph)))
    assert changed == [True]
    assert operators(columns).count("MatMul") == 1 and not {"Conv", "Gemm"} & set(operators(columns))
    x = inputs(rng, tied)
    expected = run(model, x).argmax(axis=1)
    for result in (run(columns, x), in_openvino(columns, x)):
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_columns_head_for_any_size(classes: int, width: int, high: int, wide: int, biased: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = {"w": rng.integers(-1, 2, (width, classes, 2, 2)).astype(np.float32)}
    if biased:
        weights["b"] = rng.integers(-1, 2, classes).astype(np.float32)
    nodes: Nodes = [("ConvTranspose", ["x", *weights], "y", {"strides": [2, 2]})]
    model = model_of(nodes, weights, [1, width, high, wide], [1, classes, 2 * high, 2 * wide])
    head = passed(model, lambda graph: label_head(graph, [1, classes, 2 * high, 2 * wide]))
    columns = passed(head, columns_head)
    assert "MatMul" in operators(columns)
    x = rng.integers(-2, 3, (1, width, high, wide)).astype(np.float32)
    np.testing.assert_array_equal(run(columns, x), run(model, x).argmax(axis=1))


def test_columns_head_leaves_other_ends_alone() -> None:
    rng = np.random.default_rng(0)
    other = labelled(head_model(rng, 5, 4, False), 5)
    graph = Graph(other)
    assert columns_head(graph) is False
    assert operators(graph.to_model()) == operators(other)
    read_twice = Graph(labelled(head_model(rng, 5, 2, False), 5))
    conv = next(node for node in read_twice.nodes if node.op_type == "Conv")
    read_twice.nodes.append(helper.make_node("Relu", [conv.output[0]], ["seen"], name="seen"))
    assert columns_head(read_twice) is False


@pytest.mark.parametrize("what", ["group", "pads", "kernel"])
def test_columns_head_wants_a_plain_1x1_convolution(what: str) -> None:
    graph = Graph(labelled(head_model(np.random.default_rng(0), 5, 2, False), 5))
    conv = next(node for node in graph.nodes if node.op_type == "Conv")
    if what == "kernel":
        graph.weights[conv.input[1]] = np.zeros((20, 4, 3, 3), np.float32)
    else:
        conv.attribute.append(helper.make_attribute(what, 2 if what == "group" else [1, 1, 1, 1]))
    assert columns_head(graph) is False


def test_unshield_floats_takes_copies_away_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    nodes: Nodes = [
        ("Max", ["x"], "copy", {}),
        ("Relu", ["copy"], "r", {}),
        ("Max", ["copy", "r"], "real", {}),
        ("Max", ["real"], "y", {}),
    ]
    model = model_of(nodes, {}, [1, 4, *HW], [1, 4, *HW])
    found: list[Optional[int]] = []
    bare = passed(model, lambda graph: found.append(unshield_floats(graph)))
    assert found == [1] and operators(bare) == ["Relu", "Max", "Max"]
    x = normal(rng, 1, 4, *HW)
    np.testing.assert_array_equal(run(bare, x), run(model, x))


def test_the_form_keeps_metadata_and_the_model_given() -> None:
    model = labelled(head_model(np.random.default_rng(0), 5, 2, False), 5)
    entry = model.metadata_props.add()
    entry.key, entry.value = "gradseg.precision", "fp32"
    before = model.SerializeToString()
    made = openvino_form(model)
    assert [(e.key, e.value) for e in made.metadata_props] == [("gradseg.precision", "fp32")]
    assert model.SerializeToString() == before and "MatMul" in operators(made)
