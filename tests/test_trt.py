"""TensorRT plans: real builds with TensorRT-RTX where it is installed (no GPU needed), stand-ins for the rest."""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, List, Tuple

import onnx
import pytest
from export_toys import HW, SCENES, checkpoint, exported, one_torch_thread  # noqa: F401

import gradseg.export.to_trt as to_trt
from gradseg.calibration import metadata
from gradseg.calibration.calibrate import Settings, int8_from_fp32
from gradseg.export.trt_build import Built, build_plan, import_tensorrt, parser_errors, strongly_typed
from gradseg.models.checkpoint import save_checkpoint
from gradseg.models.errors import GradsegError
from gradseg.models.files import sha256_of
from gradseg.models.spec import ARCHS, ModelSpec
from gradseg.runtime.trt_library import import_one

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def rtx() -> Tuple[str, Any]:
    """TensorRT-RTX, which builds without a GPU."""
    found = import_one("tensorrt_rtx")
    if found is None:
        pytest.skip("needs TensorRT-RTX: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings")
    return "tensorrt_rtx", found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trt")
    save_checkpoint(folder / "net.pth", checkpoint().network)
    onnx.save(exported(), str(folder / "net.onnx"))
    onnx.save(int8("dg2-star-light", "cpu"), str(folder / "cpu.onnx"))
    onnx.save(int8("dg2-star-light", "trt"), str(folder / "int8.onnx"))
    return folder


def int8(arch: str, target: str) -> onnx.ModelProto:
    return int8_from_fp32(exported(arch), SCENES, Settings(target, frames=2), threads=1)


def build(rtx: Tuple[str, Any], model: onnx.ModelProto, precision: str = "fp32", target: str = "sm89") -> Built:
    return build_plan(model.SerializeToString(), checkpoint().spec, precision, [target], "net.onnx", rtx)


@pytest.mark.parametrize("arch", ARCHS)
def test_fp32_and_int8_build(rtx: Tuple[str, Any], arch: str) -> None:
    for model, precision in ((exported(arch), "fp32"), (int8(arch, "trt"), "int8")):
        built = build(rtx, model, precision)
        assert len(built.plan) > 100_000
        assert built.compute_capability == ("sm89",)
        assert built.library == "tensorrt_rtx"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("target", ["sm75", "sm86", "sm120"])
def test_every_architecture_builds_for_other_gpus(rtx: Tuple[str, Any], arch: str, target: str) -> None:
    for model, precision in ((exported(arch), "fp32"), (int8(arch, "trt"), "int8")):
        assert build(rtx, model, precision, target).plan


def test_an_unknown_gpu_is_named(rtx: Tuple[str, Any]) -> None:
    with pytest.raises(GradsegError, match=r"--compute-capability sm99: TensorRT-RTX builds for sm120, .*sm75, .*sm89"):
        build(rtx, exported(), target="sm99")


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


# ---- the command line


def call(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["to_trt.py", *map(str, arguments)])
    return int(to_trt.main())


def check_plan(plan: Path, precision: str) -> dict[str, Any]:
    note: dict[str, Any] = json.loads(Path(f"{plan}.json").read_text())
    beside = plan.with_suffix(".onnx")
    assert plan.stat().st_size > 100_000
    assert ModelSpec.from_dict(note["spec"]) == checkpoint().spec
    assert note["onnx"] == {"file": beside.name, "sha256": sha256_of(beside)}
    assert (note["library"], note["precision"], note["status"]) == ("tensorrt_rtx", precision, "built, not run")
    assert note["compute_capability"] == ["sm89"] and note["build_seconds"] > 0 and note["version"]
    assert metadata.read_metadata(beside)[metadata.PRECISION] == precision
    assert sorted(p.name for p in plan.parent.iterdir()) == sorted([plan.name, f"{plan.name}.json", beside.name])
    return note


@pytest.mark.parametrize("name, precision", [("net.pth", "fp32"), ("net.pth", "int8"), ("net.onnx", "int8")])
def test_plan_from_checkpoint_and_onnx(
    rtx: Tuple[str, Any],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    precision: str,
) -> None:
    out = tmp_path / "net.plan"
    options = ["--precision", precision, "--compute-capability", "sm89", "--data", SCENES, "--calib", SCENES]
    assert call(monkeypatch, files / name, *options, "-o", out) == 0
    check_plan(out, precision)
    said = capsys.readouterr().out
    assert f"wrote {out}: " in said and "for sm89" in said and "built, not run" in said
    assert ("ONNX: labels equal to PyTorch's on" in said) == (name == "net.pth")
    assert ("INT8: labels equal to FP32's on" in said) == (precision == "int8")


