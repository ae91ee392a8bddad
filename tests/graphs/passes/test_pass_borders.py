"""The frame's way in and the labels' way out, in the forms for ONNX Runtime's CPU."""

from __future__ import annotations

from functools import partial
from typing import Any, List, Tuple

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_toys import Nodes, Weights, close, model_of, normal, operators, passed, run, unchanged

from gradseg.graphs.passes.bytes_first import bytes_first
from gradseg.graphs.passes.even_head import even_head
from gradseg.graphs.passes.flat_frame import flat_frame
from gradseg.graphs.passes.fold_input import fold_input
from gradseg.graphs.passes.label_head import label_head
from gradseg.models.spec import spec_for

HW = (16, 24)


def head(classes: int, tied: bool, hw: Tuple[int, int] = HW, bias: bool = True) -> Tuple[onnx.ModelProto, Any, Any]:
    """(labels of 2x2 deconvolution logits, their input, the logits); `tied`: small whole numbers, so many are equal."""
    rng = np.random.default_rng(classes)

    def values(*shape: int) -> np.ndarray[Any, Any]:
        return rng.integers(-1, 2, shape).astype(np.float32) if tied else normal(classes, *shape)

    weights: Weights = {"w": values(4, classes, 2, 2)}
    if bias:
        weights["b"] = values(classes)
    model = model_of([("ConvTranspose", ["x", *weights], "y", {"strides": [2, 2]})], weights, [1, 4, *hw])
    x = rng.integers(-2, 3, (1, 4, *hw)).astype(np.float32) if tied else normal(0, 1, 4, *hw)
    labels, _ = passed(model, lambda graph: label_head(graph, [1, classes, 2 * hw[0], 2 * hw[1]]))
    return labels, x, run(model, x)


@settings(max_examples=25, deadline=None)
@given(
    classes=st.sampled_from([2, 11, 20, 200]),
    tied=st.booleans(),
    bias=st.booleans(),
    most=st.sampled_from([1, 4000, 2**20]),
    height=st.integers(1, 13),
)
def test_even_head_is_argmax(classes: int, tied: bool, bias: bool, most: int, height: int) -> None:
    model, x, logits = head(classes, tied, (height, 6), bias)
    made, changed = passed(model, partial(even_head, most_bytes=most))
    assert changed
    result = run(made, x)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, logits.argmax(axis=1))


def test_stripes_hold_so_many_bytes_of_logits() -> None:
    model, _, _ = head(5, False)
    row = 4 * 5 * HW[1] * 4
    for most, stripes in ((16 * row, 1), (8 * row, 2), (5 * row, 4), (row, 16), (row - 1, 1)):
        made, _ = passed(model, partial(even_head, most_bytes=most))
        assert operators(made).count("ArgMax") == stripes


def test_other_heads_stay() -> None:
    model = model_of([("Conv", ["x", "w"], "y", {})], {"w": normal(0, 3, 4, 1, 1)}, [1, 4, *HW])
    labels, _ = passed(model, lambda graph: label_head(graph, [1, 3, *HW]))
    assert unchanged(labels, even_head)


def camera(kind: str, spec: Any, seed: int = 0) -> onnx.ModelProto:
    """A network's beginning, taking frames as the spec says."""
    stride: Any = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes: Nodes = {
        "conv": [("Conv", ["x", "w", "b"], "y", stride)],
        "wide": [("Conv", ["x", "k"], "y", {"strides": [1, 2], "pads": [1, 2, 1, 2], "dilations": [2, 1]})],
        "two": [("Conv", ["x", "w"], "c", stride), ("Conv", ["x", "w"], "d", stride), ("Add", ["c", "d"], "y", {})],
        "pool": [
            ("Conv", ["x", "w"], "c", stride),
            ("MaxPool", ["x"], "m", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Conv", ["m", "v"], "p", {}),
            ("Concat", ["c", "p"], "y", {"axis": 1}),
        ],
        "columns": [("Conv", ["x", "w"], "y", {"dilations": [1, 2]})],
    }[kind]
    known: Weights = {"w": normal(seed, 6, 3, 3, 3), "b": normal(seed, 6), "k": normal(seed, 4, 3, 3, 5)}
    known["v"] = normal(seed, 2, 3, 1, 1)
    used = {name for _, inputs, _, _ in nodes for name in inputs}
    model = model_of(nodes, {k: v for k, v in known.items() if k in used}, [1, 3, *HW])
    return passed(model, lambda graph: fold_input(graph, spec))[0]


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["conv", "wide", "two"]),
    mean=st.sampled_from([(0.0, 0.0, 0.0), (0.4, 0.5, 0.3)]),
    order=st.sampled_from(["rgb", "bgr"]),
    seed=st.integers(0, 99),
)
def test_flat_frame(kind: str, mean: Any, order: str, seed: int) -> None:
    spec = spec_for("erfnet", input_hw=HW, mean=mean, std=(0.2, 0.3, 0.25), color_order=order)
    model = camera(kind, spec, seed)
    made, changed = passed(model, flat_frame)
    assert changed
    assert "Transpose" not in operators(made)
    frame = np.random.default_rng(seed).integers(0, 256, (1, *HW, 3), dtype=np.uint8)
    close(run(made, frame), run(model, frame))


@pytest.mark.parametrize("kind", ["pool", "columns"])
def test_frames_that_others_read_are_transposed(kind: str) -> None:
    assert unchanged(camera(kind, spec_for("erfnet", input_hw=HW)), flat_frame)


def test_bytes_first_is_bitwise_equal() -> None:
    model = camera("pool", spec_for("erfnet", input_hw=HW))
    made, changed = passed(model, bytes_first)
    begin: List[str] = operators(made)[:2]
    assert (changed, begin) == (1, ["Transpose", "Cast"])
    frame = np.random.default_rng(0).integers(0, 256, (1, *HW, 3), dtype=np.uint8)
    np.testing.assert_array_equal(run(made, frame), run(model, frame))
    assert unchanged(made, bytes_first)
