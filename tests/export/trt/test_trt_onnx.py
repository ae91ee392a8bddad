"""The ONNX forms for TensorRT: INT8 with FP16 beside it, weakly and strongly typed, and what builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import numpy as np
import onnx
import pytest
from export_toys import SCENES, checkpoint, exported, frames, one_torch_thread  # noqa: F401
from foreign_checks import converted, folder  # noqa: F401
from foreign_toys import CLASSES, Net, lively, toy
from foreign_zoo import ZOO, W
from half_toys import args_for, kept_of, labels, loaded, network, overflowing, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from trt_toys import find_rtx, int8

from gradseg.base.errors import GradsegError
from gradseg.base.files import sha256_of
from gradseg.export.trt.forms import emulated, half_form, onnx_for_trt
from gradseg.graphs.borders import with_borders
from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.raise_opset import raised
from gradseg.graphs.passes.to_half import SMALLEST
from gradseg.graphs.sessions import OnnxRunner, exposed

UNIT = 2.0**-11
TARGETS = ("sm75", "sm86", "sm89", "sm120")


# ---- INT8 with FP16 beside it


def scales_of(model: onnx.ModelProto) -> Dict[str, np.ndarray[Any, Any]]:
    """The int8 weights' or quantised tensor's name → scale."""
    weights = weights_of(model)
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return {f"{node.op_type} {node.input[0]}": weights[node.input[1]] for node in nodes}


@pytest.mark.parametrize("arch", ["dg2-star-light", "erfnet"])
def test_int8_gets_float16_scales(arch: str) -> None:
    before = int8(arch, "trt")
    after = half_form(before)
    assert [entry.version for entry in after.opset_import] == [19] and after.ir_version == 9
    old, new = scales_of(before), scales_of(after)
    assert old.keys() == new.keys()
    for name, scale in new.items():
        assert scale.dtype == np.float16
        assert np.abs(scale.astype(np.float64) / old[name].astype(np.float64) - 1).max() <= UNIT
    integers = [{n: v for n, v in weights_of(model).items() if v.dtype == np.int8} for model in (before, after)]
    assert integers[0].keys() == integers[1].keys()
    assert all(np.array_equal(integers[0][name], integers[1][name]) for name in integers[0])
    floats = {n for n, v in weights_of(after).items() if v.dtype == np.float32}
    resizes = {name for node in after.graph.node if node.op_type == "Resize" for name in node.input[1:]}
    assert floats <= resizes
    kept = [np.mean([labels(m, f) == labels(exported(arch), f) for f in frames()]) for m in (before, after)]
    assert kept[1] > kept[0] - 0.01  # untrained networks lose much in INT8, float16 beside it takes no more


def scaled(model: onnx.ModelProto, tensors: Any, factor: float) -> onnx.ModelProto:
    """The model with some of its constants times `factor`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for found in copy.graph.initializer:
        if found.name in tensors:
            value = numpy_helper.to_array(found) * np.float32(factor)
            found.CopyFrom(numpy_helper.from_array(value, found.name))
    return copy


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 3.0), spread=st.floats(-12.0, 4.0))
def test_what_float16_scales_do_to_a_convolution(seed: int, scale: float, spread: float) -> None:
    """Each dequantised weight and activation moves by 2^-11 of itself at most, as do the bias and the result."""
    rng = np.random.default_rng(seed)
    packed = rng.integers(-127, 128, (4, 3, 1, 1), dtype=np.int8)
    weights = {
        "s": np.float32(scale), "z": np.int8(0), "q": packed, "zero": np.zeros(4, np.int8), "half": np.float32(0.5),
        "t": (rng.uniform(0.5, 1.0, 4) * 2.0**spread).astype(np.float32), "b": np.float32(rng.normal(size=4)),
    }  # fmt: skip
    model = network(
        [
            ("Mul", ["pixels", "half"], "x", {}),
            ("QuantizeLinear", ["x", "s", "z"], "x_int8", {}),
            ("DequantizeLinear", ["x_int8", "s", "z"], "x_back", {}),
            ("DequantizeLinear", ["q", "t", "zero"], "w", {"axis": 0}),
            ("Conv", ["x_back", "w", "b"], "logits", {}),
        ],
        weights,
    )
    half = half_form(model)
    frame = frames()[0]
    new = OnnxRunner(exposed(emulated(half), ["logits"]), threads=1, integers=False).run(frame)[1]
    s, t = (weights[name].astype(np.float16).astype(np.float64) for name in "st")
    x = np.clip(np.rint(frame.transpose(0, 3, 1, 2) * np.float32(0.5) / np.float32(s)), -128, 127).astype(np.float64)
    exact = np.einsum("ocyx,nchw->nohw", packed * (t / weights["t"]).reshape(4, 1, 1, 1), x)
    products = np.einsum("ocyx,nchw->nohw", np.abs(packed.astype(np.float64)), np.abs(x))
    factor = (weights["t"].astype(np.float64) * s).reshape(1, 4, 1, 1)
    bias = weights["b"].astype(np.float64).reshape(1, 4, 1, 1)
    bound = UNIT * (np.abs(exact * factor) + 2 * np.abs(bias)) + 1e-6 * products * factor + 1e-6
    assert (np.abs(new - (exact * factor + bias)) <= bound).all()
    assert (np.abs(t / weights["t"] - 1) <= UNIT).all()
    assert np.array_equal(weights_of(half)["q"], packed)


