"""What stands beside a plan, and every way in which it cannot run here: one line each, before TensorRT sees it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
from cuda_toys import Device
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from plan_toys import GPU, NO_GPU, PLAN, TRT_MODULES, fields_for, hide, install, manifest, toy_trt, write_plan

from gradseg.base.errors import GradsegError, run_main
from gradseg.runtime import run_video
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.trt_manifest import (
    StalePlan,
    built_for,
    check_file,
    check_gpu,
    check_library,
    gpu_note,
    manifest_path,
    numbers,
    read_manifest,
    rebuild_command,
    spec_of,
)

SM90 = dataclasses.replace(GPU, name="Big GPU", compute_capability="sm90")


def beside(plan: Path, text: bytes) -> Path:
    manifest_path(plan).write_bytes(text)
    return plan


# -- each reason, with the machine otherwise fit


def tampered(plan: Path) -> None:
    plan.write_bytes(PLAN[:-1] + b"!")


def truncated(plan: Path) -> None:
    plan.write_bytes(PLAN[:20])


def grown(plan: Path) -> None:
    plan.write_bytes(PLAN + b"x")


def missing(plan: Path) -> None:
    manifest_path(plan).unlink()


def half_written(plan: Path) -> None:
    beside(plan, manifest_path(plan).read_bytes()[:200])


def text(content: bytes) -> Callable[[Path], None]:
    def write(plan: Path) -> None:
        beside(plan, content)

    return write


def field(**changes: Any) -> Callable[[Path], None]:
    def write(plan: Path) -> None:
        beside(plan, json.dumps(manifest(**changes)).encode())

    return write


def without(name: str) -> Callable[[Path], None]:
    def write(plan: Path) -> None:
        rest = {key: value for key, value in manifest().items() if key != name}
        beside(plan, json.dumps(rest).encode())

    return write


STALE: List[Tuple[str, Callable[[Path], None], str]] = [
    ("tampered", tampered, r"plan\.sha256 differs: found \w{12}…, needed \w{12}… \(damaged, changed, or another plan"),
    ("truncated", truncated, r"plan\.bytes differs: found 20, needed 54 \(truncated, or another plan's manifest\)"),
    (
        "missing",
        missing,
        r"no m\.plan\.json beside it .*trtexec or another tool, build it from its ONNX: python export/to",
    ),
    ("half-written", half_written, r"m\.plan\.json is not JSON \(.*\): half-written or damaged"),
    ("empty", text(b""), r"m\.plan\.json is not JSON"),
    ("binary", text(b"\xff\xfe\x00"), r"m\.plan\.json is not JSON"),
    ("deep", text(b"[" * 100_000), r"m\.plan\.json is not JSON \(nested too deeply\)"),
    ("huge", text(b" " * (4 << 20) + b"{}"), r"m\.plan\.json has 4194306 bytes: not a manifest"),
    ("a list", text(b"[1, 2]"), r"m\.plan\.json holds list, a JSON object is needed"),
    ("older", without("format"), r'm\.plan\.json has no "format": written by an older GradSeg'),
    ("newer", field(format="gradseg.plan/2"), r"format is 'gradseg\.plan/2', 'gradseg\.plan/1' is needed"),
    ("no version", without("version"), r"m\.plan\.json: version missing"),
    ("no sizes", without("frame_hw"), r"m\.plan\.json: frame_hw missing"),
    ("plan", field(plan={"bytes": "54"}), r'plan is \{"bytes": "54"\}, needed an object with "bytes" above 0'),
    ("hash", field(plan={"bytes": 54, "sha256": "ab"}), r'plan is .*needed a "sha256" of 64 digits'),
    ("size", field(frame_hw=[24, True]), r"frame_hw is \[24, true\], needed \[height, width\], each 1 to 16384"),
    ("batch", field(batch=0), r"batch is 0, needed a whole number from 1"),
    ("precision", field(precision=8), r"precision is 8, needed a word"),
    ("library name", field(library="tensorflow"), r'library is "tensorflow", needed one of tensorrt, tensorrt_rtx'),
    ("odd library", field(library=["tensorrt"]), r'library is \["tensorrt"\], needed one of'),
    ("version form", field(version="8.5"), r'version is "8\.5", needed a version such as'),
    ("capability", field(compute_capability="sm87"), r'compute_capability is "sm87", needed a list such as'),
    ("no target", field(compute_capability=None, gpu=None), "compute_capability and gpu are both null"),
    ("gpu", field(gpu={"name": "x"}), r'gpu is .*needed an object with "name" and "compute_capability"'),
    ("options", field(options=[]), r"options is \[\], needed an object"),
    ("dla", field(options={"dla": "0"}), r'options\.dla is \{"dla": "0"\}, needed the number of a core, or null'),
    ("spec", field(spec={"arch": "dg2"}), r"m\.plan\.json: spec: missing fields"),
    ("no spec", field(spec=None), r"spec is null, needed a ModelSpec"),
    (
        "foreign GPU",
        field(compute_capability=["sm86"]),
        r"compute_capability differs: found sm87 \(Toy GPU\), needed sm86",
    ),
    (
        "foreign version",
        field(version="8.5.2.2"),
        r"version differs: found tensorrt 8\.5\.3\.1, needed tensorrt 8\.5\.2\.2",
    ),
    ("newer version", field(version="10.3.0"), r"version differs: .*needed tensorrt 10\.3\.0 \(exactly this version\)"),
    (
        "foreign library",
        field(library="tensorrt_rtx", version="1.7.1"),
        r"library differs: found tensorrt 8\.5\.3\.1, needed t",
    ),
]


@pytest.mark.parametrize(("change", "message"), [entry[1:] for entry in STALE], ids=[entry[0] for entry in STALE])
def test_a_plan_that_does_not_fit_is_one_line_before_it_is_deserialised(
    change: Callable[[Path], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    trt = toy_trt("8.5.3", device)
    install(monkeypatch, device, trt)
    plan = write_plan(tmp_path)
    change(plan)
    with pytest.raises(StalePlan, match=message) as caught:
        open_engine(plan)
    said = str(caught.value)
    assert said.startswith(f"{plan}: ") and "\n" not in said and caught.value.exit_code == 2
    assert said.endswith(f" Rebuild: python export/to_trt.py --rebuild {plan}")
    assert not trt.loaded and not trt.called("Runtime") and device.held == 0


def test_a_spec_given_does_not_replace_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = toy_trt("8.5.3", Device())
    install(monkeypatch, Device(), trt)
    plan = write_plan(tmp_path)
    spec = spec_of(plan, read_manifest(plan))
    missing(plan)
    with pytest.raises(StalePlan, match=r"no m\.plan\.json beside it"):
        open_engine(plan, spec=spec)
    assert not trt.loaded


def test_an_unreadable_manifest_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = write_plan(tmp_path)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(GradsegError, match=r"m\.plan\.json: cannot be read \(Permission denied\)"):
        read_manifest(plan)


# -- machines


@pytest.mark.parametrize("there", ["everything", "no cuda-python", "no TensorRT", "nothing", "another TensorRT"])
def test_an_intact_plan_without_a_gpu(there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    trt = toy_trt({"another TensorRT": "rtx-1.7.1"}.get(there, "8.5.3"), device)
    cuda: Any = {} if there in ("no cuda-python", "nothing") else None
    install(monkeypatch, device, None if there in ("no TensorRT", "nothing") else trt, gpu=None, cuda=cuda)
    plan = write_plan(tmp_path)
    with pytest.raises(GradsegError) as caught:
        open_engine(plan)
    assert str(caught.value) == f"{plan}: a TensorRT engine {NO_GPU}" and caught.value.exit_code == 3
    assert not isinstance(caught.value, StalePlan) and not trt.loaded


def test_the_same_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing pretended, on a machine that has no GPU."""
    from gradseg.runtime.cuda.gpu import find_gpu

    if find_gpu() is not None:
        pytest.skip("needs a machine without an NVIDIA GPU")
    hide(monkeypatch, "tensorrt")
    plan = write_plan(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_video.py", "--engine", str(plan), "cam0"])
    with pytest.raises(SystemExit) as ended:
        run_main(run_video.main)
    assert ended.value.code == 3
    assert capsys.readouterr().err == f"error: {plan}: a TensorRT engine {NO_GPU}\n"


@pytest.mark.parametrize(
    ("library", "advice"), [("tensorrt", r"pip install tensorrt==8\.5\.3\.1"), ("tensorrt_rtx", "rtx")]
)
def test_a_missing_library_is_exit_code_3(
    library: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    install(monkeypatch, device, None)
    plan = write_plan(tmp_path, library=library)
    with pytest.raises(
        GradsegError, match=rf"needs {library} 8\.5\.3\.1, and it cannot be imported here.*{advice}"
    ) as caught:
        open_engine(plan)
    assert caught.value.exit_code == 3 and not isinstance(caught.value, StalePlan)


def test_neither_cuda_python_nor_pycuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = toy_trt("8.5.3", Device())
    install(monkeypatch, Device(), trt, cuda={})
    wanted = (
        r"needs cuda-python or pycuda; neither can be imported here\. .*CUDA 11\.4: pip install 'cuda-python==11\.\*'"
    )
    with pytest.raises(GradsegError, match=wanted) as caught:
        open_engine(write_plan(tmp_path))
    assert caught.value.exit_code == 3 and not trt.loaded


def test_version_is_told_before_the_gpu_and_the_gpu_before_a_missing_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(tmp_path, version="8.5.2.2")
    install(monkeypatch, Device(), toy_trt("8.5.3", Device()), gpu=None)
    with pytest.raises(StalePlan, match="version differs"):
        open_engine(plan)
    hide(monkeypatch, *TRT_MODULES)
    with pytest.raises(GradsegError, match="this machine has none"):
        open_engine(plan)


# -- the rules one by one


@pytest.mark.parametrize(
    ("needed", "found", "fits"),
    [
        ("8.5.3.1", "8.5.3.1", True),
        ("8.5.3.1", "8.5.3", True),
        ("8.5.3", "8.5.3.1", True),
        ("8.5.3.1", "8.5.2.2", False),
        ("8.5.3.1", "8.5.3.2", False),
        ("10.3.0", "10.3.1", False),
        ("10.3.0", "10.3.0+cuda12.5", True),
    ],
)
def test_classic_tensorrt_needs_its_own_version(needed: str, found: str, fits: bool, tmp_path: Path) -> None:
    check(tmp_path, {"version": needed}, "tensorrt", found, fits)


@pytest.mark.parametrize(
    ("needed", "found", "fits"),
    [("8.6.1", "8.6.1", True), ("10.3.0", "10.16.1.11", True), ("10.3.0", "10.2.9", False), ("8.6.1", "10.0.0", False)],
)
def test_version_compatible_plans_need_the_major_version(needed: str, found: str, fits: bool, tmp_path: Path) -> None:
    check(tmp_path, {"version": needed, "options": {"version_compatible": True}}, "tensorrt", found, fits)


@pytest.mark.parametrize(("found", "fits"), [("1.7.1.116", True), ("1.7.2", True), ("1.8.0", False), ("2.7.1", False)])
def test_rtx_needs_major_and_minor_version(found: str, fits: bool, tmp_path: Path) -> None:
    check(tmp_path, {"library": "tensorrt_rtx", "version": "1.7.1.116"}, "tensorrt_rtx", found, fits)


def check(folder: Path, fields: Dict[str, Any], kind: str, version: str, fits: bool) -> None:
    plan = write_plan(folder, **fields)
    found = read_manifest(plan)
    if fits:
        check_library(plan, found, kind, version)
        return
    with pytest.raises(StalePlan, match=f"version differs: found {kind} {version}, needed {kind} {fields['version']}"):
        check_library(plan, found, kind, version)


@pytest.mark.parametrize(
    ("fields", "capability", "fits"),
    [
        ({}, "sm87", True),
        ({}, "sm86", False),
        ({"compute_capability": None}, "sm87", True),
        ({"compute_capability": None}, "sm90", False),
        ({"options": {"hardware_compatible": True}}, "sm120", True),
        ({"options": {"hardware_compatible": True}}, "sm75", False),
        ({"library": "tensorrt_rtx", "compute_capability": None, "gpu": None}, "sm120", True),
        ({"library": "tensorrt_rtx", "compute_capability": None}, "sm86", True),
        ({"library": "tensorrt_rtx", "compute_capability": None}, "sm75", False),
        ({"library": "tensorrt_rtx", "compute_capability": ["sm75", "sm89"]}, "sm75", True),
        ({"library": "tensorrt_rtx", "compute_capability": ["sm75", "sm89"]}, "sm90", False),
    ],
)
def test_gpus(fields: Dict[str, Any], capability: str, fits: bool, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, **fields)
    found = read_manifest(plan)
    gpu = dataclasses.replace(GPU, compute_capability=capability)
    if fits:
        check_gpu(plan, found, gpu)
        return
    wanted = " or ".join(built_for(found)) if not found["options"] and built_for(found) else "sm80 or newer"
    with pytest.raises(StalePlan, match=rf"differs: found {capability} \(Toy GPU\), needed {wanted}\. Rebuild"):
        check_gpu(plan, found, gpu)


def test_a_plan_and_its_manifest_may_be_renamed_together(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, name="other.engine")
    found = read_manifest(plan)
    assert check_file(plan, found) == PLAN and spec_of(plan, found).arch == "dg2-star-light"


def test_the_command_is_one_for_a_shell(tmp_path: Path) -> None:
    assert rebuild_command(Path("my plan's.plan")) == "python export/to_trt.py --rebuild 'my plan'\"'\"'s.plan'"
    assert rebuild_command(Path("dg4.plan")) == "python export/to_trt.py --rebuild dg4.plan"


def test_note_of_another_model(tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    found = read_manifest(plan)
    assert gpu_note(plan, found, GPU) == "" and gpu_note(plan, {**found, "gpu": None}, SM90) == ""
    assert "was built on Toy GPU, this is Big GPU" in gpu_note(plan, found, SM90)
    assert gpu_note(plan, {**found, "library": "tensorrt_rtx"}, SM90) == "", "its kernels are made for the GPU at hand"


@given(st.text(st.characters(codec="utf-8"), max_size=30))
@example("8.5.3.1")
def test_numbers_never_fail(version: str) -> None:
    assert all(isinstance(part, int) for part in numbers(version))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(sorted(manifest())), value=JSON)
def test_any_value_in_any_field_is_taken_or_told(tmp_path: Path, name: str, value: Any) -> None:
    """A damaged manifest never ends in a traceback, here or in what is checked with it afterwards."""
    plan = write_plan(tmp_path, **{name: value})
    try:
        found = read_manifest(plan)
        check_file(plan, found)
        check_library(plan, found, "tensorrt", "8.5.3.1")
        check_gpu(plan, found, GPU)
        gpu_note(plan, found, SM90)
    except StalePlan as error:
        assert "\n" not in str(error) and "Rebuild: " in str(error)


def test_the_toys_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a change nothing is refused, so that the refusals above are for the change alone."""
    device = Device()
    trt = toy_trt("8.5.3", device)
    install(monkeypatch, device, trt)
    open_engine(write_plan(tmp_path, **fields_for(trt))).close()
    assert trt.loaded == [PLAN]


@pytest.mark.parametrize("left", ["missing", "empty"])
def test_a_plan_that_is_gone_while_its_manifest_is_there_can_be_built_again(tmp_path: Path, left: str) -> None:
    plan = tmp_path / "m.plan"
    manifest_path(plan).write_text("{}")
    if left == "empty":
        plan.write_bytes(b"")
    with pytest.raises(StalePlan, match=rf"m\.plan: is {left}, though m\.plan\.json is there.*--rebuild"):
        open_engine(plan)
    manifest_path(plan).unlink()
    with pytest.raises(GradsegError, match=r"no such file|is empty") as caught:
        open_engine(plan)
    assert not isinstance(caught.value, StalePlan)
