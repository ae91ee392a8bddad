"""Building TensorRT plans: with TensorRT-RTX where it is installed (no GPU needed), stand-ins for the rest."""

from __future__ import annotations

import sys
import types
from typing import Any, List, Tuple

import onnx
import pytest
from export_toys import checkpoint, exported, one_torch_thread  # noqa: F401
from trt_toys import classic, find_rtx, int8

from gradseg.export.trt_build import Built, build_plan, check_targets, import_tensorrt, parser_errors, strongly_typed
from gradseg.models.errors import GradsegError
from gradseg.models.spec import ARCHS


@pytest.fixture(scope="module")
def rtx() -> Tuple[str, Any]:
    return find_rtx()


def build(rtx: Tuple[str, Any], model: onnx.ModelProto, precision: str = "fp32", target: str = "sm89") -> Built:
    return build_plan(model.SerializeToString(), checkpoint().spec, precision, [target], "net.onnx", rtx)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("target", ["sm75", "sm86", "sm89"])
def test_int8_builds(rtx: Tuple[str, Any], arch: str, target: str) -> None:
    built = build(rtx, int8(arch, "trt"), "int8", target)
    assert len(built.plan) > 100_000
    assert built.compute_capability == (target,)
    assert built.library == "tensorrt_rtx"


@pytest.mark.parametrize("arch", ARCHS)
def test_fp32_builds(rtx: Tuple[str, Any], arch: str) -> None:
    assert len(build(rtx, exported(arch)).plan) > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("target", ["sm75", "sm86", "sm120"])
def test_every_architecture_builds_for_other_gpus(rtx: Tuple[str, Any], arch: str, target: str) -> None:
    for model, precision in ((exported(arch), "fp32"), (int8(arch, "trt"), "int8")):
        assert build(rtx, model, precision, target).plan


def test_an_unknown_gpu_is_named(rtx: Tuple[str, Any]) -> None:
    with pytest.raises(GradsegError, match=r"--compute-capability sm99: TensorRT-RTX builds for sm120, .*sm75, .*sm89"):
        build(rtx, exported(), target="sm99")
    check_targets(rtx, ["sm89"])
    with pytest.raises(GradsegError, match="sm99: TensorRT-RTX builds for"):
        check_targets(rtx, ["sm99"])


@pytest.mark.parametrize("target", ["89", "sm", "sm8x", "8.9", "ampere"])
def test_what_cannot_be_a_compute_capability_is_refused_without_a_library(target: str) -> None:
    with pytest.raises(GradsegError, match="expected smNN"):
        check_targets(None, [target])


def test_a_parser_error_names_the_node_and_what_to_change(rtx: Tuple[str, Any]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported())
    node = next(node for node in model.graph.node if node.op_type == "ArgMax")
    node.op_type, node.name = "Det", "the_odd_one"
    del node.attribute[:]
    with pytest.raises(
        GradsegError, match=r"net\.onnx: tensorrt_rtx .* cannot parse it: node .*the_odd_one.*Det"
    ) as caught:
        build(rtx, model)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_uint8_activations_are_explained(rtx: Tuple[str, Any]) -> None:
    with pytest.raises(GradsegError, match="--precision int8"):
        build(rtx, int8("dg2-star-light", "cpu"), "int8")


def test_the_logits_form_is_refused_before_building(rtx: Tuple[str, Any]) -> None:
    from gradseg.export.onnx_export import onnx_from_checkpoint

    model = onnx_from_checkpoint(checkpoint(), logits=True)
    with pytest.raises(GradsegError, match=r"input is .*; expected uint8 \(1, 64, 96, 3\), the deployment form"):
        build(rtx, model)


# ---- a TensorRT of another kind


@pytest.mark.parametrize("precision, flags", [("fp32", []), ("fp16", ["FP16"]), ("int8", ["INT8", "FP16"])])
def test_weakly_typed_tensorrt_is_told_the_precision(precision: str, flags: List[str]) -> None:
    trt = classic()
    built = build_plan(b"onnx", checkpoint().spec, precision, [], "net.onnx", ("tensorrt", trt))
    assert (built.plan, trt.set_flags, built.flags) == (b"plan", flags, tuple(flags))
    assert trt.network_flags == 1  # explicit batch
    assert not strongly_typed("tensorrt", trt)


def test_tensorrt_11_is_strongly_typed() -> None:
    trt = classic("11.0.0", typed=True)
    assert strongly_typed("tensorrt", trt)
    assert build_plan(b"onnx", checkpoint().spec, "int8", [], "net.onnx", ("tensorrt", trt)).flags == ()


def test_classic_tensorrt_cannot_build_for_another_gpu() -> None:
    with pytest.raises(GradsegError, match="builds for this machine's GPU only") as caught:
        build_plan(b"onnx", checkpoint().spec, "fp32", ["sm89"], "net.onnx", ("tensorrt", classic()))
    assert caught.value.exit_code == 3


def test_tensorrt_without_a_gpu_is_exit_3() -> None:
    with pytest.raises(GradsegError, match=r"cannot start .CUDA initialization failure.*needs an NVIDIA GPU") as caught:
        build_plan(b"onnx", checkpoint().spec, "fp32", [], "net.onnx", ("tensorrt", classic(gpu=False)))
    assert caught.value.exit_code == 3


def test_the_library_that_can_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", classic())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", types.ModuleType("tensorrt_rtx"))
    assert import_tensorrt(cross=False)[0] == "tensorrt"
    assert import_tensorrt(cross=True)[0] == "tensorrt_rtx"


def test_parser_errors_of_old_versions_have_fewer_methods() -> None:
    class Error:
        def node(self) -> int:
            return 7

        def desc(self) -> str:
            return "Assertion failed: no importer\nregistered for op"

    parser = types.SimpleNamespace(num_errors=1, get_error=lambda index: Error())
    found = parser_errors(parser)
    assert found.startswith("node number 7: Assertion failed: no importer registered for op. Replace this operator")
