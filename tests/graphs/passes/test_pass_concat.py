"""Concats as sums, and sums in ONNX Runtime's blocked layout."""

from __future__ import annotations

from typing import Any, Dict

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_toys import Nodes, Weights, close, model_of, normal, operators, passed, run, unchanged

from gradseg.graphs.passes.blocked_sums import blocked_sums
from gradseg.graphs.passes.concat_as_sum import concat_as_sum

POOL: Dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}


def downsampler(widths: tuple[int, ...], relu: str, bias: bool, depthwise: bool, seed: int = 0) -> onnx.ModelProto:
    """A strided convolution beside pooled branches. relu: "all", "none" or "first"."""
    nodes: Nodes = [("MaxPool", ["x"], "m", POOL)]
    weights: Weights = {"w0": normal(seed, widths[0], 3, 3, 3)}
    nodes.append(("Conv", ["x", "w0"], "c0", {"strides": [2, 2], "pads": [1, 1, 1, 1]}))
    for index, width in enumerate(widths[1:], 1):
        group = 3 if depthwise else 1
        weights[f"w{index}"] = normal(seed + index, width, 3 // group, 1, 1)
        nodes.append(("Conv", ["m", f"w{index}"], f"c{index}", {"group": group}))
    if bias:
        for index, width in enumerate(widths):
            weights[f"b{index}"] = normal(seed + index, width)
            nodes[index + 1][1].append(f"b{index}")
    tensors = []
    for index in range(len(widths)):
        with_relu = relu == "all" or (relu == "first" and index == 0)
        if with_relu:
            nodes.append(("Relu", [f"c{index}"], f"r{index}", {}))
        tensors.append(f"{'r' if with_relu else 'c'}{index}")
    nodes += [("Concat", tensors, "y", {"axis": 1})]
    return model_of(nodes, weights, [1, 3, 8, 10])


@settings(max_examples=25, deadline=None)
@given(
    widths=st.sampled_from([(13, 3), (5, 3, 6), (29, 3)]),
    relu=st.sampled_from(["all", "none"]),
    bias=st.booleans(),
    depthwise=st.booleans(),
    seed=st.integers(0, 99),
)
def test_concat_as_sum(widths: tuple[int, ...], relu: str, bias: bool, depthwise: bool, seed: int) -> None:
    model = downsampler(widths, relu, bias, depthwise, seed)
    made, changed = passed(model, concat_as_sum)
    assert changed == 1
    assert operators(made).count("Add") == len(widths) - 1
    assert "Concat" not in operators(made)
    x = normal(seed, 1, 3, 8, 10)
    np.testing.assert_array_equal(run(made, x), run(model, x))
    close(run(made, x, optimise=True), run(model, x))


@pytest.mark.parametrize(
    "model",
    [
        downsampler((16, 32), "all", True, False),  # whole blocks
        downsampler((13, 3), "first", True, False),
        downsampler((14, 3), "all", True, False),
        model_of([("Concat", ["x", "x"], "y", {"axis": 1})], {}, [1, 3, 4, 4]),
    ],
    ids=["blocks", "one relu", "no room", "no convolutions"],
)
def test_other_concats_stay(model: onnx.ModelProto) -> None:
    assert unchanged(model, concat_as_sum)


def test_a_branch_that_others_read_stays() -> None:
    nodes: Nodes = [
        ("Conv", ["x", "w"], "c", {}),
        ("Conv", ["x", "v"], "d", {}),
        ("Concat", ["c", "d"], "e", {"axis": 1}),
        ("Concat", ["e", "c"], "y", {"axis": 1}),
    ]
    model = model_of(nodes, {"w": normal(0, 5, 3, 1, 1), "v": normal(1, 3, 3, 1, 1)}, [1, 3, 4, 4])
    assert unchanged(model, concat_as_sum)


def residual(maker: str, channels: int = 16) -> onnx.ModelProto:
    """A block whose input comes from an operator that ONNX Runtime runs in NCHW, or from a convolution."""
    first: Nodes = {
        "deconvolution": [("ConvTranspose", ["x", "u"], "a", {"strides": [2, 2]}), ("Relu", ["a"], "b", {})],
        "interleaved": [("DepthToSpace", ["x"], "b", {"blocksize": 2})],
        "convolution": [("Conv", ["x", "c"], "a", {}), ("Relu", ["a"], "b", {})],
    }[maker]
    nodes: Nodes = [*first, ("Conv", ["b", "w"], "d", {}), ("Add", ["d", "b"], "e", {}), ("Relu", ["e"], "y", {})]
    weights: Weights = {"w": normal(0, channels, channels, 1, 1)}
    if maker == "deconvolution":
        weights["u"] = normal(0, 4 * channels, channels, 2, 2)
    elif maker == "convolution":
        weights["c"] = normal(0, channels, 4 * channels, 1, 1)
    return model_of(nodes, weights, [1, 4 * channels, 6, 8])


@pytest.mark.parametrize("maker", ["deconvolution", "interleaved"])
def test_blocked_sums_is_bitwise_equal(maker: str) -> None:
    model = residual(maker)
    made, changed = passed(model, blocked_sums)
    assert changed == 1
    x = normal(0, 1, 64, 6, 8)
    np.testing.assert_array_equal(run(made, x), run(model, x))
    assert unchanged(made, blocked_sums)


@pytest.mark.parametrize("model", [residual("convolution"), residual("interleaved", 12)], ids=["blocked", "odd width"])
def test_sums_that_gain_nothing_stay(model: onnx.ModelProto) -> None:
    assert unchanged(model, blocked_sums)
