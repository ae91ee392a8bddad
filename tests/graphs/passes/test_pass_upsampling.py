"""Deconvolutions as convolutions, and 1x1 convolutions before interpolation, against ONNX Runtime's own operators."""

from __future__ import annotations

from functools import partial
from typing import Any, Dict, List, Optional

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_toys import Nodes, Weights, close, model_of, normal, operators, passed, run, unchanged

from gradseg.graphs.passes.conv_before_resize import conv_before_resize
from gradseg.graphs.passes.deconv_as_conv import deconv_as_conv, phase_taps

# kernel, padding at the beginning, at the end, output_padding: all that double the resolution
SIDES = [(2, 0, 0, 0), (3, 1, 1, 1), (3, 0, 1, 0), (3, 1, 0, 0), (4, 1, 1, 0), (5, 2, 2, 1), (2, 0, 1, 1)]


def deconvolution(rows: Any, columns: Any, relu: bool, bias: bool, seed: int = 0, **more: Any) -> onnx.ModelProto:
    attributes: Dict[str, Any] = {
        "strides": [2, 2],
        "pads": [rows[1], columns[1], rows[2], columns[2]],
        "output_padding": [rows[3], columns[3]],
        **more,
    }
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    nodes: Nodes = [("ConvTranspose", inputs, "c" if relu else "y", attributes)]
    if relu:
        nodes.append(("Relu", ["c"], "y", {}))
    weights = {"w": normal(seed, 5, 3, rows[0], columns[0]), "b": normal(seed, 3 * more.get("group", 1))}
    return model_of(nodes, weights if bias else {"w": weights["w"]}, [1, 5, 6, 7])


@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from(SIDES),
    columns=st.sampled_from(SIDES),
    flags=st.tuples(*[st.booleans()] * 4),
    seed=st.integers(0, 99),
)
def test_deconv_as_conv(rows: Any, columns: Any, flags: Any, seed: int) -> None:
    relu, bias, apart, by_rows = flags
    model = deconvolution(rows, columns, relu, bias, seed)
    made, changed = passed(model, partial(deconv_as_conv, apart=apart, rows=by_rows))
    assert changed == 1
    assert "ConvTranspose" not in operators(made)
    assert ("DepthToSpace" in operators(made)) != by_rows
    x = normal(seed, 1, 5, 6, 7)
    close(run(made, x), run(model, x))


def test_four_small_convolutions_do_no_more_arithmetic_and_even_kernels_stay_in_one() -> None:
    model = deconvolution(SIDES[1], SIDES[1], True, True)
    four, _ = passed(model, partial(deconv_as_conv, apart=True))
    assert operators(four) == ["Conv", "Relu"] * 4 + ["Concat", "DepthToSpace"]
    sizes = {t.name: int(np.prod(t.dims)) for t in four.graph.initializer if len(t.dims) == 4}
    assert sum(sizes.values()) == 5 * 3 * 9
    one, _ = passed(deconvolution(SIDES[4], SIDES[4], False, True), partial(deconv_as_conv, apart=True))
    assert operators(one) == ["Conv", "DepthToSpace"]


def test_taps_of_each_parity() -> None:
    assert phase_taps(2, 0) == ([(0, 0)], [(1, 0)])
    assert phase_taps(3, 1) == ([(1, 0)], [(2, 0), (0, 1)])
    assert phase_taps(4, 1) == ([(3, -1), (1, 0)], [(2, 0), (0, 1)])


@pytest.mark.parametrize(
    "model",
    [
        deconvolution(SIDES[0], SIDES[0], False, True, group=5),
        deconvolution(SIDES[0], SIDES[0], False, True, dilations=[2, 2]),
        deconvolution((3, 0, 0, 0), SIDES[0], False, True),  # one row more than twice as many
        deconvolution(SIDES[0], SIDES[0], False, True, strides=[2, 1]),
    ],
    ids=["groups", "dilated", "larger", "one way"],
)
def test_other_deconvolutions_stay(model: onnx.ModelProto) -> None:
    assert unchanged(model, deconv_as_conv)


def enlarged(
    options: Dict[str, Any],
    scales: Optional[List[float]],
    sizes: Optional[List[int]],
    conv: Dict[str, Any],
    kernel: int = 1,
) -> onnx.ModelProto:
    operands = ["x", "", "scales"] if sizes is None else ["x", "", "", "sizes"]
    nodes: Nodes = [("Resize", operands, "r", options), ("Conv", ["r", "w", "b"], "y", conv)]
    group = conv.get("group", 1)
    weights: Weights = {"w": normal(0, 6, 4 // group, kernel, kernel), "b": normal(0, 6)}
    if sizes is None:
        weights["scales"] = np.float32(scales)
    else:
        weights["sizes"] = np.int64(sizes)
    return model_of(nodes, weights, [1, 4, 5, 6])


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(["linear", "cubic", "nearest"]),
    coordinates=st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]),
    size=st.one_of(st.none(), st.tuples(st.integers(5, 12), st.integers(6, 12))),
    group=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_conv_before_resize(mode: str, coordinates: str, size: Any, group: int, seed: int) -> None:
    options = {"mode": mode, "coordinate_transformation_mode": coordinates}
    sizes = None if size is None else [1, 4, *size]
    model = enlarged(options, [1, 1, 2, 2], sizes, {"group": group})
    made, changed = passed(model, conv_before_resize)
    assert (changed, operators(made)) == (1, ["Conv", "Resize"])
    x = normal(seed, 1, 4, 5, 6)
    close(run(made, x), run(model, x))


LINEAR = {"mode": "linear"}
STAYING = {
    "extrapolates": ({"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}, [1, 1, 2, 2], {}, 1),
    "shrinks": (LINEAR, [1, 1, 0.5, 2], {}, 1),
    "channels": (LINEAR, [1, 1, 2, 2], {"pads": [1, 1, 1, 1]}, 1),
    "strided": (LINEAR, [1, 1, 2, 2], {"strides": [2, 2]}, 1),
    "3x3": (LINEAR, [1, 1, 2, 2], {}, 3),
}


@pytest.mark.parametrize("name", STAYING)
def test_where_it_would_be_another_function_it_stays(name: str) -> None:
    options, scales, conv, kernel = STAYING[name]
    if name == "extrapolates":
        nodes: Nodes = [("Resize", ["x", "roi", "scales"], "r", options), ("Conv", ["r", "w"], "y", {})]
        roi = np.float32([0, 0, 0, 0, 1, 1, 1.2, 1.2])
        weights: Weights = {"w": normal(0, 6, 4, 1, 1), "roi": roi, "scales": np.float32(scales)}
        assert unchanged(model_of(nodes, weights, [1, 4, 5, 6]), conv_before_resize)
        return
    assert unchanged(enlarged(options, scales, None, conv, kernel), conv_before_resize)


def test_an_interpolation_that_others_read_stays() -> None:
    nodes: Nodes = [
        ("Resize", ["x", "", "scales"], "r", {"mode": "linear"}),
        ("Conv", ["r", "w"], "c", {}),
        ("Add", ["r", "c"], "y", {}),
    ]
    weights: Weights = {"scales": np.float32([1, 1, 2, 2]), "w": normal(0, 4, 4, 1, 1)}
    assert unchanged(model_of(nodes, weights, [1, 4, 5, 6]), conv_before_resize)
