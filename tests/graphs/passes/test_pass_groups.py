"""Grouped convolutions in other forms: true groups, wider groups, one dense convolution per group."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_toys import Nodes, close, groups, model_of, normal, operators, passed, run, unchanged

from gradseg.graphs.passes.dense_groups import dense_groups
from gradseg.graphs.passes.split_groups import split_groups
from gradseg.graphs.passes.true_groups import true_groups
from gradseg.graphs.passes.wide_groups import wide_groups

SHAPES = st.tuples(st.integers(2, 6), st.integers(1, 5), st.integers(2, 5), st.sampled_from([1, 3]))


def grouped(group: int, outputs: int, inputs: int, kernel: int, seed: int, bias: bool = True) -> onnx.ModelProto:
    nodes: Nodes = [
        ("Conv", ["x", "w", "b"] if bias else ["x", "w"], "c", {"group": group, "pads": [kernel // 2] * 4}),
        ("Relu", ["c"], "y", {}),
    ]
    weights = {"w": normal(seed, group * outputs, inputs, kernel, kernel), "b": normal(seed, group * outputs)}
    return model_of(nodes, weights if bias else {"w": weights["w"]}, [1, group * inputs, 6, 8])


def source(model: onnx.ModelProto, seed: int = 0) -> np.ndarray[Any, Any]:
    return normal(seed, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim))


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), bias=st.booleans())
def test_dense_and_back_to_true_groups(shape: tuple[int, int, int, int], seed: int, bias: bool) -> None:
    model = grouped(*shape, seed, bias)
    dense, _ = passed(model, dense_groups)
    assert groups(dense) == [1]
    again, changed = passed(dense, true_groups)
    assert (changed, groups(again)) == (1, groups(model))
    x = source(model)
    np.testing.assert_array_equal(run(again, x), run(model, x))
    assert unchanged(again, true_groups)


def test_true_groups_takes_the_finest_blocks_and_leaves_full_matrices() -> None:
    weight = np.kron(np.eye(6), np.ones((2, 1))).astype(np.float32)[:, :, None, None]
    model = model_of([("Conv", ["x", "w"], "y", {})], {"w": weight}, [1, 6, 4, 4])
    assert groups(passed(model, true_groups)[0]) == [6]
    weight[0, 5] = 1
    assert unchanged(model_of([("Conv", ["x", "w"], "y", {})], {"w": weight}, [1, 6, 4, 4]), true_groups)
    computed: Nodes = [("Relu", ["w"], "v", {}), ("Conv", ["x", "v"], "y", {})]
    assert unchanged(model_of(computed, {"w": weight}, [1, 6, 4, 4]), true_groups)


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), bias=st.booleans())
def test_split_groups(shape: tuple[int, int, int, int], seed: int, bias: bool) -> None:
    model = grouped(*shape, seed, bias)
    split, changed = passed(model, split_groups)
    assert changed == 1
    assert operators(split) == ["Split", *["Conv"] * shape[0], "Concat", "Relu"]
    x = source(model)
    close(run(split, x), run(model, x))


@pytest.mark.parametrize(
    ("group", "width", "expected"), [(8, 8, 4), (8, 16, 8), (2, 4, None), (4, 4, 1), (6, 8, 3), (3, 16, 3)]
)
def test_wide_groups(group: int, width: int, expected: Optional[int]) -> None:
    model = grouped(group, width, width, 1, 0)
    wide, _ = passed(model, wide_groups)
    assert groups(wide) == [group if expected is None else expected]
    x = source(model)
    close(run(wide, x), run(model, x))


@pytest.mark.parametrize("change", [split_groups, wide_groups, dense_groups])
def test_depthwise_and_dense_ones_stay(change: object) -> None:
    nodes: Nodes = [("Conv", ["x", "d"], "e", {"group": 8}), ("Conv", ["e", "w"], "y", {})]
    model = model_of(nodes, {"d": normal(0, 8, 1, 1, 1), "w": normal(1, 8, 8, 1, 1)}, [1, 8, 4, 4])
    assert unchanged(model, change)  # type: ignore[arg-type]
