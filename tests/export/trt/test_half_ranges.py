"""Which layers stay in FP32 when the rest computes in FP16, and how float16 is emulated on the CPU."""

from __future__ import annotations

from typing import Any, List, Tuple

import numpy as np
import pytest
from export_toys import exported, frames, one_torch_thread  # noqa: F401
from half_toys import args_for, kept_of, labels, loaded, network, overflowing, shown, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, numpy_helper
from trt_toys import int8

from gradseg.base.errors import GradsegError
from gradseg.export.trt.forms import emulated, half_form, onnx_for_trt
from gradseg.export.trt.half_ranges import Kept, kept_text, magnitudes
from gradseg.graphs.sessions import OnnxRunner, exposed


def test_layers_that_overflow_stay_in_fp32_and_are_named() -> None:
    model = overflowing()
    why = kept_of(model)
    assert list(why) == ["up", "up_relu", "pooled", "down", "down_relu"]  # the last is fused with its convolution
    assert all(reason.startswith("values up to") for reason in why.values())
    half = half_form(model, why)
    for frame in frames():
        assert (labels(half, frame) == labels(model, frame)).mean() > 0.99
        assert (labels(half_form(model), frame) == labels(model, frame)).mean() < 0.9  # without them: infinity
    kinds = {name: value.dtype for name, value in weights_of(half).items()}
    assert kinds == {"w1": np.float32, "w2": np.float32, "b2": np.float32, "w3_half": np.float16}
    assert [node.op_type for node in half.graph.node].count("Cast") == 4  # two at the borders, two around the island


def test_the_user_is_told_which_layers_those_are() -> None:
    for typed in (True, False):
        made = onnx_for_trt(loaded(overflowing()), args_for(), "fp16", typed)
        assert made.lines[-1].startswith("FP16: 5 layers kept in FP32: up (values up to ")
        assert made.lines[-1].endswith(") and 2 more")
        assert made.keep_fp32 == (() if typed else ("up", "up_relu", "pooled", "down", "down_relu"))
        types = {value.dtype for value in weights_of(made.model).values()}
        assert (np.dtype(np.float16) in types) == typed  # a weakly typed builder gets FP32
    assert kept_text([]) == ""
    assert kept_text([Kept("a", "why")]) == "1 layer kept in FP32: a (why)"


@settings(max_examples=15, deadline=None)
@given(st.floats(-18, 18))
def test_whatever_the_size_of_activations_labels_hold(power: float) -> None:
    model = overflowing(float(2.0**power))
    half = half_form(model, kept_of(model))
    frame = frames()[0]
    assert (labels(half, frame) == labels(model, frame)).mean() > 0.99


def test_nothing_is_kept_of_a_usual_network() -> None:
    assert kept_of(exported()) == {} == kept_of(int8("dg2-star-light", "trt"))


