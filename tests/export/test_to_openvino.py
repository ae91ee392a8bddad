"""OpenVINO engines: the family's labels, what the files say of themselves, and files that are not whole."""

from __future__ import annotations

import functools
import platform
import sys
import xml.etree.ElementTree as Tree
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import onnx
import pytest
from export_toys import HW as SCENE_HW
from export_toys import exported, frames, int8_from_fp32, one_torch_thread  # noqa: F401
from onnx import TensorProto, helper, numpy_helper
from runtime_toys import HW, SPEC, deployment_onnx, expected_labels, framed_onnx

from gradseg.base.conditions import usable_cores
from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.int8 import Settings
from gradseg.calibration.qdq.plan import plan_for
from gradseg.calibration.qdq.quantise import count_quantised
from gradseg.export.openvino_ir import files as openvino_ir
from gradseg.export.openvino_ir.make import openvino_form
from gradseg.graphs.sessions import OnnxRunner
from gradseg.graphs.ties import Decided
from gradseg.models.spec import spec_for
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.ov import OvEngine, check_weights, read_ir_metadata, weights_of

pytest.importorskip("openvino")


def toy(path: Path, hint: str = "f32", **choices: Any) -> Path:
    """The IR of `deployment_onnx`: labels that can be computed by hand."""
    openvino_ir.write_ir(openvino_form(floored(deployment_onnx(path.with_suffix(".onnx"), **choices))), path, hint)
    return path


def floored(path: Path) -> onnx.ModelProto:
    """A toy in floats, which hold its numbers exactly enough: OpenVINO rounds where it divides integers."""
    model = onnx.load(str(path))
    model.graph.node[0].attribute[0].i = TensorProto.FLOAT
    for tensor in model.graph.initializer:
        if tensor.name != "axis":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    model.graph.node[3].output[0] = "quotient"
    model.graph.node.insert(4, helper.make_node("Floor", ["quotient"], ["index"]))
    return model


def random_batch(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (1, *HW, 3), np.uint8)


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["dg2-star-light", "dg4-star-light", "d-star-light", "dg2s", "erfnet"])
def test_fp32_gives_onnx_runtimes_labels(arch: str, tmp_path: Path) -> None:
    model = exported(arch)
    openvino_ir.write_ir(openvino_form(model), tmp_path / "m.xml", "f32")
    engine = open_engine(tmp_path / "m.xml", threads=1)
    assert engine.spec.arch == arch and engine.precision == "fp32" and engine.frame_hw == SCENE_HW
    data = model.SerializeToString()
    runner, decided = OnnxRunner(data), Decided(data, arch)
    for frame in frames():
        expected = runner.first(frame)
        counted = decided(frame, expected)
        assert counted.mean() > 0.99
        np.testing.assert_array_equal(engine.infer(frame)[counted], expected[counted])
    engine.close()


@functools.cache
def int8(arch: str) -> onnx.ModelProto:
    settings = Settings("openvino", "minmax", 4)
    return int8_from_fp32(exported(arch), "scenes:frames=4,size=64x96", settings, threads=1)


@pytest.mark.parametrize("arch", ["dg2-star-light", "dg2s", "erfnet"])
def test_int8_keeps_as_many_labels_as_its_onnx(arch: str, tmp_path: Path) -> None:
    """As ONNX Runtime keeps when it computes the Q/DQ as written. In networks this small and untrained every rounding
    changes some labels, so that two INT8 computations agree no better with each other than with FP32."""
    model = int8(arch)
    openvino_ir.write_ir(openvino_form(model), tmp_path / "m.xml", "f32")
    engine = open_engine(tmp_path / "m.xml", threads=1)
    assert engine.precision == "int8"
    plain, written = (
        OnnxRunner(exported(arch).SerializeToString()),
        OnnxRunner(model.SerializeToString(), integers=False),
    )
    labels = [(engine.infer(frame).copy(), written.first(frame), plain.first(frame)) for frame in frames()]
    kept, wanted = (float(np.mean([one[index] == one[2] for one in labels])) for index in (0, 1))
    assert kept > max(0.8, wanted - 0.04), (kept, wanted)
    engine.close()


@pytest.mark.parametrize("arch", ["dg2-star-light", "dg2s", "erfnet"])
def test_int8_convolutions_and_sums_really_run_in_int8(arch: str, tmp_path: Path) -> None:
    import openvino

    core = openvino.Core()
    if "INT8" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") or platform.machine() != "x86_64":
        pytest.skip("needs an x86 CPU with INT8 kernels in OpenVINO")
    model = int8(arch)
    openvino_ir.write_ir(openvino_form(model), tmp_path / "m.xml", "f32")
    kinds: Dict[str, List[str]] = {}
    for layer in core.compile_model(str(tmp_path / "m.xml"), "CPU").get_runtime_model().get_ops():
        facts = layer.get_rt_info()
        kinds.setdefault(facts["layerType"].astype(str), []).append(facts["runtimePrecision"].astype(str))
    found = kinds["Convolution"] + kinds.get("Deconvolution", [])
    assert sum(kind in ("u8", "i8") for kind in found) == count_quantised(model)[0], kinds
    assert not set(kinds) & {"Eltwise", "Add"}, kinds  # sums are computed inside of convolutions


