"""Channel shuffles in the order of the weights."""

from __future__ import annotations

from functools import partial
from typing import List

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_toys import Nodes, Weights, close, groups, model_of, normal, operators, passed, run, unchanged

from gradseg.graphs.passes.fold_shuffle import fold_shuffle

HW = (4, 6)


def shuffle(source: str, output: str, group: int, channels: int) -> tuple[Nodes, Weights]:
    nodes: Nodes = [
        ("Reshape", [source, f"{output}_cut"], f"{output}_1", {}),
        ("Transpose", [f"{output}_1"], f"{output}_2", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", [f"{output}_2", f"{output}_join"], output, {}),
    ]
    cut, join = [1, group, channels // group, *HW], [1, channels, *HW]
    return nodes, {f"{output}_cut": np.array(cut), f"{output}_join": np.array(join)}


def module(group: int, width: int, residual: bool, end: str, seed: int) -> onnx.ModelProto:
    """A Conv-module with shuffles behind both of its 1x1 convolutions."""
    channels = group * width
    one, one_weights = shuffle("p", "ps", group, channels)
    two, two_weights = shuffle("q", "qs", group, channels)
    nodes: Nodes = [
        ("Conv", ["x", "w", "wb"], "p", {"group": group}),
        *one,
        ("Relu", ["ps"], "r", {}),
        ("Conv", ["r", "d", "db"], "e", {"group": channels, "pads": [1] * 4}),
        ("Relu", ["e"], "f", {}),
        ("Conv", ["f", "v", "vb"], "q", {"group": group}),
        *two,
    ]
    nodes.append(("Add", ["qs", "x"], "s", {}) if residual else ("Relu", ["qs"], "s", {}))
    nodes.append(("Conv", ["s", "u"], "y", {}) if end == "conv" else ("Sigmoid", ["s"], "y", {}))
    weights: Weights = {
        "w": normal(seed, channels, width, 1, 1), "wb": normal(seed, channels),
        "d": normal(seed, channels, 1, 3, 3), "db": normal(seed + 1, channels),
        "v": normal(seed + 1, channels, width, 1, 1), "vb": normal(seed + 2, channels),
        **one_weights, **two_weights,
    }  # fmt: skip
    if end == "conv":
        weights["u"] = normal(seed, 3, channels, 1, 1)
    return model_of(nodes, weights, [1, channels, *HW])


@settings(max_examples=30, deadline=None)
@given(
    group=st.integers(2, 4), width=st.integers(2, 5), residual=st.booleans(), end=st.sampled_from(["conv", "sigmoid"]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_both_shuffles_of_a_module_go(group: int, width: int, residual: bool, end: str, seed: int) -> None:
    model = module(group, width, residual, end, seed)
    made, folded = passed(model, fold_shuffle)
    assert folded == 2
    assert not {"Reshape", "Transpose"} & set(operators(made))
    assert groups(made)[:3] == [group, group * width, 1]  # only the second 1x1 became dense
    x = normal(seed, 1, group * width, *HW)
    close(run(made, x), run(model, x))


def test_groups_beyond_the_limit_keep_their_shuffles() -> None:
    assert unchanged(module(4, 3, True, "sigmoid", 0), partial(fold_shuffle, most=3))


def ends(kind: str) -> onnx.ModelProto:
    """A shuffle at a border, or between operators that are no convolutions."""
    some, weights = shuffle({"output": "c"}.get(kind, "x"), "y" if kind == "output" else "s", 2, 6)
    nodes: List[object] = [*some]
    if kind == "output":
        nodes = [("Conv", ["x", "w"], "c", {"group": 2}), *some]
    elif kind == "input":
        nodes.append(("Conv", ["s", "w"], "y", {"group": 2}))
    elif kind == "softmax":
        nodes.append(("Softmax", ["s"], "y", {"axis": 1}))
    elif kind == "unequal":
        nodes += [("MaxPool", ["s"], "m", {"kernel_shape": [2, 2]}), ("Conv", ["m", "w"], "y", {"group": 2})]
    if kind != "softmax":
        weights["w"] = normal(0, 6, 3, 1, 1)
    return model_of(nodes, weights, [1, 6, *HW])  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "folded"), [("output", 1), ("input", 1), ("unequal", 1), ("softmax", 0)])
def test_shuffles_at_the_ends(kind: str, folded: int) -> None:
    model = ends(kind)
    made, found = passed(model, fold_shuffle)
    assert found == folded
    x = normal(0, 1, 6, *HW)
    close(run(made, x), run(model, x))


def test_a_producer_that_others_read_keeps_its_order() -> None:
    some, weights = shuffle("c", "s", 2, 6)
    nodes: Nodes = [("Conv", ["x", "w"], "c", {"group": 2}), *some, ("Add", ["s", "c"], "y", {})]
    assert unchanged(model_of(nodes, {**weights, "w": normal(0, 6, 3, 1, 1)}, [1, 6, *HW]), fold_shuffle)
