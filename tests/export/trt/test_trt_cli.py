"""The to_trt command line, with and without TensorRT, and what it needs on a device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, List, Tuple

import onnx
import pytest
from export_toys import SCENES, checkpoint, exported, one_torch_thread  # noqa: F401
from places import ROOT
from trt_toys import classic, find_rtx, hide, int8

import gradseg.export.to_trt as to_trt
from gradseg.base.errors import GradsegError
from gradseg.base.files import sha256_of
from gradseg.export.trt import make as trt_make
from gradseg.export.trt.prepare import prepare
from gradseg.export.trt.verify import NOT_RUN
from gradseg.models import metadata
from gradseg.models.checkpoint import save_checkpoint
from gradseg.models.spec import ModelSpec
from gradseg.runtime.engines.trt_manifest import read_manifest


@pytest.fixture(scope="module")
def rtx() -> Tuple[str, Any]:
    return find_rtx()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trt")
    save_checkpoint(folder / "net.pth", checkpoint().network)
    onnx.save(exported(), str(folder / "net.onnx"))
    cpu = onnx.ModelProto()
    cpu.CopyFrom(exported())
    metadata.set_metadata(cpu, {metadata.TARGET: "cpu"})  # as to_ort.py marks its FP32 files
    onnx.save(cpu, str(folder / "ort.onnx"))
    onnx.save(int8("dg2-star-light", "cpu"), str(folder / "cpu.onnx"))
    onnx.save(int8("dg2-star-light", "trt"), str(folder / "int8.onnx"))
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["to_trt.py", *map(str, arguments)])
    return int(to_trt.main())


def check_plan(plan: Path, precision: str) -> dict[str, Any]:
    note: dict[str, Any] = json.loads(Path(f"{plan}.json").read_text())
    beside = plan.with_suffix(".onnx")
    assert plan.stat().st_size > 100_000
    assert ModelSpec.from_dict(note["spec"]) == checkpoint().spec
    assert note["onnx"] == {"file": beside.name, "sha256": sha256_of(beside)}
    assert (note["library"], note["precision"], note["verified"]["status"]) == ("tensorrt_rtx", precision, NOT_RUN)
    assert note["plan"] == {"file": plan.name, "bytes": plan.stat().st_size, "sha256": sha256_of(plan)}
    assert note["options"]["targets"] == ["sm89"] and read_manifest(plan) == note
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
    options = ["--precision", precision, "--compute-capability", "sm89", "--data", SCENES]
    options += ["--calib", SCENES] if precision == "int8" else []
    assert call(monkeypatch, files / name, *options, "-o", out) == 0
    check_plan(out, precision)
    said = capsys.readouterr().out
    assert f"wrote {out}: " in said and "for sm89" in said and "built, not run" in said
    assert ("ONNX: labels equal to PyTorch's on" in said) == (name == "net.pth")
    assert ("INT8: labels equal to FP32's on" in said) == (precision == "int8")


def test_an_int8_onnx_is_built_as_it_is(
    rtx: Tuple[str, Any],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--compute-capability", "sm_89", "--data", SCENES, "-o"]
    first, second = tmp_path / "first" / "net.plan", tmp_path / "second" / "net.plan"
    assert call(monkeypatch, files / "int8.onnx", *options, first) == 0
    assert "INT8: labels equal to" in capsys.readouterr().out  # it got its FP16 partner
    check_plan(first, "int8")
    made = first.with_suffix(".onnx")
    assert metadata.read_metadata(made)[metadata.PARTNER] == "fp16"
    assert call(monkeypatch, made, *options, second) == 0
    said = capsys.readouterr().out
    assert (
        "labels: repeatable, and not the same for every frame, 4 frames of the ONNX in ONNX Runtime on the CPU" in said
    )
    assert "plan built, not run" in said and "taken as it is, int8" in said
    check_plan(second, "int8")
    assert second.with_suffix(".onnx").read_bytes() == made.read_bytes()


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
    (["{d}/net.onnx", "-o", "{d}/net.onnx"], "would overwrite its own input"),
    (["{d}/net.onnx", "-o", "{d}/other.onnx"], r"must end in \.plan or \.engine, such as -o other\.plan"),
    (["{d}/ort.onnx"], r"made for ONNX Runtime; give the checkpoint or the file from export/to_onnx\.py"),
    (["{d}/ort.onnx", "--precision", "int8"], "made for ONNX Runtime"),
    (["{d}/net.onnx", "--compute-capability", "sm99", "-o", "{t}/new/n.plan"], "--compute-capability sm99: TensorRT"),
    (["{d}/net.onnx", "--compute-capability", "ampere", "-o", "{t}/new/n.plan"], "expected smNN"),
    (["{d}/net.onnx", "--ranges", "r.json"], "--ranges r.json: is for INT8, and this builds fp32"),
    (["{d}/net.pth", "--calib", SCENES], "--calib .*: is for INT8, and this builds fp32"),
    (["{d}/net.onnx", "--precision", "fp16", "--max-drop", "1"], "--max-drop 1.0: is for INT8, and this builds fp16"),
    (["{d}/net.onnx", "--workspace", "99999999999999"], "--workspace 99999999999999: expected MiB above 0, at most"),
    (["{d}"], "is a directory; give a checkpoint"),
    (["{t}/x.plan"], "is a plan already; to build it again: --rebuild"),
    (["{d}/net.pth", "--arch", "erfnet"], "--arch erfnet, but the checkpoint is of dg2-star-light"),
    (["{d}/net.onnx", "--precision", "int8", "--calib", "random"], "'random' refused"),
]


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: List[str], message: str
) -> None:
    if "sm99" in arguments:
        find_rtx()
    filled = [argument.format(d=files, t=tmp_path) for argument in arguments]
    if "-o" not in filled:
        filled += ["-o", str(tmp_path / "out.plan")]
    before = sorted(files.iterdir())
    with pytest.raises(GradsegError, match=message) as caught:
        call(monkeypatch, *filled)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == [] and sorted(files.iterdir()) == before


def test_int8_of_an_onnx_file_gets_another_name_and_never_its_inputs(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "net.onnx"
    source.write_bytes((files / "net.onnx").read_bytes())
    before = source.read_bytes()
    options = ["--precision", "int8", "--calib", SCENES, "--calib-frames", "1", "--data", SCENES]
    find_rtx()
    assert call(monkeypatch, source, *options, "--compute-capability", "sm89") == 0
    names = {"net.onnx", "net.int8.onnx", "net.int8.plan", "net.int8.plan.json"}
    assert source.read_bytes() == before and {path.name for path in tmp_path.iterdir()} == names
    plan = tmp_path / "net.plan"
    assert call(monkeypatch, source, *options, "--compute-capability", "sm89", "-o", plan) == 0
    assert source.read_bytes() == before and (tmp_path / "net.trt.onnx").is_file()
    assert read_manifest(plan)["onnx"]["file"] == "net.trt.onnx"


def test_onnx_without_metadata_says_how_to_give_it(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(str(files / "net.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    with pytest.raises(GradsegError, match="without GradSeg metadata; say what it is with --spec FILE"):
        call(monkeypatch, tmp_path / "foreign.onnx", "-o", tmp_path / "f.plan")


# ---- no TensorRT, and a TensorRT of another kind


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


def test_a_target_with_classic_tensorrt_alone_keeps_the_onnx(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "tensorrt_rtx", "tensorrt_rtx_libs", "tensorrt_rtx_bindings")
    monkeypatch.setitem(sys.modules, "tensorrt", classic())
    out = tmp_path / "net.plan"
    with pytest.raises(GradsegError, match=r"this machine's GPU only.*\(the ONNX is kept: .*net\.onnx\)$") as caught:
        call(monkeypatch, files / "net.onnx", "--compute-capability", "sm89", "--data", SCENES, "-o", out)
    assert caught.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_failed_build_leaves_nothing(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise GradsegError("cannot parse it")

    monkeypatch.setitem(sys.modules, "tensorrt", classic())
    monkeypatch.setattr(trt_make, "build_plan", refuse)
    with pytest.raises(GradsegError, match="cannot parse it"):
        call(monkeypatch, files / "net.onnx", "--data", SCENES, "-o", tmp_path / "new" / "net.plan")
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_nothing_is_claimed_of_labels(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "onnxruntime")
    prepared = prepare(to_trt.parse([str(files / "net.onnx")]), None, typed=True)
    assert prepared.checked == "agreement not measured: no onnxruntime here"


def test_a_foreign_onnx_is_checked_too(files: Path, tmp_path: Path) -> None:
    model = onnx.load(str(files / "net.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    (tmp_path / "spec.json").write_text(checkpoint().spec.to_json())
    args = [str(tmp_path / "foreign.onnx"), "--spec", str(tmp_path / "spec.json"), "--data", SCENES]
    assert prepare(to_trt.parse(args), None, typed=True).checked.startswith("labels: repeatable, and not the same")


def test_an_onnx_that_ignores_its_input_is_not_built(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(str(files / "net.onnx"))
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == first.input[1])
    weight.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, str(tmp_path / "dead.onnx"))
    args = to_trt.parse([str(tmp_path / "dead.onnx"), "--data", SCENES])
    with pytest.raises(GradsegError, match="does not look at its input"):
        prepare(args, args.precision, typed=True)


# ---- what a device needs


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
    with pytest.raises(GradsegError, match="needs the onnx package, which is not installed here") as caught:
        prepare(args, args.precision, typed=True)
    assert caught.value.exit_code == 3
