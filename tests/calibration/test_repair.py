"""Targets' scales, the plans for them, and the repairs of weights."""

from __future__ import annotations

from typing import Any, List, Optional

import numpy as np
import onnx
import pytest
from export_toys import exported, frames, one_torch_thread  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from ranges_toys import integers, round_trip

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.plan import COMPUTE, pixel_tensors, plan_for
from gradseg.calibration.qdq.quantise import WeightSettings, quantised, weight_scales
from gradseg.calibration.qdq.repair import bias_corrected, equalised, mean_tensors, pairs
from gradseg.calibration.qdq.targets import (
    TARGETS,
    Quantisation,
    activation_quantisation,
    target_named,
    upper_power_of_two,
    weight_integers,
    weight_scale,
)
from gradseg.calibration.ranges.observers import Range
from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.sessions import OnnxRunner, exposed

ARCHS = ("dg2-star-light", "dg4s-star", "erfnet", "dg8")
finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)

# ---- scales


@settings(max_examples=80, deadline=None)
@given(low=st.floats(-1e5, 0), high=st.floats(0, 1e5), target=st.sampled_from(sorted(TARGETS)), powers=st.booleans())
def test_power_of_two_scales_lie_within_a_factor_two_of_the_float_scale(
    low: float, high: float, target: str, powers: bool
) -> None:
    plain = TARGETS[target]
    found = activation_quantisation(Range(low, high), plain, powers)
    span = max(-low, high) / 127 if plain.signed else (high - low) / 255
    span = max(span, 1e-12)
    if powers or target == "tidl":
        assert np.log2(found.scale) == round(np.log2(found.scale))
        assert span * 0.999999 <= found.scale < 2 * span * 1.000001  # without an error function: nothing is clipped
    else:
        assert found.scale == pytest.approx(span, rel=1e-6)
    lowest, highest = found.limits
    assert lowest <= found.zero_point <= highest


@settings(max_examples=60, deadline=None)
@given(step=st.floats(1e-9, 1e9), slope=st.floats(-1, 1))
def test_of_two_powers_the_one_with_the_smaller_error_is_taken(step: float, slope: float) -> None:
    reach = step * 127
    found = activation_quantisation(Range(-reach, reach), TARGETS["tidl"], error=lambda scale: slope * scale)
    upper = upper_power_of_two(step)
    assert found.scale == np.float32(upper if slope <= 0 else upper / 2)
    assert step / 2 < found.scale * 1.000001 and found.scale < 2 * step * 1.000001


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(finite, min_size=1, max_size=50),
    target=st.sampled_from(sorted(TARGETS)),
)
def test_round_trip_error_is_at_most_half_a_step(values: List[float], target: str) -> None:
    array: np.ndarray[Any, Any] = np.asarray(values, np.float32)
    limits = Range(float(min(array.min(), 0)), float(max(array.max(), 0)))
    q = activation_quantisation(limits, TARGETS[target])
    error = np.abs(round_trip(q, array).astype(np.float64) - array)
    # a zero point that is rounded shifts the ends by up to half a step more
    most = 0.5 if q.signed else 1.0
    assert (error <= q.scale * most * 1.0001).all()
    inside = (integers(q, array) > q.limits[0]) & (integers(q, array) < q.limits[1])
    assert (error[inside] <= q.scale * 0.5001).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    per_channel=st.booleans(),
    powers=st.booleans(),
)
def test_weights_are_rounded_by_at_most_half_a_step(rows: List[List[float]], per_channel: bool, powers: bool) -> None:
    weight: np.ndarray[Any, Any] = np.asarray(rows, np.float32).reshape(-1, 3, 1, 1)
    axis: Optional[int] = 0 if per_channel else None
    scales = weight_scale(weight, axis, 127, powers)
    packed = weight_integers(weight, scales, axis)
    assert np.abs(packed.astype(int)).max() <= 127
    step = scales.reshape(-1, 1, 1, 1) if per_channel else scales[0]
    error = np.abs(packed * step.astype(np.float64) - weight)
    if powers:
        assert (np.log2(scales) == np.rint(np.log2(scales))).all()
        unclipped = np.abs(packed) < 127
        assert (error <= step * 0.5001)[unclipped].all()
    else:
        assert (error <= step * 0.5001).all()


