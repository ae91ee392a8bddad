"""Dilated depthwise convolutions as undilated ones over subsampled images."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_toys import Nodes, Weights, model_of, normal, operators, passed, run, unchanged

from gradseg.graphs.passes.space_to_batch import space_to_batch

HW = (16, 32)


def dilated(dilations: List[int], between: str = "relu", channels: int = 4, seed: int = 0, kernel: int = 3) -> Any:
    """Depthwise convolutions in a row, with something between each and the next."""
    nodes: Nodes = []
    weights: Weights = {}
    tensor = "x"
    for index, dilation in enumerate(dilations):
        weights[f"w{index}"] = normal(seed + index, channels, 1, kernel, kernel)
        weights[f"b{index}"] = normal(seed + index, channels)
        pads = [dilation * (kernel // 2)] * 4
        options: Dict[str, Any] = {"group": channels, "dilations": [dilation] * 2, "pads": pads}
        nodes.append(("Conv", [tensor, f"w{index}", f"b{index}"], f"d{index}", options))
        tensor = f"d{index}"
        if between == "pointwise":
            weights[f"p{index}"] = normal(seed, channels, channels, 1, 1)
            nodes.append(("Conv", [tensor, f"p{index}"], f"p{index}_out", {}))
            tensor = f"p{index}_out"
        nodes.append(("Sigmoid" if between == "sigmoid" else "Relu", [tensor], f"r{index}", {}))
        tensor = f"r{index}"
    nodes.append(("Identity", [tensor], "y", {}))
    return model_of(nodes, weights, [1, channels, *HW])


@settings(max_examples=25, deadline=None)
@given(
    dilations=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=4),
    between=st.sampled_from(["relu", "pointwise", "sigmoid"]),
    kernel=st.sampled_from([3, 5]),
    seed=st.integers(0, 99),
)
def test_space_to_batch_is_the_same_function(dilations: List[int], between: str, kernel: int, seed: int) -> None:
    model = dilated(dilations, between, seed=seed, kernel=kernel)
    made, changed = passed(model, space_to_batch)
    assert changed == sum(dilation > 1 for dilation in dilations)
    x = normal(seed, 1, 4, *HW)
    np.testing.assert_allclose(run(made, x), run(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("between", "turns"), [("relu", 2), ("pointwise", 2), ("sigmoid", 6)])
def test_nothing_is_put_back_between_equal_dilations(between: str, turns: int) -> None:
    made, _ = passed(dilated([4, 4, 4], between), space_to_batch)
    assert operators(made).count("Transpose") == turns
    mixed, _ = passed(dilated([2, 4, 4], between), space_to_batch)
    assert operators(mixed).count("Transpose") == max(4, turns)


def one(**options: Any) -> onnx.ModelProto:
    attributes = {"group": 4, "dilations": [2, 2], "pads": [2, 2, 2, 2], **options}
    group = attributes["group"]
    return model_of([("Conv", ["x", "w"], "y", attributes)], {"w": normal(0, 4, 4 // group, 3, 3)}, [1, 4, *HW])


@pytest.mark.parametrize(
    "model",
    [
        one(group=2),
        one(dilations=[2, 4], pads=[2, 4, 2, 4]),
        one(pads=[0, 0, 0, 0]),
        one(strides=[2, 2]),
        one(dilations=[3, 3], pads=[3, 3, 3, 3]),  # 16 is no multiple of 3
        one(dilations=[1, 1], pads=[1, 1, 1, 1]),
    ],
    ids=["grouped", "two dilations", "unpadded", "strided", "no multiple", "undilated"],
)
def test_other_convolutions_stay(model: onnx.ModelProto) -> None:
    assert unchanged(model, space_to_batch)