def test_int8_plan_leaves_two_convolutions_in_float_and_quantises_sums_on_both_sides() -> None:
    model = exported("dg2-star-light")
    plan = plan_for(model, "openvino")
    assert set(plan.tensors) <= set(plan_for(model, "tidl").tensors)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert [n.name for n in convolutions if n.name not in plan.nodes] == [convolutions[0].name, convolutions[-1].name]
    assert count_quantised(int8("dg2-star-light")) == (len(convolutions) - 2, len(convolutions))
    for add in (node for node in model.graph.node if node.op_type == "Add"):
        assert set(add.input) <= set(plan.tensors)


# -- the engine --------------------------------------------------------------------------------------------------------


def test_engine(tmp_path: Path) -> None:
    engine: Any = open_engine(toy(tmp_path / "m.xml"), threads=1)
    assert engine.spec == SPEC and engine.device == "CPU" and engine.precision == "int8"
    assert engine.backend.startswith("openvino 20") and " " not in engine.backend.partition(" ")[2]
    assert engine.threads == 1 and (engine.batch, engine.frame_hw) == (1, HW)
    assert engine.calibration == {"frames": 3}
    for seed in range(3):
        batch = random_batch(seed)
        np.testing.assert_array_equal(engine.infer(batch), expected_labels(batch))
    engine.close()
    engine.close()


def test_labels_are_one_buffer_and_frames_are_not_copied(tmp_path: Path) -> None:
    engine = open_engine(toy(tmp_path / "m.xml"), threads=1)
    one, two = random_batch(1), random_batch(2)
    address = engine.infer(one).ctypes.data
    assert engine.infer(two).ctypes.data == address
    np.testing.assert_array_equal(engine.infer(two), expected_labels(two))
    two[:] = 255  # same address, other content
    assert (engine.infer(two) == 10).all()
    engine.close()


@pytest.mark.parametrize(
    "wrong", [random_batch()[:, ::2], random_batch().astype(np.float32), random_batch()[:, :, ::-1]]
)
def test_what_is_no_batch_is_refused(wrong: np.ndarray[Any, Any], tmp_path: Path) -> None:
    engine = open_engine(toy(tmp_path / "m.xml"), threads=1)
    with pytest.raises(GradsegError, match="engine input: expected contiguous uint8 BGR"):
        engine.infer(wrong)


def test_threads_and_pinning_reach_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    path, asked = toy(tmp_path / "m.xml"), []
    real = openvino.Core.compile_model

    def spied(self: Any, model: Any, device: str, config: Any) -> Any:
        asked.append(config)
        return real(self, model, device, config)

    monkeypatch.setattr(openvino.Core, "compile_model", spied)
    assert open_engine(path).threads == usable_cores()
    OvEngine(path, 1, pinning=False).close()
    openvino_ir.write_ir(onnx.load(str(path.with_suffix(".onnx"))), path, "bf16", pinning=True)
    OvEngine(path, 1).close()
    OvEngine(path, 1, pinning=False).close()
    assert [config["INFERENCE_NUM_THREADS"] for config in asked] == [usable_cores(), 1, 1, 1]
    assert [config.get("ENABLE_CPU_PINNING") for config in asked] == [None, False, True, False]
    assert [config["INFERENCE_PRECISION_HINT"] for config in asked] == ["f32", "f32", "bf16", "bf16"]
    assert {config["PERFORMANCE_HINT"] for config in asked} == {"LATENCY"}


def test_half_precision_is_named_only_where_the_cpu_has_it(tmp_path: Path) -> None:
    import openvino

    has = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    engine = open_engine(toy(tmp_path / "m.xml", "bf16", precision="fp32"), threads=1)
    assert engine.precision == ("bf16" if has else "fp32")


def test_frames_of_another_size_built_in(tmp_path: Path) -> None:
    model = floored(framed_onnx(tmp_path / "m.onnx", (48, 80), 2))
    openvino_ir.write_ir(model, tmp_path / "m.xml", "f32")
    engine = open_engine(tmp_path / "m.xml", threads=1)
    assert (engine.batch, engine.frame_hw, engine.spec.input_hw) == (2, (48, 80), HW)
    batch = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3), np.uint8)
    np.testing.assert_array_equal(engine.infer(batch), expected_labels(batch))


# -- what the files say ------------------------------------------------------------------------------------------------


def test_rt_info_round_trip(tmp_path: Path) -> None:
    spec = spec_for("dg2-star-light", ['a "quoted"', "<b> & c", "straße"], [(1, 2, 3)] * 3, HW)
    path = toy(tmp_path / "m.xml", "bf16", spec=spec)
    found = read_ir_metadata(path)
    assert set(found) == {
        *("gradseg.spec", "gradseg.format", "gradseg.precision", "gradseg.calibration"),
        *("gradseg.hint", "gradseg.weights_bytes", "gradseg.weights_sha256"),
    }
    assert (found["gradseg.hint"], found["gradseg.precision"]) == ("bf16", "int8")
    assert found["gradseg.weights_bytes"] == str(weights_of(path).stat().st_size)
    assert open_engine(path, threads=1).spec == spec
    assert "onnxsim" not in path.read_text("utf-8")


