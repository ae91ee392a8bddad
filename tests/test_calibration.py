"""Ranges gathered streaming, sources, and the Q/DQ writer for both targets."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any, Iterator, List, Optional

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from export_toys import SCENES, exported, frames, one_torch_thread  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

from gradseg.calibration import collect
from gradseg.calibration.calibrate import Settings, int8_from_fp32
from gradseg.calibration.collect import observers_from_frames
from gradseg.calibration.cpu import int8_saturates
from gradseg.calibration.graph import Graph, attribute
from gradseg.calibration.observers import BINS, Observer, Range
from gradseg.calibration.quantise import count_quantised, plan_for, quantisation_target, quantised
from gradseg.calibration.sessions import OnnxRunner
from gradseg.calibration.sources import open_frames, other_scenes
from gradseg.models import metadata
from gradseg.models.errors import GradsegError

# ---- observers


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=1, max_size=40), min_size=1, max_size=6
    )
)
def test_observer_counts_everything_where_it_lies(pieces: List[List[float]]) -> None:
    observer = Observer()
    for piece in pieces:
        observer.update(np.asarray(piece, np.float32))
    values: np.ndarray[Any, Any] = np.concatenate([np.asarray(piece, np.float32) for piece in pieces])
    assert observer.counts.sum() == values.size
    assert observer.counts.shape == (BINS,)
    assert (observer.low, observer.high) == (values.min(), values.max())
    # every value lies within a bin's width of where the histogram has it, in order
    width = 2 * observer.reach / BINS
    placed = np.repeat(observer.centres(), observer.counts)
    assert np.abs(np.sort(values.astype(np.float64)) - placed).max() <= 1.001 * width
    full = observer.range("minmax")
    assert full.low == min(values.min(), 0) and full.high == max(values.max(), 0)


def test_observer_is_the_same_in_pieces_and_at_once() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=4000) * np.geomspace(0.01, 100, 4000)).astype(np.float32)
    parts, whole = Observer(), Observer()
    for piece in np.split(values, 40):  # the range grows with nearly every piece
        parts.update(piece)
    whole.update(values)
    assert parts.reach == whole.reach
    # bins are merged without loss; a value on a bin's edge may be rounded to either side
    assert np.abs(np.cumsum(parts.counts) - np.cumsum(whole.counts)).max() <= 4


def test_percentile_and_mse_cut_off_an_outlier() -> None:
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=200_000)).astype(np.float32)
    values[0] = 20.0
    observer = Observer()
    observer.update(values)
    assert observer.range("minmax").high == 20.0
    assert observer.range("percentile", percentile=99.9).high < 6.0
    errors = {}
    for method in ("minmax", "mse"):
        limits = observer.range(method)
        step = (limits.high - limits.low) / 255
        errors[method] = ((np.clip(np.rint(values / step), 0, 255) * step - values) ** 2).mean()
    assert errors["mse"] < errors["minmax"]


def test_ranges_hold_zero_and_symmetric_ones_are() -> None:
    observer = Observer()
    observer.update(np.array([3.0, 5.0], np.float32))
    assert observer.range("minmax") == Range(0.0, 5.0)
    assert observer.range("minmax", symmetric=True) == Range(-5.0, 5.0)
    constant = Observer()
    constant.update(np.zeros(5, np.float32))
    assert constant.range("mse") == Range(0.0, 0.0)


def test_observer_refuses_what_is_no_range() -> None:
    with pytest.raises(GradsegError, match="NaN or infinity in an activation"):
        Observer().update(np.array([1.0, np.nan], np.float32))
    with pytest.raises(GradsegError, match="no calibration frames"):
        Observer().range("minmax")
    with pytest.raises(GradsegError, match="calibration method 'entropy'; one of minmax, percentile, mse"):
        Observer().range("entropy")


# ---- collecting


def test_frames_are_consumed_one_at_a_time() -> None:
    model = exported()
    alive: List[Any] = []
    most = 0

    def stream() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal most
        for index in range(5):
            frame = frames()[index % 4][0].copy()
            alive.append(weakref.ref(frame))
            yield frame
            del frame
            most = max(most, sum(ref() is not None for ref in alive))

    observers = observers_from_frames(model, plan_for(model, "cpu").observed()[:4], stream(), threads=1)
    assert len(alive) == 5
    assert most <= 1, "earlier frames are still held"
    assert all(observer.counts.shape == (BINS,) for observer in observers.values())


def test_tensors_are_observed_in_groups_that_fit_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exported()
    names = plan_for(model, "cpu").observed()[:6]
    once = observers_from_frames(model, names, [frames()[0][0]], threads=1)
    monkeypatch.setattr(collect, "BUDGET", 1)
    assert collect._groups(names, dict.fromkeys(names, 10)) == [[name] for name in names]
    apart = observers_from_frames(model, names, [frames()[0][0]], threads=1)
    for name in names:
        np.testing.assert_array_equal(once[name].counts, apart[name].counts)


def test_no_frames_is_an_error() -> None:
    with pytest.raises(GradsegError, match="no frames to calibrate with"):
        observers_from_frames(exported(), plan_for(exported(), "cpu").observed(), [], threads=1)


# ---- sources


@pytest.mark.parametrize("text", ["random", "random:", "random:100", "noise:seed=1", "Gaussian", "zeros"])
def test_random_data_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(GradsegError, match="refused: ranges measured on random data do not fit real frames"):
        open_frames(text, 4)


def test_a_folder_that_happens_to_be_called_random_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random").mkdir()
    cv2.imwrite(str(tmp_path / "random" / "a.png"), frames()[0][0])
    monkeypatch.chdir(tmp_path)
    assert len(list(open_frames("random", 4))) == 1


def test_sources_are_spread_evenly_and_repeat(tmp_path: Path) -> None:
    for index in range(10):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((8, 8, 3), index * 20, np.uint8))
    source = open_frames(str(tmp_path), 5)
    first = [int(frame[0, 0, 0]) for frame in source]
    assert first == [0, 40, 80, 120, 160]
    assert [int(frame[0, 0, 0]) for frame in source] == first
    assert len(list(open_frames(str(tmp_path / "*.png"), 100))) == 10
    assert len(list(open_frames(SCENES, 3))) == 3


def test_video_frames(tmp_path: Path) -> None:
    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 25, (32, 24))  # type: ignore[attr-defined]
    for index in range(20):
        writer.write(np.full((24, 32, 3), index * 12, np.uint8))
    writer.release()
    values = [int(frame.mean()) for frame in open_frames(path, 4)]
    assert np.abs(np.array(values) - np.array([0, 60, 120, 180])).max() <= 6


@pytest.mark.parametrize("text, message", [("nowhere", "nowhere: no such"), ("camvid:nowhere", "no such folder")])
def test_absent_sources(text: str, message: str) -> None:
    with pytest.raises(GradsegError, match=message):
        open_frames(text, 4)
    with pytest.raises(GradsegError, match="at least 1 is needed"):
        open_frames(SCENES, 0)


# ---- the writer


@pytest.fixture(scope="module", params=["dg2-star-light", "erfnet", "dg2s"])
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def int8(arch: str, target: str, **options: Any) -> onnx.ModelProto:
    return int8_from_fp32(exported(arch), SCENES, Settings(target, frames=2, **options), threads=1)


def zero_points(model: onnx.ModelProto) -> List[Any]:
    graph = Graph(model)
    return [graph.weights[node.input[2]] for node in graph.nodes if node.op_type == "QuantizeLinear"]


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


@settings(max_examples=30, deadline=None)
@given(low=st.floats(-100, 0), high=st.floats(0, 100))
def test_activation_parameters_cover_the_range(low: float, high: float) -> None:
    from gradseg.calibration.quantise import _parameters

    for target, least, most in (("cpu", 0, 255), ("trt", -127, 127)):
        scale, zero = _parameters(Range(low, high), target, False)
        step = float(scale)
        assert step > 0
        assert (least - int(zero)) * step <= low + 0.51 * step + 1e-9
        assert (most - int(zero)) * step >= high - 0.51 * step - 1e-9


def test_quantised_needs_every_range() -> None:
    plan = plan_for(exported(), "cpu")
    with pytest.raises(KeyError):
        quantised(exported(), plan, {}, "cpu")
