"""Tensors held as parts along the channels: chains of groups, and halves of wide tensors."""

from __future__ import annotations

from functools import partial
from typing import List

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_toys import Nodes, Weights, close, groups, model_of, normal, operators, passed, run, unchanged

from gradseg.graphs.passes.chains import chains
from gradseg.graphs.passes.channel_tiles import channel_tiles


def blocks(channels: int, group: int, count: int, end: str, seed: int = 0) -> onnx.ModelProto:
    """A dense convolution, Conv-modules of one group count, and an end that reads their sum."""
    nodes: Nodes = [("Conv", ["x", "w0", "b0"], "r0", {}), ("Relu", ["r0"], "s0", {})]
    weights: Weights = {"w0": normal(seed, channels, 3, 1, 1), "b0": normal(seed, channels)}
    for index in range(count):
        before, name = f"s{index}", f"s{index + 1}"
        weights[f"d{index}"] = normal(seed + index, channels, 1, 3, 3)
        weights[f"p{index}"] = normal(seed + index, channels, channels // group, 1, 1)
        weights[f"q{index}"] = normal(seed + index, channels)
        nodes += [
            ("Conv", [before, f"d{index}"], f"{name}d", {"group": channels, "pads": [1] * 4}),
            ("Relu", [f"{name}d"], f"{name}e", {}),
            ("Conv", [f"{name}e", f"p{index}", f"q{index}"], f"{name}p", {"group": group}),
            ("Add", [f"{name}p", before], f"{name}a", {}),
            ("Relu", [f"{name}a"], name, {}),
        ]
    last = f"s{count}"
    ends: dict[str, Nodes] = {
        "conv": [("Conv", [last, "we", "be"], "y", {})],
        "sigmoid": [("Sigmoid", [last], "y", {})],
        "both": [("Conv", [last, "we", "be"], "c", {}), ("Conv", ["c", "wf"], "d", {}), ("Add", ["d", last], "y", {})],
        "output": [("Identity", [last], "y", {})],
        "pool": [("MaxPool", [last], "m", {"kernel_shape": [2, 2]}), ("Conv", ["m", "we"], "y", {})],
    }
    weights.update(we=normal(seed, 5, channels, 1, 1), be=normal(seed, 5), wf=normal(seed, channels, 5, 1, 1))
    used = {name for _, inputs, _, _ in [*nodes, *ends[end]] for name in inputs}
    return model_of([*nodes, *ends[end]], {k: v for k, v in weights.items() if k in used}, [1, 3, 6, 8])


@settings(max_examples=25, deadline=None)
@given(
    group=st.sampled_from([2, 4]),
    count=st.integers(1, 3),
    end=st.sampled_from(["conv", "sigmoid", "both", "output", "pool"]),
    seed=st.integers(0, 99),
)
def test_groups_become_chains(group: int, count: int, end: str, seed: int) -> None:
    model = blocks(8, group, count, end, seed)
    made, changed = passed(model, chains)
    assert changed >= 5 * count + 2
    assert set(groups(made)) <= {1, 8 // group}  # depthwise on a chain's channels; nothing grouped is left
    assert "Split" not in operators(made)
    x = normal(seed, 1, 3, 6, 8)
    close(run(made, x), run(model, x))
    close(run(made, x, optimise=True), run(model, x))


def test_one_chain_is_written_after_the_other() -> None:
    made, _ = passed(blocks(8, 2, 2, "conv"), chains)
    convs = [node.output[0] for node in made.graph.node if node.op_type == "Conv"]
    assert convs[:6] == ["r0_part", "s1d_part", "s1p_part", "s2d_part", "s2p_part", "y_part"]
    assert convs[6] == "r0_part_1"


def shuffled() -> onnx.ModelProto:
    nodes: Nodes = [
        ("Conv", ["x", "w"], "a", {"group": 2}),
        ("Reshape", ["a", "cut"], "b", {}),
        ("Transpose", ["b"], "c", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", ["c", "join"], "d", {}),
        ("Conv", ["d", "v"], "y", {"group": 2}),
    ]
    weights = {"w": normal(0, 8, 4, 1, 1), "v": normal(1, 8, 4, 1, 1)}
    return model_of(nodes, {**weights, "cut": np.array([1, 2, 4, 4, 4]), "join": np.array([1, 8, 4, 4])}, [1, 8, 4, 4])


def softmax_between() -> onnx.ModelProto:
    nodes: Nodes = [
        ("Conv", ["x", "w"], "a", {}),
        ("Softmax", ["a"], "b", {"axis": 1}),
        ("Conv", ["b", "v"], "y", {"group": 2}),
    ]
    return model_of(nodes, {"w": normal(0, 8, 8, 1, 1), "v": normal(1, 8, 4, 1, 1)}, [1, 8, 4, 4])


@pytest.mark.parametrize("model", [shuffled(), softmax_between()], ids=["shuffle", "softmax"])
def test_where_groups_mix_nothing_changes(model: onnx.ModelProto) -> None:
    assert unchanged(model, chains)


@settings(max_examples=15, deadline=None)
@given(group=st.sampled_from([1, 2]), end=st.sampled_from(["conv", "sigmoid", "both"]), parts=st.sampled_from([2, 4]))
def test_channel_tiles(group: int, end: str, parts: int) -> None:
    model = blocks(16, group, 2, end)
    made, changed = passed(model, partial(channel_tiles, parts=parts, least_bytes=1, block=4))
    assert changed > 0
    x = normal(1, 1, 3, 6, 8)
    close(run(made, x), run(model, x))


@pytest.mark.parametrize("limits", [{"least_bytes": 2**30, "block": 1}, {"least_bytes": 1, "block": 5}])
def test_small_tensors_and_odd_blocks_stay_whole(limits: dict[str, int]) -> None:
    assert unchanged(blocks(16, 1, 1, "conv"), partial(channel_tiles, **limits))


def test_an_interpolation_by_scales_works_on_parts() -> None:
    nodes: Nodes = [
        ("Conv", ["x", "w"], "a", {}),
        ("Resize", ["a", "", "scales"], "b", {"mode": "linear"}),
        ("Conv", ["b", "d"], "c", {"group": 8, "pads": [1] * 4}),
        ("Conv", ["c", "v"], "y", {}),
    ]
    weights: Weights = {"w": normal(0, 8, 3, 1, 1), "d": normal(0, 8, 1, 3, 3), "v": normal(0, 4, 8, 1, 1)}
    model = model_of(nodes, {**weights, "scales": np.float32([1, 1, 2, 2])}, [1, 3, 4, 4])
    made, changed = passed(model, partial(channel_tiles, least_bytes=1, block=4))
    counts: List[str] = operators(made)
    assert (changed, counts.count("Resize")) == (3, 2)
    x = normal(0, 1, 3, 4, 4)
    close(run(made, x), run(model, x))