def test_scales_that_float16_cannot_hold_stay_in_fp32() -> None:
    """The weights' scale and the bias of one convolution are made tiny, and its result large again."""
    model = int8("dg2-star-light", "trt")
    conv = [node for node in model.graph.node if node.op_type == "Conv"][3]
    writer = {node.output[0]: node for node in model.graph.node}
    graph = Graph(scaled(model, (writer[conv.input[1]].input[1], conv.input[2]), 1e-5))
    target = next(node for node in graph.nodes if node.output[0] == conv.output[0])
    target.output[0] = "tiny"
    graph.add("Mul", ["tiny", graph.constant("gain", np.float32(1e5))], conv.output[0])
    tiny = graph.to_model()
    found = kept_of(tiny)
    assert conv.name in found
    half = half_form(tiny, found)
    assert scales_of(half)[f"DequantizeLinear {writer[conv.input[1]].input[0]}"].dtype == np.float32
    weights = weights_of(half)
    shared = writer[conv.input[0]].input[1]  # its input's scale: the same value for all who read that tensor
    copies = {str(value.dtype): float(value) for name, value in weights.items() if name.startswith(f"{shared}_")}
    assert len(set(copies.values())) == 1
    frame = frames()[0]  # an untrained network in INT8 changes many labels for little
    same = [(labels(half_form(m, k), frame) == labels(m, frame)).mean() for m, k in ((tiny, found), (model, ()))]
    assert same[0] > same[1] - 0.03
    assert (labels(half_form(tiny), frame) == labels(tiny, frame)).mean() < same[0] - 0.1


def test_an_activation_scale_below_float16_keeps_its_q_and_dq() -> None:
    model = int8("dg2-star-light", "trt")
    quantise = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    tiny = scaled(model, (quantise.input[1],), float(SMALLEST) / 1e4)
    found = kept_of(tiny)
    assert [why for why in found.values() if why.startswith("INT8 scale")]
    half = half_form(tiny, found)
    exact = float(weights_of(tiny)[quantise.input[1]])
    scales = [
        float(scale) for name, scale in scales_of(half).items() if scale.ndim == 0 and float(scale) < SMALLEST / 2
    ]
    assert scales and set(scales) == {exact}  # not rounded: neither the Q nor its DQs are in float16
    assert not set(kept_of(tiny, typed=False)) & {node.name for node in model.graph.node if node.op_type == "Conv"}


def test_a_newer_opset_is_the_same_function() -> None:
    for model in (int8("erfnet", "trt"), exported(), converted(toy("segformer"))):
        newer = raised(model, 19)
        assert [entry.version for entry in newer.opset_import] == [19]
        assert [node.name for node in newer.graph.node] == [node.name for node in model.graph.node]
        assert newer.metadata_props == model.metadata_props
        np.testing.assert_array_equal(labels(newer, frames()[1]), labels(model, frames()[1]))
        assert raised(newer, 17) is newer


# ---- onnx_for_trt


@pytest.mark.parametrize("arch", ["dg2-star-light", "erfnet"])
def test_fp16_labels_are_those_of_fp32(arch: str) -> None:
    made = onnx_for_trt(loaded(exported(arch)), args_for(), "fp16", True)
    (line,) = [line for line in made.lines if line.startswith("FP16: labels equal to FP32's on ")]
    assert float(line.split(" on ")[1].split(" %")[0]) > 98  # untrained: logits lie close together
    assert made.keep_fp32 == () and made.precision == "fp16"
    entries = {entry.key: entry.value for entry in made.model.metadata_props}
    assert entries["gradseg.precision"] == "fp16" and "gradseg.spec" in entries


def test_fp32_comes_back_as_it_is_but_for_missing_names() -> None:
    assert onnx_for_trt(loaded(exported()), args_for(), "fp32", False).model is exported()
    nameless = onnx.ModelProto()
    nameless.CopyFrom(exported())
    for node in nameless.graph.node:
        node.name = "" if node.op_type == "Relu" else node.op_type
    made = onnx_for_trt(loaded(nameless), args_for(), "fp32", False).model
    names = [node.name for node in made.graph.node]
    assert all(names) and len(set(names)) == len(names)


