"""Building TensorRT plans with TensorRT-RTX, where it is installed (no GPU needed); what its failures say."""

from __future__ import annotations

import re
import sys
import types
from typing import Any, Tuple

import onnx
import pytest
from export_toys import HW, checkpoint, exported, one_torch_thread  # noqa: F401
from trt_toys import classic, find_rtx, int8

from gradseg.base.errors import GradsegError
from gradseg.export.trt.build import Built, build_plan, import_tensorrt, strongly_typed
from gradseg.export.trt.messages import Messages, build_error, nodes_in, parser_errors, plain
from gradseg.export.trt.options import BuildOptions


@pytest.fixture(scope="module")
def rtx() -> Tuple[str, Any]:
    return find_rtx()


def build(rtx: Tuple[str, Any], model: onnx.ModelProto, precision: str = "fp32", **options: Any) -> Built:
    options = {"targets": ("sm89",), **options}
    return build_plan(model.SerializeToString(), BuildOptions(precision, **options), "net.onnx", rtx, HW)


def test_a_plan_says_how_it_was_built(rtx: Tuple[str, Any]) -> None:
    built = build(rtx, exported(), sparse=True, tf32=True, workspace_mib=64, targets=("sm86", "sm89"))
    assert len(built.plan) > 100_000 and built.seconds > 0
    assert (built.library, built.version) == ("tensorrt_rtx", rtx[1].__version__)
    assert (built.compute_capability, built.flags, built.notes) == (("sm86", "sm89"), ("SPARSE_WEIGHTS", "TF32"), ())
    assert strongly_typed(*rtx)


def test_an_unknown_gpu_is_named(rtx: Tuple[str, Any]) -> None:
    with pytest.raises(GradsegError, match=r"--compute-capability sm99: TensorRT-RTX builds for sm120, .*sm75, .*sm89"):
        build(rtx, exported(), targets=("sm99",))


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


def test_what_is_no_onnx_is_refused(rtx: Tuple[str, Any]) -> None:
    with pytest.raises(GradsegError, match=r"net\.onnx: tensorrt_rtx .* cannot parse it: "):
        build_plan(b"no model", BuildOptions("fp32", ("sm89",)), "net.onnx", rtx, HW)


def test_uint8_activations_are_explained(rtx: Tuple[str, Any]) -> None:
    with pytest.raises(GradsegError, match="--precision int8"):
        build(rtx, int8("dg2-star-light", "cpu"), "int8")


def test_the_logits_form_is_refused_before_building(rtx: Tuple[str, Any]) -> None:
    from gradseg.graphs.from_torch import onnx_from_checkpoint

    model = onnx_from_checkpoint(checkpoint(), logits=True)
    with pytest.raises(GradsegError, match=r"input is .*; expected uint8 \(1, 64, 96, 3\), the deployment form"):
        build(rtx, model)


def test_another_frame_size_or_batch_is_refused_before_building(rtx: Tuple[str, Any]) -> None:
    data, options = exported().SerializeToString(), BuildOptions("fp32", ("sm89",))
    with pytest.raises(GradsegError, match=r"input is .*\(1, 64, 96, 3\); expected uint8 \(4, 64, 96, 3\)"):
        build_plan(data, options, "net.onnx", rtx, HW, batch=4)
    with pytest.raises(GradsegError, match=r"expected uint8 \(1, 720, 1280, 3\)"):
        build_plan(data, options, "net.onnx", rtx, (720, 1280))


def test_too_small_a_workspace_says_so(rtx: Tuple[str, Any]) -> None:
    with pytest.raises(GradsegError, match=r"within workspace limit.*--workspace 1 may be too small") as caught:
        build(rtx, exported(), workspace_mib=1)
    assert caught.value.exit_code == 2
    assert ".cpp" not in str(caught.value) and "Error Code" not in str(caught.value)


# ---- messages of TensorRTs that need a GPU to fail; the texts are theirs, from their issue trackers


@pytest.mark.parametrize(
    "operator, reason, advice",
    [
        ("Cast", "unsupported type", "TensorRT takes uint8 only at a Cast on the border"),
        ("Add", "UINT8 is not supported", "TensorRT takes uint8 only at a Cast on the border"),
        ("QuantizeLinear", "zero point must be zero", "TensorRT takes symmetric int8 only"),
        ("Add", "broadcast of shapes failed", ""),
        ("Einsum", "unsupported equation", "Replace this operator"),
    ],
)
def test_advice_for_a_parser_error(operator: str, reason: str, advice: str) -> None:
    error = types.SimpleNamespace(node_name=lambda: "n", node_operator=lambda: operator, desc=lambda: reason)
    found = parser_errors(types.SimpleNamespace(num_errors=1, get_error=lambda index: error))
    assert found.startswith(f"node n ({operator}): {reason}")
    assert found[len(f"node n ({operator}): {reason}") :].lstrip(". ").startswith(advice)


def test_a_network_named_like_the_accelerator_gets_no_advice_about_it() -> None:
    messages = Messages(classic())
    messages.logger.log(messages_severity(messages, "ERROR"), "Error Code 4: Internal Error (dla34/Cast: bad shape)")
    assert build_error(messages, {}, BuildOptions("fp16")) == "dla34/Cast: bad shape"


