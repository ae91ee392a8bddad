"""The builder against the recorded surface of every TensorRT: which calls it makes, and that each version has them."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import pytest
from export_toys import HW
from places import ROOT, TESTS
from record_trt_surface import recording
from trt_surfaces import VERSIONS, Surface, make, surface
from trt_toys import find_rtx, network_of

from gradseg.base.errors import GradsegError
from gradseg.export.trt import config as trt_config
from gradseg.export.trt.build import Built, build_plan, strongly_typed
from gradseg.export.trt.options import BuildOptions

WEAK = [version for version in VERSIONS if version.startswith(("8", "10"))]
NEWER = [version for version in VERSIONS if not version.startswith(("8.5", "rtx"))]
CLASSIC = [version for version in VERSIONS if not version.startswith("rtx")]
MONITORED = [version for version in VERSIONS if not version.startswith("8")]


@pytest.fixture(autouse=True)
def every_kernel_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_config, "_usable", lambda source: True)


def build(trt: Surface, precision: str = "fp32", batch: int = 1, **options: Any) -> Built:
    return build_plan(b"onnx", BuildOptions(precision, **options), "net.onnx", (trt.__name__, trt), HW, batch)


def built(version: str, precision: str = "fp32", **options: Any) -> Tuple[Surface, Built]:
    trt = surface(version)
    network_of(trt)
    return trt, build(trt, precision, **options)


def flags(trt: Surface) -> List[str]:
    return [flag.name for (flag,) in trt.called("IBuilderConfig.set_flag")]


def written(trt: Surface) -> Dict[str, Any]:
    """Properties that were set, but for the progress monitor, by name."""
    return {name: values[0] for name, values in trt.log if name.endswith("=") and "monitor" not in name}


FLAGS = {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", list(FLAGS))
def test_calls_of_a_plain_build(version: str, precision: str) -> None:
    trt, found = built(version, precision)
    weak = version in WEAK
    assert flags(trt) == (FLAGS[precision] if weak else [])
    assert found.flags == tuple(FLAGS[precision] if weak else [])
    assert found.plan == b"plan" and found.library == trt.__name__ and found.version == trt.__version__
    assert trt.called("Builder.create_network") == [(1 if weak else 0,)]  # explicit batch, where there is another
    assert trt.called("OnnxParser.parse") == [(b"onnx",)]
    assert [flag.name for (flag,) in trt.called("IBuilderConfig.clear_flag")] == ["TF32"]
    assert written(trt) == {} and found.notes == ()
    assert bool(trt.called("IBuilderConfig.progress_monitor=")) == (version in MONITORED)
    assert strongly_typed(trt.__name__, trt) != weak


OPTIONS: List[Tuple[Dict[str, Any], str, List[Any], List[str]]] = [
    ({"workspace_mib": 512}, "IBuilderConfig.set_memory_pool_limit", [("WORKSPACE", 512 << 20)], list(VERSIONS)),
    ({"sparse": True}, "IBuilderConfig.set_flag", ["SPARSE_WEIGHTS"], list(VERSIONS)),
    ({"version_compatible": True}, "IBuilderConfig.set_flag", ["VERSION_COMPATIBLE"], NEWER),
    ({"hardware_compatible": True}, "IBuilderConfig.hardware_compatibility_level=", ["AMPERE_PLUS"], NEWER),
    ({"opt_level": 0}, "IBuilderConfig.builder_optimization_level=", [0], NEWER),
    ({"opt_level": 5}, "IBuilderConfig.builder_optimization_level=", [5], NEWER),
]


@pytest.mark.parametrize(
    "options, name, expected, version",
    [(options, name, expected, version) for options, name, expected, has in OPTIONS for version in has],
)
def test_an_option_is_one_call(options: Dict[str, Any], name: str, expected: List[Any], version: str) -> None:
    plain, _ = built(version)
    trt, found = built(version, **options)
    extra = [entry for entry in readable(trt) if entry not in readable(plain)]
    assert extra == [(name, value if isinstance(value, tuple) else (value,)) for value in expected]
    assert found.flags == tuple(expected if name.endswith("set_flag") else ())


def readable(trt: Surface) -> List[Tuple[str, Tuple[Any, ...]]]:
    """What was called on the configuration, enumerations by name."""
    return [
        (name, tuple(getattr(value, "name", value) for value in values))
        for name, values in trt.log
        if name.startswith("IBuilderConfig") and "monitor" not in name
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_tf32_is_off_unless_asked_for(version: str) -> None:
    trt, found = built(version, tf32=True)
    assert trt.called("IBuilderConfig.clear_flag") == [] and found.flags == ("TF32",)


@pytest.mark.parametrize("version", WEAK)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_nodes_kept_in_fp32_on_a_weakly_typed_builder(version: str, precision: str) -> None:
    trt = surface(version)
    softmax = [make(trt, "ITensor", dtype=trt.DataType.FLOAT)]
    kept = make(trt, "ILayer", name="/b/Softmax_7", num_outputs=1)
    other = make(trt, "ILayer", name="/a/Conv", num_outputs=1)
    quantised = make(trt, "ILayer", name="/c/QuantizeLinear", num_outputs=0)
    network_of(trt, [other, kept, quantised])
    trt.returns["ILayer.get_output"] = lambda index: softmax[index]

    def parse(data: bytes) -> bool:
        logger = trt.called("Builder")[0][0]
        logger.log(trt.ILogger.Severity.VERBOSE, "Registering layer: /b/Softmax_7 for ONNX node: /b/Softmax")
        return True

    trt.returns["OnnxParser.parse"] = parse
    found = build(trt, precision, keep_fp32=("/b/Softmax", "/c/QuantizeLinear", "/gone"))
    assert flags(trt) == [*FLAGS[precision], "OBEY_PRECISION_CONSTRAINTS"]
    assert [value.name for (value,) in trt.called("ILayer.precision=")] == ["FLOAT"]
    assert kept.precision == trt.DataType.FLOAT
    assert trt.called("ILayer.set_output_type") == [(0, trt.DataType.FLOAT)]
    assert found.notes == ("warning: not kept in FP32, no such node: /gone",)


@pytest.mark.parametrize("version", [version for version in VERSIONS if version not in WEAK])
def test_a_strongly_typed_builder_has_it_from_the_onnx(version: str) -> None:
    trt, found = built(version, "fp16", keep_fp32=("/b/Softmax",))
    assert (flags(trt), found.flags, found.notes) == ([], (), ())


def test_fp32_keeps_everything_as_it_is() -> None:
    trt, _ = built("10.3.0", "fp32", keep_fp32=("/b/Softmax",))
    assert flags(trt) == []


# ---- DLA


@pytest.mark.parametrize("version", ["8.5.3", "8.6.1", "10.3.0"])
def test_dla(version: str) -> None:
    trt = surface(version, {"Builder.num_DLA_cores": 2})
    able = iter([True, False, True])
    network_of(trt, [make(trt, "ILayer", name=str(index)) for index in range(3)])
    trt.returns["IBuilderConfig.can_run_on_DLA"] = lambda layer: next(able)
    found = build(trt, "fp16", dla=1)
    assert found.flags == ("FP16", "GPU_FALLBACK")
    assert written(trt) == {"IBuilderConfig.default_device_type=": trt.DeviceType.DLA, "IBuilderConfig.DLA_core=": 1}
    assert found.notes == ("DLA core 1: can run 2 of 3 layers; the GPU runs the others",)


@pytest.mark.parametrize("cores, text", [(0, "has none; leave it out"), (1, "has 1, numbered from 0")])
def test_a_dla_core_that_is_not_there(cores: int, text: str) -> None:
    trt = surface("8.5.3", {"Builder.num_DLA_cores": cores})
    network_of(trt)
    with pytest.raises(GradsegError, match=f"--dla 1: this machine {text}") as caught:
        build(trt, "fp16", dla=1)
    assert caught.value.exit_code == 3
    assert not trt.called("Builder.build_serialized_network")


# ---- TensorRT-RTX's targets


def test_targets_of_rtx() -> None:
    trt, found = built("rtx-1.7.1", targets=("sm75", "sm120"))
    assert written(trt) == {"IBuilderConfig.num_compute_capabilities=": 2}
    called = trt.called("IBuilderConfig.set_compute_capability")
    assert [(value.name, index) for value, index in called] == [("SM75", 0), ("SM120", 1)]
    assert found.compute_capability == ("sm75", "sm120")
    assert not trt.called("IBuilderConfig.get_tactic_sources")


def test_a_target_that_rtx_refuses() -> None:
    trt = surface("rtx-1.7.1", {"IBuilderConfig.set_compute_capability": False})
    network_of(trt)
    with pytest.raises(GradsegError, match=r"--compute-capability sm75: TensorRT-RTX 1\.7\.1\.116 refuses it"):
        build(trt, targets=("sm75",))


# ---- kernels of cuBLAS and cuDNN


@pytest.mark.parametrize("version", ["8.5.3", "8.6.1", "10.3.0", "10.16.1"])
def test_kernel_libraries_that_are_not_usable_are_left_out(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_config, "_usable", lambda source: source == "CUBLAS")
    trt = surface(version, {"IBuilderConfig.get_tactic_sources": 0b11111})
    network_of(trt)
    found = build(trt)
    assert trt.called("IBuilderConfig.set_tactic_sources") == [(0b11001,)]
    assert found.notes == ("CUBLAS_LT and CUDNN not usable here: built with TensorRT's own kernels only",)


@pytest.mark.parametrize("version, sources", [("8.5.3", 0b11000), ("11.4.0", 0b11), ("10.3.0", 0b11000)])
def test_kernel_libraries_that_are_off_stay_off(version: str, sources: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_config, "_usable", lambda source: False)
    trt = surface(version, {"IBuilderConfig.get_tactic_sources": sources})
    network_of(trt)
    assert build(trt).notes == ()
    assert not trt.called("IBuilderConfig.set_tactic_sources")


@pytest.mark.parametrize("reports, usable", [(8600, True), (1, False), (None, False)])
def test_a_stub_of_a_kernel_library_is_not_usable(reports: Any, usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    class Library:
        def __init__(self, file: str) -> None:
            if file != "libcudnn.so.8" or reports is None:
                raise OSError(file)

        @property
        def cudnnGetVersion(self) -> Any:  # noqa: N802
            class Ask:
                restype: Any = None

                def __call__(self) -> int:
                    return int(reports)

            return Ask()

    monkeypatch.setattr(trt_config.ctypes, "CDLL", Library)
    assert trt_config._usable("CUDNN") == usable
    assert not trt_config._usable("CUBLAS")


# ---- the surfaces themselves


@pytest.mark.parametrize("version", VERSIONS)
def test_a_surface_is_strict(version: str) -> None:
    trt = surface(version)
    config = make(trt, "IBuilderConfig")
    with pytest.raises(AttributeError, match="does not have it"):
        trt.no_such_name  # noqa: B018
    with pytest.raises(AttributeError):
        trt.BuilderFlag.NO_SUCH_FLAG  # noqa: B018
    with pytest.raises(AttributeError, match="cannot be set"):
        config.max_workspace = 1
    with pytest.raises(TypeError, match="takes"):
        config.set_memory_pool_limit(1)
    with pytest.raises(TypeError):
        config.set_timing_cache(None, False, 3)
    assert (version == "8.5.3") != hasattr(trt, "HardwareCompatibilityLevel")
    assert (version in CLASSIC) == (trt.__name__ == "tensorrt")


@pytest.mark.parametrize("version, lacks", [("8.5.3", "IProgressMonitor"), ("11.4.0", "IInt8EntropyCalibrator2")])
def test_names_of_other_versions_are_not_there(version: str, lacks: str) -> None:
    assert not hasattr(surface(version), lacks)


@pytest.mark.parametrize("version", VERSIONS)
def test_recordings_are_small_and_of_a_real_module(version: str) -> None:
    path = TESTS / "toys" / "trt_surface" / f"{version}.json"
    assert path.stat().st_size < 60_000
    trt = surface(version)
    assert trt.__version__.startswith(version.replace("rtx-", ""))
    assert trt.recording["classes"]["Builder"]["build_serialized_network"]


def test_the_recording_is_what_the_installed_library_has() -> None:
    trt = find_rtx()[1]
    committed = json.loads((TESTS / "toys" / "trt_surface" / "rtx-1.7.1.json").read_text("utf-8"))
    if trt.__version__ != committed["version"]:
        pytest.skip(f"needs TensorRT-RTX {committed['version']}, this is {trt.__version__}")
    assert recording(trt, "tensorrt_rtx") == committed


def used_names(path: Path) -> Set[str]:
    """Names taken from the module `trt`: "BuilderFlag.TF32", "Builder"…"""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            base = node.value
            if isinstance(base, ast.Name) and base.id == "trt":
                found.add(node.attr)
            elif isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id == "trt":
                found.add(f"{base.attr}.{node.attr}")
    return {name for name in found if name[0].isupper()}


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "export" / "trt").glob("*.py")), *sorted((ROOT / "runtime" / "engines").glob("trt*.py"))],
    ids=lambda p: p.name,
)
def test_every_name_taken_from_tensorrt_is_one_of_some_version(path: Path) -> None:
    modules = [surface(version) for version in VERSIONS]
    for name in used_names(path):
        first, _, second = name.partition(".")
        holders = [getattr(trt, first) for trt in modules if hasattr(trt, first)]
        assert holders, f"{path.name}: no recorded TensorRT has {first}"
        if second and second != "__members__":
            assert any(hasattr(holder, second) for holder in holders), f"{path.name}: {name}"


def test_no_calibrator_is_ever_named() -> None:
    for path in [*(ROOT / "export").rglob("*.py"), *(ROOT / "runtime").rglob("*.py")]:
        text = path.read_text("utf-8")
        assert "int8_calibrator" not in text and "IInt8" not in text and "dynamic_range" not in text, path.name