@pytest.mark.parametrize("typed", [True, False])
def test_int8_for_both_kinds_of_builder(typed: bool, tmp_path: Path) -> None:
    made = onnx_for_trt(loaded(exported()), args_for(), "int8", typed)
    assert [entry.version for entry in made.model.opset_import] == [19 if typed else 17]
    assert any(line.startswith("INT8: labels equal to FP32's on ") for line in made.lines)
    assert {scale.dtype for scale in scales_of(made.model).values()} == {np.dtype(np.float16 if typed else np.float32)}
    assert made.ranges_sha256 is None
    again = onnx_for_trt(loaded(int8("dg2-star-light", "trt")), args_for(), "int8", typed)  # an INT8 file as it came
    assert {scale.dtype for scale in scales_of(again.model).values()} == {np.dtype(np.float16 if typed else np.float32)}
    assert not any("calibrated" in line for line in again.lines)
    assert (
        any("equal to the file's own, which has FP32 where this has FP16, on" in line for line in again.lines) == typed
    )
    third = onnx_for_trt(loaded(again.model), args_for(), "int8", True)  # and one that has its partner
    assert (third.model is again.model) == typed


def test_the_ranges_file_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradseg.calibration.calibrate as calibrate

    path, ranges = tmp_path / "net.onnx", tmp_path / "ranges.json"
    onnx.save(exported(), str(path))
    assert calibrate.main([str(path), "--data", SCENES, "--frames", "2", "-o", str(ranges)]) == 0
    given = args_for(calib=None, ranges=str(ranges), model=str(path))
    made = onnx_for_trt(loaded(exported()), given, "int8", True)
    assert made.ranges_sha256 == sha256_of(ranges)


def foreign(name: str) -> onnx.ModelProto:
    net = Net(seed=5)
    lively(net, ZOO[name](net, net.block("image", (3, W))), W, CLASSES)
    return converted(net.model(["scores"]))


def test_unpooling_is_refused_with_what_to_change() -> None:
    with pytest.raises(GradsegError, match=r"net.onnx: node MaxUnpool_\d+ \(MaxUnpool\): .* Replace it with bilinear"):
        onnx_for_trt(loaded(foreign("unpooling")), args_for(), "fp32", True)


def test_labels_end_as_floats_for_tensorrt_8() -> None:
    """Its parser casts to uint8 from floats alone."""
    model = overflowing(1.0)  # ends in ArgMax (int64) → Cast
    made = onnx_for_trt(loaded(model), args_for(), "fp32", False).model
    last, before = made.graph.node[-1], made.graph.node[-2]
    assert (before.op_type, before.attribute[0].i, last.attribute[0].i) == (
        "Cast",
        TensorProto.FLOAT,
        TensorProto.UINT8,
    )
    np.testing.assert_array_equal(labels(made, frames()[0]), labels(model, frames()[0]))
    other = onnx_for_trt(loaded(converted(toy("deeplab"))), args_for(), "fp16", True).model
    kinds = [node.attribute[0].i for node in other.graph.node if node.op_type == "Cast"]
    assert kinds == [TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.UINT8]  # the int32 one was changed


def test_an_opset_that_tensorrt_8_does_not_read_is_said() -> None:
    newer = raised(exported(), 19)
    assert onnx_for_trt(loaded(newer), args_for(), "fp32", False).lines == [
        "note: net.onnx is of opset 19; TensorRT 8.5 reads up to 17"
    ]
    assert onnx_for_trt(loaded(newer), args_for(), "fp32", True).lines == []


# ---- what builds


def builds(model: onnx.ModelProto, target: str) -> bool:
    """Whether TensorRT-RTX parses and compiles a model; its messages fail the test otherwise."""
    _, trt = find_rtx()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
    return builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize("target", TARGETS)
def test_every_form_builds(target: str) -> None:
    spec, plain = checkpoint().spec, exported()
    quantised = int8("dg2-star-light", "trt")
    island = overflowing()
    for model in (half_form(plain), half_form(quantised)):
        assert builds(with_borders(model, spec, 2, (90, 130)), target)
    assert builds(half_form(island, kept_of(island)), target)


@pytest.mark.parametrize("name", ["segformer", "squeeze_excite", "resizes", "quirks"])
def test_networks_of_others_build_in_fp16(name: str) -> None:
    model = converted(toy(name)) if name == "segformer" else foreign(name)
    half = half_form(model, kept_of(model))
    agreement = [(labels(half, frame) == labels(model, frame)).mean() for frame in frames()]
    assert np.mean(agreement) > 0.99
    assert builds(half, "sm89")