NODES = {name: name.split("#")[0] for name in ("/enc/Conv", "/enc/Conv_1", "/enc/Relu", "/dec/ArgMax#2", "Up")}
SAID = [
    (
        "10: [optimizer.cpp::computeCosts::3728] Error Code 10: Internal Error (Could not find any implementation for "
        "node {ForeignNode[/enc/Conv.../dec/ArgMax#2]}.)",
        BuildOptions("fp16"),
        r"^node /enc/Conv, /dec/ArgMax: Could not find any implementation for node .*\. Build with --precision fp32",
    ),
    (
        "10: [optimizer.cpp::computeCosts::3728] Error Code 10: Internal Error (Could not find any implementation for "
        "node /enc/Conv_1 + PWN(/enc/Relu).)",
        BuildOptions("int8", workspace_mib=8),
        r"^node /enc/Conv_1, /enc/Relu: .*\. --workspace 8 may be too small: give more, or leave it out$",
    ),
    (
        "2: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory (no further information)",
        BuildOptions("fp32"),
        r"^no further information\. The GPU's memory is full: close other programs",
    ),
    (
        "9: [standardEngineBuilder.cpp::buildEngine::2072] Error Code 9: Internal Error (Networks with "
        "QuantizeLayer/DequantizeLayer layers require hardware with Int8 support.)",
        BuildOptions("int8"),
        r"^Networks with .* Int8 support\. This GPU has no INT8: use --precision fp16$",
    ),
    (
        "4: [network.cpp::validate::2770] Error Code 4: Internal Error (DLA validation failed for Up)",
        BuildOptions("fp16", dla=0),
        r"^node Up: DLA validation failed for Up\. Leave --dla out",
    ),
    (
        "IBuilder::buildSerializedNetwork: Error Code 6: API Usage Error (Unable to load library: "
        "libnvinfer_lean.so.10: cannot open shared object file In Impl at /_src/runtime/dispatch/libLoader.cpp:305)",
        BuildOptions("fp32", version_compatible=True),
        r"^Unable to load library: libnvinfer_lean.*--version-compatible needs TensorRT's lean runtime",
    ),
]


@pytest.mark.parametrize("text, options, expected", SAID)
def test_a_builder_error_names_nodes_and_what_to_change(text: str, options: BuildOptions, expected: str) -> None:
    messages = Messages(classic())
    messages.logger.log(messages_severity(messages, "ERROR"), text)
    found = build_error(messages, NODES, options)
    assert re.search(expected, found), found
    assert ".cpp" not in found and "Error Code" not in found and "\n" not in found


def messages_severity(messages: Messages, name: str) -> Any:
    return getattr(type(messages.logger).__mro__[1].Severity, name)


def test_names_inside_longer_names_are_not_taken_for_nodes() -> None:
    assert nodes_in("at /enc/Conv_12, /enc/Conv/x and Upper", NODES) == []
    assert nodes_in("(/enc/Conv_1) then [Up...", NODES) == ["/enc/Conv_1", "Up"]
    assert nodes_in("anything", {}) == []


def test_what_the_parser_logs_says_which_layer_is_which_node() -> None:
    messages = Messages(classic())
    verbose = messages_severity(messages, "VERBOSE")
    messages.logger.log(verbose, "Registering layer: /dec/ArgMax_12 for ONNX node: /dec/ArgMax")
    messages.logger.log(verbose, "Registering tensor: x for ONNX tensor: x")
    assert messages.nodes == {"/dec/ArgMax_12": "/dec/ArgMax"}


def test_the_parser_of_tensorrt_rtx_logs_every_layer(rtx: Tuple[str, Any]) -> None:
    trt = rtx[1]
    messages = Messages(trt)
    network = trt.Builder(messages.logger).create_network(0)
    assert trt.OnnxParser(network, messages.logger).parse(exported().SerializeToString())
    names = {network.get_layer(index).name for index in range(network.num_layers)}
    own = {name for name in names if name.startswith(("ONNXTRT_", "(Unnamed Layer"))}  # helpers of the parser's
    assert names - own <= set(messages.nodes)
    assert set(messages.nodes.values()) <= {node.name for node in exported().graph.node}


def test_one_logger_serves_a_library_and_its_latest_build() -> None:
    trt = classic()
    first, second = Messages(trt), Messages(trt)
    assert first.logger is second.logger
    second.logger.log(trt.ILogger.Severity.ERROR, "lost?")
    assert (first.errors, second.errors) == ([], ["lost?"])


def test_a_message_without_codes_stays_as_it_is() -> None:
    assert plain("Failed to load\n  weights (of node x)") == "Failed to load weights (of node x)"
    assert len(plain("x" * 1000)) == 300
    assert plain("") == ""


# ---- which library


def test_classic_tensorrt_cannot_build_for_another_gpu() -> None:
    with pytest.raises(GradsegError, match="builds for this machine's GPU only") as caught:
        build_plan(b"onnx", BuildOptions("fp32", ("sm89",)), "net.onnx", ("tensorrt", classic()), HW)
    assert caught.value.exit_code == 3


def test_tensorrt_without_a_gpu_is_exit_3() -> None:
    with pytest.raises(
        GradsegError, match=r"cannot start \(CUDA initialization failure.*needs an NVIDIA GPU"
    ) as caught:
        build_plan(b"onnx", BuildOptions("fp32"), "net.onnx", ("tensorrt", classic(gpu=False)), HW)
    assert caught.value.exit_code == 3


def test_a_gpu_that_is_missing_only_while_building_is_exit_3() -> None:
    trt = classic("10.3.0")

    def build_nothing(network: Any, config: Any) -> None:
        logger = trt.called("Builder")[0][0]
        logger.log(trt.ILogger.Severity.ERROR, "Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is low)")

    trt.returns["Builder.build_serialized_network"] = build_nothing
    with pytest.raises(
        GradsegError, match=r"net\.onnx: tensorrt 10\.3\.0 cannot build it: .*finds no NVIDIA GPU"
    ) as why:
        build_plan(b"onnx", BuildOptions("fp32"), "net.onnx", ("tensorrt", trt), HW)
    assert why.value.exit_code == 3


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
