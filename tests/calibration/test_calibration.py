"""The Q/DQ writer for its targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List, Optional

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from export_toys import SCENES, exported, frames, int8_from_fp32, one_torch_thread  # noqa: F401

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.cpu import int8_saturates
from gradseg.calibration.qdq.int8 import Settings
from gradseg.calibration.qdq.plan import plan_for
from gradseg.calibration.qdq.quantise import count_quantised, quantised
from gradseg.graphs.frames import open_frames, other_scenes
from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models import metadata

# ---- the writer


@pytest.fixture(scope="module", params=["dg2-star-light", "erfnet", "dg2s"])
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def int8(arch: str, target: str, **options: Any) -> onnx.ModelProto:
    return int8_from_fp32(exported(arch), SCENES, Settings(target, frames=2, **options), threads=1)


def zero_points(model: onnx.ModelProto) -> List[Any]:
    graph = Graph(model)
    return [graph.weights[node.input[2]] for node in graph.nodes if node.op_type == "QuantizeLinear"]


def quantisation_target(model: onnx.ModelProto) -> str:
    """Whom a quantised model is for, by its activations: int8 with zero point 0 everywhere is TensorRT's form."""
    graph = Graph(model)
    zeros = [graph.weights[node.input[2]] for node in graph.nodes if node.op_type == "QuantizeLinear"]
    return "trt" if all(zero.dtype == np.int8 and not np.any(zero) for zero in zeros) else "cpu"


@pytest.mark.parametrize("target", ["cpu", "trt"])
def test_int8_form(arch: str, target: str) -> None:
    model = int8(arch, target)
    onnx.checker.check_model(model, full_check=True)
    graph = Graph(model)
    dtype = np.uint8 if target == "cpu" else np.int8
    assert {zero.dtype.type for zero in zero_points(model)} == {dtype}
    assert {zero.shape for zero in zero_points(model)} == {()}
    assert quantisation_target(model) == target
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        assert all(name in graph.weights for name in node.input[2:]), "biases stay float initialisers"
        unpacked = graph.producer(node.input[1])
        if unpacked is None:
            continue
        axis = 0 if node.op_type == "Conv" else 1
        weight, scale, zero = (graph.weights[name] for name in unpacked.input)
        assert attribute(unpacked, "axis") == axis
        assert weight.dtype == np.int8 and not zero.any()
        assert scale.shape == (weight.shape[axis],)
        assert weight.min() >= -127
        peak = np.abs(weight.astype(int)).max(axis=tuple(i for i in range(4) if i != axis))
        assert (peak == 127).all(), "every channel uses its whole range"
    packed, total = count_quantised(model)
    assert packed >= 0.8 * total
    operators = [node.op_type for node in model.graph.node]
    assert operators[-1] == "Cast" and operators[0] == "Cast"
    note = json.loads(metadata.metadata_of_bytes(model.SerializeToString())[metadata.CALIBRATION])
    assert (note["source"], note["frames"], note["target"]) == (SCENES, 2, target)


@pytest.mark.parametrize("target", ["cpu", "trt"])
def test_int8_agrees_with_fp32(arch: str, target: str) -> None:
    fp32 = OnnxRunner(exported(arch).SerializeToString(), threads=1)
    runner = OnnxRunner(int8(arch, target).SerializeToString(), threads=1)
    equal = np.mean([(runner.run(frame)[0] == fp32.run(frame)[0]).mean() for frame in frames()])
    assert equal > 0.8  # random weights leave small margins; trained networks reach 0.98


def test_onnxruntime_runs_the_planned_convolutions_in_int8(tmp_path: Path) -> None:
    model = int8("dg2-star-light", "cpu")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert operators.count("QLinearConv") == count_quantised(model)[0]
    assert operators.count("QLinearAdd") == 14  # all residual sums but the one of 16 channels


def test_trt_residual_sums_take_their_convolution_unquantised() -> None:
    graph = Graph(int8("dg2-star-light", "trt"))
    sums = [node for node in graph.nodes if node.op_type == "Add"]
    assert len(sums) == 15
    for node in sums:
        kinds = sorted(producer.op_type for producer in map(graph.producer, node.input) if producer is not None)
        assert kinds == ["Conv", "DequantizeLinear"]


def test_power_of_two_scales() -> None:
    graph = Graph(int8("dg2-star-light", "cpu", power_of_two=True))
    scales = [graph.weights[node.input[1]] for node in graph.nodes if node.op_type == "QuantizeLinear"]
    assert all(np.log2(float(scale)).is_integer() for scale in scales)


def test_reduced_range_keeps_weights_to_seven_bits() -> None:
    model = int8("dg2-star-light", "cpu", reduce_range=True)
    graph = Graph(model)
    peaks = {
        int(np.abs(graph.weights[node.input[0]].astype(int)).max())
        for node in graph.nodes
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.weights
    }
    assert peaks == {63}
    assert json.loads(metadata.metadata_of_bytes(model.SerializeToString())[metadata.CALIBRATION])["reduce_range"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("processor\t: 0\nflags\t\t: fpu sse4_2 avx avx2\n", True),
        ("flags\t\t: avx2 avx512f avx512bw\n", True),
        ("flags\t\t: avx2 avx512f avx512_vnni\n", False),
        ("flags\t\t: avx2 avx_vnni\n", False),
        ("flags\t\t: sse4_2 avx\n", False),
        ("Features\t: fp asimd asimddp\n", False),
        (None, False),
    ],
)
def test_which_cpus_saturate(tmp_path: Path, text: Optional[str], expected: bool) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert int8_saturates(str(tmp_path / "cpuinfo")) is expected


def test_other_scenes_have_another_seed() -> None:
    assert other_scenes("scenes:") == "scenes:seed=1000"
    other = other_scenes("scenes:frames=4,seed=7,size=64x96")
    assert other == "scenes:frames=4,seed=1007,size=64x96"
    assert not np.array_equal(next(iter(open_frames(other, 1))), next(iter(open_frames(SCENES, 1))))
    assert other_scenes("camvid:x") is None and other_scenes("clip.mp4") is None


def test_pooling_and_shuffles_keep_the_scale_of_their_input() -> None:
    for name, operator in (("erfnet", "MaxPool"), ("dg2s", "Transpose")):
        model = exported(name)
        plan = plan_for(model, "cpu")
        nodes = [node for node in model.graph.node if node.op_type == operator and node.name in plan.nodes]
        assert nodes, f"no {operator} of {name} is in INT8"
        assert all(plan.tensors[node.output[0]] == plan.tensors[node.input[0]] for node in nodes)


def test_what_stays_float() -> None:
    model = exported()
    plan = plan_for(model, "cpu")
    left = [node.name for node in model.graph.node if node.op_type == "Conv" and node.name not in plan.nodes]
    assert len(left) == 8  # first, two before a resize, one block of 16 channels, logits
    kept = plan.nodes[5]
    assert kept not in plan_for(model, "cpu", keep_float=(kept,)).nodes
    with pytest.raises(GradsegError, match="INT8 target 'dsp'; one of cpu, trt"):
        plan_for(model, "dsp")


def test_quantising_twice_is_refused() -> None:
    with pytest.raises(GradsegError, match="in INT8 already; calibrate its FP32 form"):
        int8_from_fp32(int8("dg2-star-light", "cpu"), SCENES, Settings(frames=1), threads=1)


def test_quantised_needs_every_range() -> None:
    plan = plan_for(exported(), "cpu")
    with pytest.raises(GradsegError, match=r"no range for tensor /encoder/.*calibrate this model again"):
        quantised(exported(), plan, {}, "cpu")