def test_an_int8_onnx_is_built_as_it_is(
    rtx: Tuple[str, Any], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "net.plan"
    assert call(monkeypatch, files / "int8.onnx", "--compute-capability", "sm_89", "-o", out) == 0
    check_plan(out, "int8")
    assert out.with_suffix(".onnx").read_bytes() == (files / "int8.onnx").read_bytes()


def test_fp16_for_a_strongly_typed_builder(
    rtx: Tuple[str, Any], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "net.plan"
    options = ["--precision", "fp16", "--compute-capability", "sm89", "--data", SCENES]
    assert call(monkeypatch, files / "net.onnx", *options, "-o", out) == 0
    check_plan(out, "fp16")
    types_ = {tensor.data_type for tensor in onnx.load(str(out.with_suffix(".onnx"))).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types_


BAD: List[Any] = [
    (["{d}/cpu.onnx"], "is INT8 for CPUs .* with --precision int8"),
    (["{d}/int8.onnx", "--precision", "fp32"], "is INT8 and cannot become fp32"),
    (["{d}/net.onnx", "--size", "64x64"], "--size and --arch are for checkpoints"),
    (["{d}/none.onnx"], "no such file; expected an ONNX model"),
    (["{d}/net.onnx", "-o", "{d}/net.onnx"], r"name the plan NAME\.plan"),
    (["{d}/net.onnx", "--precision", "int8", "--calib", "random"], "'random' refused"),
]


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: List[str], message: str
) -> None:
    filled = [argument.format(d=files) for argument in arguments]
    if "-o" not in filled:
        filled += ["-o", str(tmp_path / "out.plan")]
    before = sorted(files.iterdir())
    with pytest.raises(GradsegError, match=message) as caught:
        call(monkeypatch, *filled)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == [] and sorted(files.iterdir()) == before


def test_a_plan_would_overwrite_its_fp32_input(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "net.onnx"
    source.write_bytes((files / "net.onnx").read_bytes())
    before = source.read_bytes()
    with pytest.raises(GradsegError, match="would overwrite its own input; name another plan with -o"):
        call(monkeypatch, source, "--precision", "int8", "--calib", SCENES, "--calib-frames", "1", "--data", SCENES)
    assert source.read_bytes() == before and list(tmp_path.iterdir()) == [source]


def test_onnx_without_metadata_says_how_to_give_it(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(str(files / "net.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    with pytest.raises(GradsegError, match="without GradSeg metadata; say what it is with --spec FILE"):
        call(monkeypatch, tmp_path / "foreign.onnx", "-o", tmp_path / "f.plan")


# ---- no TensorRT, and a TensorRT of another kind


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_without_tensorrt_exit_3_and_the_onnx_is_kept(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_rtx", "tensorrt_rtx_libs", "tensorrt_rtx_bindings")
    with pytest.raises(
        GradsegError, match=r"no TensorRT is importable.*pip install tensorrt.*the ONNX is kept: "
    ) as caught:
        call(monkeypatch, files / "net.onnx", "-o", tmp_path / "net.plan")
    assert caught.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert metadata.read_metadata(tmp_path / "net.onnx")[metadata.FORMAT] == metadata.DEPLOYMENT
    assert f"wrote {tmp_path / 'net.onnx'}" in capsys.readouterr().out


class FakeTensor:
    def __init__(self, shape: Tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, "uint8"


def classic(version: str = "8.5.2", typed: bool = False, gpu: bool = True) -> Any:
    """A stand-in for the `tensorrt` module: what `build_plan` touches, as 8.5 (or, typed, as 11) has it."""
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt.DataType = types.SimpleNamespace(UINT8="uint8")
    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace(**({} if typed else {"EXPLICIT_BATCH": 0}))
    trt.BuilderFlag = types.SimpleNamespace(**({} if typed else {"FP16": "FP16", "INT8": "INT8"}))

    class ILogger:
        Severity = types.SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class Builder:
        def __init__(self, logger: Any) -> None:
            if not gpu:
                logger.log(1, "CUDA initialization failure with error: 100")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int) -> Any:
            trt.network_flags = flags
            return types.SimpleNamespace(
                num_inputs=1,
                num_outputs=1,
                get_input=lambda index: FakeTensor((1, *HW, 3)),
                get_output=lambda index: FakeTensor((1, *HW)),
            )

        def create_builder_config(self) -> Any:
            trt.set_flags = []
            return types.SimpleNamespace(set_flag=trt.set_flags.append)

        def build_serialized_network(self, network: Any, config: Any) -> bytes:
            return b"plan"

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            pass

        def parse(self, data: bytes) -> bool:
            return True

    trt.ILogger, trt.Builder, trt.OnnxParser = ILogger, Builder, OnnxParser
    return trt


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


# ---- what a device needs


DEVICE_FILES = sorted(
    [ROOT / "export" / name for name in ("to_trt.py", "trt_build.py", "trt_onnx.py", "inputs.py", "verify.py")]
    + list((ROOT / "calibration").glob("*.py"))
    + list((ROOT / "export" / "passes").glob("*.py"))
)


@pytest.mark.parametrize("path", DEVICE_FILES, ids=lambda path: path.name)
def test_device_files_are_python_3_8(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 8))
    assert (
        any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in ast.walk(tree))
        or not tree.body
    )


def test_an_onnx_file_needs_neither_torch_nor_onnx(files: Path, tmp_path: Path) -> None:
    """In a process where none of the big packages can be imported, the ONNX is written and the reason given."""
    blocked = ("torch", "onnx", "onnxruntime", "onnxsim", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_libs", "rich")
    code = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        f"sys.argv = ['to_trt.py', {str(files / 'net.onnx')!r}, '-o', {str(tmp_path / 'net.plan')!r}]\n"
        "import runpy; runpy.run_path('export/to_trt.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": "src"}, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: no TensorRT is importable here") and done.stderr.count("\n") == 1
    assert (tmp_path / "net.onnx").read_bytes() == (files / "net.onnx").read_bytes()


def test_conversions_without_onnx_say_where_to_do_them(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "onnx")
    args = to_trt.parse([str(files / "net.onnx"), "--precision", "int8"])
    assert isinstance(args, argparse.Namespace)
    with pytest.raises(GradsegError, match="needs the onnx package, which is not installed here") as caught:
        to_trt.prepare(args, typed=True)
    assert caught.value.exit_code == 3