def test_a_spec_that_is_given_wins(tmp_path: Path) -> None:
    other = spec_for("d", input_hw=HW)
    assert open_engine(toy(tmp_path / "m.xml"), threads=1, spec=other).spec == other


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    toy(tmp_path / "m.xml")
    toy(tmp_path / "m.xml", "bf16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.onnx", "m.xml"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(path: Path, code: int = 2, **choices: Any) -> str:
    with pytest.raises(GradsegError) as caught:
        open_engine(path, threads=1, **choices)
    text = str(caught.value)
    assert caught.value.exit_code == code and "\n" not in text and path.name in text
    return text


def edited(path: Path, change: Callable[[Tree.Element], None]) -> Path:
    tree = Tree.parse(str(path))
    change(tree.getroot())
    tree.write(str(path))
    return path


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """An IR with weights worth damaging."""
    openvino_ir.write_ir(openvino_form(exported("dg2-star-light")), tmp_path / "m.xml", "f32")
    return tmp_path / "m.xml"


def test_weights_that_are_missing_cut_or_changed(real: Path) -> None:
    weights = weights_of(real)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert f"{len(whole) - 100} bytes, but m.xml was written with {len(whole)}" in refused(real)
    weights.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert "is damaged or of another network than m.xml (SHA-256)" in refused(real)
    weights.unlink()
    assert "its weights, m.bin, are not beside it; copy both files" in refused(real)
    weights.write_bytes(whole)
    check_weights(real, read_ir_metadata(real))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_description(real: Path, share: float) -> None:
    whole = real.read_bytes()
    real.write_bytes(whole[: int(len(whole) * share)])
    assert ("is empty" if share == 0 else "truncated or not an OpenVINO IR") in refused(real)


@pytest.mark.parametrize("text", ["<svg/>", "<net name='a'/>", "plain text", "\x00\x01\x02", "<net"])
def test_xml_that_is_no_ir(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.xml"
    path.write_text(text, "utf-8")
    assert "not an OpenVINO IR" in refused(path)


def test_an_ir_of_other_origin_needs_a_spec(tmp_path: Path) -> None:
    path = toy(tmp_path / "m.xml", metadata=False)
    assert "an OpenVINO IR without GradSeg's metadata" in refused(path)
    assert open_engine(path, threads=1, spec=SPEC).spec == SPEC


def test_an_ir_of_another_form(tmp_path: Path) -> None:
    path = toy(tmp_path / "m.xml")
    text = refused(path, spec=spec_for("d", input_hw=(32, 32)))
    assert "takes u8 [1, 24, 32, 3] and gives u8 [1, 24, 32]; expected one u8 [1, 32, 32, 3] (BGR)" in text


def test_layers_that_openvino_does_not_know(real: Path) -> None:
    def unknown(root: Tree.Element) -> None:
        next(layer for layer in root.iter("layer") if layer.get("type") == "MatMul").set("type", "MatMul99")

    text = refused(edited(real, unknown))
    assert "cannot load it: damaged, or made for a newer version" in text and "MatMul99" in text


def test_a_hint_of_a_later_version(real: Path) -> None:
    def later(root: Tree.Element) -> None:
        found = root.find("rt_info/gradseg/hint")
        assert found is not None
        found.set("value", "f4")

    assert "gradseg.hint is 'f4'" in refused(edited(real, later))
    with pytest.raises(GradsegError, match="precision hint 'f4'; one of f32, bf16, f16"):
        openvino_ir.write_ir(exported("dg2-star-light"), real, "f4")


def test_without_openvino(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "this needs openvino, not installed here: pip install -e " in refused(real, code=3)
    with pytest.raises(GradsegError, match="this needs openvino, not installed here") as caught:
        openvino_ir.write_ir(exported("dg2-star-light"), real, "f32")
    assert caught.value.exit_code == 3


def test_an_onnx_file_that_openvino_cannot_read(tmp_path: Path) -> None:
    model = onnx.load(str(deployment_onnx(tmp_path / "m.onnx")))
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(GradsegError, match=r"m.xml: OpenVINO 20\S+ cannot read the ONNX \(") as caught:
        openvino_ir.write_ir(model, tmp_path / "m.xml", "f32")
    assert "\n" not in str(caught.value) and not (tmp_path / "m.xml").exists() and not (tmp_path / "m.bin").exists()


def test_a_provider_is_for_onnx_files(tmp_path: Path) -> None:
    with pytest.raises(GradsegError, match=r"--provider cuda: is for \.onnx files"):
        open_engine(toy(tmp_path / "m.xml"), provider="cuda")