def test_magnitudes_are_the_largest_of_all_frames() -> None:
    model = overflowing(1.0)
    found = magnitudes(model, shown(), 1)
    assert found["pixels"] == max(frame.max() for frame in frames())
    dark = magnitudes(model, [shown()[0] // 2], 1)
    assert dark["pixels"] == shown()[0].max() // 2
    assert magnitudes(model, [shown()[0] // 2, *shown(), shown()[0] // 2], 1) == found
    with pytest.raises(GradsegError, match="no frames to calibrate with"):
        magnitudes(model, [], 1)
    damaged = overflowing()
    damaged.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((6, 3, 1, 1), np.inf, np.float32), "w1"))
    with pytest.raises(GradsegError, match=r"NaN or infinity in tensor \w+ on frame 1: .* damaged"):
        magnitudes(damaged, shown(), 1)


def middle(kind: str, constant: Any) -> ModelProto:
    """pixels / 255 → one operator with a constant → logits."""
    nodes: List[Tuple[Any, ...]] = [
        ("Mul", ["pixels", "scale"], "small", {}),
        (kind, ["small", "c"], "it", {"pads": [1] * 4} if constant.shape[2:] == (3, 3) else {}),
        ("Conv", ["it", "w"], "logits", {}),
    ]
    channels = constant.shape[0] if kind == "Conv" else 3
    rng = np.random.default_rng(1)
    weights = {"scale": np.float32(1 / 255), "c": constant, "w": rng.normal(size=(4, channels, 1, 1))}
    return network(nodes, {name: np.asarray(value, np.float32) for name, value in weights.items()})


@pytest.mark.parametrize(
    "kind, constant, reason",
    [
        ("Add", np.full((1, 3, 1, 1), -1e6), "values up to 1e+06"),
        ("Min", np.full((1, 3, 1, 1), 3.4e38), None),  # a limit: 65504 means the same
        ("Max", np.float32(1e-12), "weights of 1e-12 at most"),  # guards a division: must not become 0
        ("Add", np.float32(1e-12), "weights of 1e-12 at most"),
        ("Mul", np.full((1, 3, 1, 1), 1e-7), "values of 1e-07 at most"),
        ("Mul", np.array([1, 1e-7, 2]).reshape(1, 3, 1, 1), None),  # one channel hardly counts
        ("Conv", np.full((5, 3, 3, 3), 1e-7), "values of"),
        ("Conv", np.stack([np.ones((3, 1, 1)), np.full((3, 1, 1), 1e-8)]), None),
        ("Div", np.float32(1e5), "values of"),
        ("Mul", np.float32(1e5), "values up to"),
    ],
)
def test_constants_that_float16_cannot_hold(kind: str, constant: Any, reason: str) -> None:
    found = kept_of(middle(kind, np.asarray(constant, np.float32)))
    assert found.get("it", "None").startswith(str(reason))
    assert "first" not in found and "planes" not in found


def test_small_weights_that_matter_are_kept() -> None:
    """All of a filter below float16's normal numbers, on inputs large enough to make ordinary outputs of them."""
    nodes: List[Tuple[Any, ...]] = [
        ("Mul", ["pixels", "scale"], "large", {}),
        ("Conv", ["large", "c"], "logits", {}),
    ]
    weights = {"scale": np.float32(100), "c": np.random.default_rng(2).normal(size=(4, 3, 1, 1)) * 1e-6}
    model = network(nodes, {name: np.asarray(value, np.float32) for name, value in weights.items()})
    assert kept_of(model)["logits"].startswith("weights of ")
    assert "large" not in kept_of(model)


def test_sums_beyond_float16_are_kept() -> None:
    nodes: List[Tuple[Any, ...]] = [
        ("GlobalAveragePool", ["pixels"], "mean", {}),
        ("Add", ["pixels", "mean"], "sum", {}),
        ("Conv", ["sum", "w"], "logits", {}),
    ]
    model = network(nodes, {"w": np.float32(np.random.default_rng(3).normal(size=(4, 3, 1, 1)))})
    found = kept_of(model)
    assert list(found) == ["mean"] and found["mean"].startswith("sums up to 1.5")


def test_the_emulation_rounds_like_float16() -> None:
    """ONNX Runtime by itself computes a float16 network in float32 and forgets to round."""
    rng = np.random.default_rng(4)
    weights = {name: rng.normal(size=(1, 3, 1, 1)).astype(np.float32) for name in "abc"}
    nodes: List[Tuple[Any, ...]] = [
        ("Mul", ["pixels", "a"], "p", {}),
        ("Add", ["p", "b"], "q", {}),
        ("Mul", ["q", "c"], "logits", {}),
    ]
    model = emulated(half_form(network(nodes, weights)))
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in model.graph.initializer}
    frame = frames()[0]
    found = OnnxRunner(exposed(model, ["logits"]), threads=1).run(frame)[1]
    a, b, c = (weights[name].astype(np.float16) for name in "abc")
    expected = (frame.transpose(0, 3, 1, 2).astype(np.float16) * a + b) * c
    assert expected.dtype == np.float16
    np.testing.assert_array_equal(found, expected.astype(np.float32))