def test_all_zero_weights_get_scale_one() -> None:
    assert weight_scale(np.zeros((2, 3, 1, 1), np.float32), 0).tolist() == [1.0, 1.0]


def test_rounding_is_onnx_half_to_even() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300], np.float32)
    for q, expected in ((Quantisation(1.0, 0, True), [0, 2, 2, 0, -2, 127, -128]), (Quantisation(1.0, 3, False), None)):
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [7])]
        zero = numpy_helper.from_array(np.array(q.zero_point, q.zero_type), "z")
        scale = numpy_helper.from_array(np.array(q.scale, np.float32), "s")
        kind = TensorProto.INT8 if q.signed else TensorProto.UINT8
        graph = helper.make_graph(
            [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
            "q",
            inputs,
            [helper.make_tensor_value_info("y", kind, [7])],
            [scale, zero],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnxruntime = OnnxRunner(model.SerializeToString()).run(values)[0]
        assert integers(q, values).tolist() == onnxruntime.tolist()
        if expected is not None:
            assert onnxruntime.tolist() == expected


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(GradsegError, match="'dsp'; one of cpu, trt, tidl"):
        target_named("dsp")


# ---- the fixed-point target


def fixed_point(arch: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = exported(arch)
    plan = plan_for(model, "tidl")
    names = plan.observed()
    runner = OnnxRunner(exposed(model, names), optimise=False)
    reach = dict.fromkeys(names, 1e-06)
    for frame in frames(2):
        for name, values in zip(names, runner.run(frame, names), strict=True):
            reach[name] = max(reach[name], float(np.abs(values).max()))
    scales = {n: activation_quantisation(Range(-r, r), TARGETS["tidl"]) for n, r in reach.items()}
    return model, quantised(model, plan, scales, "tidl")


@pytest.mark.parametrize("arch", ARCHS)
def test_tidl_computes_with_integers_between_frame_and_label_head(arch: str) -> None:
    model, made = fixed_point(arch)
    graph = Graph(made)
    convs = [node for node in graph.nodes if node.op_type in COMPUTE]
    floats = [node for node in convs if graph.producer(node.input[1]) is None]
    assert len(floats) == 1 and graph.weights[floats[0].input[1]].shape[0] == 4 * 11  # the label head alone
    steps = {}
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = graph.weights[node.input[1]], graph.weights[node.input[2]]
            assert scale.shape == () and np.log2(scale) == np.rint(np.log2(scale))
            assert zero.dtype == np.int8 and zero == 0
            steps[node.output[0]] = float(scale)
    for node in convs:
        if node is floats[0]:
            assert node.input[0] in steps
            continue
        pixels = pixel_tensors(graph)
        unit = steps[node.input[1]] * (1.0 if node.input[0] in pixels else steps[node.input[0]])
        multiples = graph.weights[node.input[2]].astype(np.float64) / unit
        assert (multiples == np.rint(multiples)).all()
    runner, before = OnnxRunner(made.SerializeToString()), OnnxRunner(model.SerializeToString())
    same = np.mean([np.mean(runner.first(frame) == before.first(frame)) for frame in frames(4)])
    assert same > 0.75


def test_tidl_sums_are_exact_whatever_the_order() -> None:
    _, made = fixed_point("dg2-star-light")
    name = next(n.output[0] for n in reversed(made.graph.node) if n.op_type == "DequantizeLinear")
    values = [
        OnnxRunner(exposed(made, [name]), optimise=optimise).run(frames(1)[0], [name])[0] for optimise in (False, True)
    ]
    assert np.array_equal(values[0], values[1])


# ---- cross-layer equalisation


@pytest.mark.parametrize("arch", ARCHS)
def test_equalisation_keeps_the_function_and_evens_the_weights(arch: str) -> None:
    model = exported(arch)
    after = equalised(model)
    found = pairs(Graph(after))
    assert len(found) >= 20
    before, runner = OnnxRunner(model.SerializeToString()), OnnxRunner(after.SerializeToString())
    for frame in frames(4):
        assert np.mean(before.first(frame) == runner.first(frame)) > 0.9995  # all but near-ties
    assert spread(after) < 0.25 * spread(model)
    assert equalised(model) == equalised(model)


def spread(model: onnx.ModelProto) -> float:
    """Mean log-distance between the largest weights on the two sides of each equalisable channel."""
    graph, distances = Graph(model), []
    for pair in pairs(graph):
        weight = graph.weights[pair.first.input[1]]
        outgoing = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
        second = graph.weights[pair.second.input[1]]
        groups = attribute(pair.second, "group", 1)
        per_group = np.abs(second).reshape(groups, len(second) // groups, second.shape[1], -1).max(axis=(1, 3)).ravel()
        distances.append(np.abs(np.log(outgoing[pair.order] / per_group)).mean())
    return float(np.mean(distances))


def test_shuffles_between_two_convolutions_are_followed() -> None:
    graph = Graph(exported("dg4s-star"))
    shuffled = [pair for pair in pairs(graph) if not np.array_equal(pair.order, np.arange(len(pair.order)))]
    assert len(shuffled) == 13  # between the halves of every encoder block
    order = shuffled[0].order
    assert order.tolist() == np.arange(64).reshape(4, 16).T.ravel().tolist()


def test_a_channel_that_is_out_of_scale_is_repaired_for_one_scale_per_tensor() -> None:
    """What equalisation is for: channels a thousand times apart share one scale only after it."""
    graph = Graph(exported("dg2-star-light"))
    pair = pairs(graph)[4]
    factor = np.where(np.arange(len(pair.order)) % 2, 1000.0, 1.0)
    for index in (1, 2):
        weight = graph.weights[pair.first.input[index]]
        graph.weights[pair.first.input[index]] = (weight.T * factor).T.astype(np.float32)
    weight = graph.weights[pair.second.input[1]]
    groups = attribute(pair.second, "group", 1)
    inverse = (1 / factor[pair.order]).reshape(groups, 1, -1, 1, 1)
    graph.weights[pair.second.input[1]] = (
        (weight.reshape(groups, -1, *weight.shape[1:]) * inverse).reshape(weight.shape).astype(np.float32)
    )
    doctored = graph.to_model()

    def rounding_error(model: onnx.ModelProto) -> float:
        inside = Graph(model)
        node = next(node for node in inside.nodes if node.name == pair.first.name)
        values = inside.weights[node.input[1]]
        scales = weight_scales(values, node, TARGETS["tidl"], WeightSettings())
        packed = weight_integers(values, scales, None) * scales[0].astype(np.float64)
        rows = (packed - values).reshape(len(values), -1)
        size = np.abs(values.reshape(len(values), -1)).max(axis=1)
        return float(np.median(np.abs(rows).max(axis=1) / size))

    assert rounding_error(doctored) > 0.4
    assert rounding_error(equalised(doctored)) < 0.1


def test_a_tensor_that_is_read_twice_or_given_out_is_no_pair() -> None:
    graph = Graph(exported("dg2-star-light"))
    firsts = {pair.first.name for pair in pairs(graph)}
    for node in graph.nodes:
        if node.op_type == "Add":
            beside = graph.producer(node.input[0])
            assert beside is not None and beside.name not in firsts
    assert not any(pair.second.op_type == "Add" for pair in pairs(graph))


def test_relu6_is_not_homogeneous() -> None:
    weight = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")
    six = [numpy_helper.from_array(np.array(v, np.float32), n) for v, n in ((0, "zero"), (6, "six"))]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="a"),
        helper.make_node("Clip", ["a", "zero", "six"], ["b"], name="b"),
        helper.make_node("Conv", ["b", "w"], ["y"], name="y"),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 8, 8]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [weight, *six])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert pairs(Graph(model)) == []
    graph.node[1].CopyFrom(helper.make_node("Relu", ["a"], ["b"], name="b"))
    model.graph.CopyFrom(graph)
    assert len(pairs(Graph(model))) == 1
    # both convolutions share their weights; equalising must not let one change the other
    x = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
    before, after = (OnnxRunner(m.SerializeToString()).run(x)[0] for m in (model, equalised(model)))
    assert np.allclose(before, after, rtol=1e-5, atol=1e-5)


# ---- bias correction


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_bias_correction_takes_the_mean_error_away(target: str) -> None:
    model = exported("dg2-star-light")
    plan, graph = plan_for(model, target), Graph(model)
    names = mean_tensors(graph, plan)
    runner = OnnxRunner(exposed(model, names), optimise=False)
    means = {name: np.zeros(1) for name in names}
    for frame in frames(2):
        for name, values in zip(names, runner.run(frame, names), strict=True):
            means[name] = means[name] + values.mean(axis=(0, 2, 3), dtype=np.float64) / 2
    fixed = bias_corrected(model, plan, target, WeightSettings(), means)
    outputs = [n.output[0] for n in graph.nodes if n.name in plan.nodes and n.op_type in COMPUTE]
    errors = []
    for candidate in (model, fixed):
        rounded = weights_rounded(candidate, target)
        got, want = channel_means(rounded, outputs), channel_means(model, outputs)
        errors.append(np.mean([np.abs(g - w).mean() / np.abs(w).mean() for g, w in zip(got, want, strict=True)]))
    assert errors[1] < 0.75 * errors[0]


def channel_means(model: onnx.ModelProto, tensors: List[str]) -> List[np.ndarray[Any, Any]]:
    """Mean per channel of each tensor over two frames."""
    runner = OnnxRunner(exposed(model, tensors), optimise=False)
    runs = [runner.run(frame, tensors) for frame in frames(2)]
    return [np.mean([values.mean(axis=(0, 2, 3)) for values in both], axis=0) for both in zip(*runs, strict=True)]


def weights_rounded(model: onnx.ModelProto, target: str) -> onnx.ModelProto:
    """Only the weights quantised; activations stay float."""
    plan, graph = plan_for(model, target), Graph(model)
    for node in graph.nodes:
        if node.name in plan.nodes and node.op_type in COMPUTE:
            values = graph.weights[node.input[1]]
            scales = weight_scales(values, node, TARGETS[target], WeightSettings())
            axis = None if target == "tidl" else 0 if node.op_type == "Conv" else 1
            view = [-1 if index == axis else 1 for index in range(4)]
            packed = weight_integers(values, scales, axis) * scales.reshape(view)
            node.input[1] = graph.constant(f"{node.input[1]}_rounded", packed.astype(np.float32))
    return graph.to_model()


def test_scales_that_do_not_fit_are_refused() -> None:
    model = exported("dg2-star-light")
    plan = plan_for(model, "trt")
    name = next(n.name for n in model.graph.node if n.name in plan.nodes and n.op_type == "Conv")
    scales = {tensor: Quantisation(0.1, 0, True) for tensor in plan.observed()}
    with pytest.raises(GradsegError, match=r"3 weight scales given"):
        quantised(model, plan, scales, "trt", WeightSettings(scales={name: np.ones(3)}))
    with pytest.raises(GradsegError, match=r"no range for tensor .* \(1 missing\)"):
        quantised(model, plan, dict(list(scales.items())[1:]), "trt")
