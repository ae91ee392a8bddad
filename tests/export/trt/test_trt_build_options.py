"""What a TensorRT build may be told: arguments, values, and which version has which option."""

from __future__ import annotations

import argparse
import json
from typing import Any, Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trt_surfaces import VERSIONS, surface

from gradseg.base.errors import GradsegError
from gradseg.export.trt.options import (
    BuildOptions,
    add_build_arguments,
    check_options,
    options_from,
    version_of,
)


def parsed(*arguments: str, precision: str = "fp16") -> BuildOptions:
    parser = argparse.ArgumentParser()
    add_build_arguments(parser)
    return options_from(parser.parse_args(arguments), precision)


def check(version: str, precision: str = "fp16", **options: Any) -> None:
    trt = surface(version)
    check_options(BuildOptions(precision, **options), (trt.__name__, trt))
    assert trt.log == []  # asks, and does nothing


def test_arguments() -> None:
    assert parsed() == BuildOptions("fp16")
    everything = (
        "--workspace 512 --timing-cache t.cache --dla 1 --sparse --opt-level 5 --version-compatible "
        "--hardware-compatible --tf32 --compute-capability SM_86 --compute-capability sm89 --compute-capability sm86"
    )
    assert parsed(*everything.split()) == BuildOptions(
        "fp16", ("sm86", "sm89"), 512, "t.cache", 1, True, 5, True, True, True
    )


BAD: List[Any] = [
    ("--workspace 0", r"--workspace 0: expected MiB above 0"),
    ("--workspace -4", r"--workspace -4: expected MiB above 0"),
    ("--opt-level 6", r"--opt-level 6: expected 0 \(quick\) to 5 \(thorough\)"),
    ("--opt-level -1", r"--opt-level -1: expected 0"),
    ("--dla -1", r"--dla -1: expected a core number"),
    ("--timing-cache=", r"--timing-cache: expected a file name"),
    *(
        (f"--compute-capability {target}", f"{target}: expected smNN")
        for target in ("89", "sm", "sm8x", "8.9", "ampere")
    ),
]


@pytest.mark.parametrize("arguments, message", BAD)
def test_values_that_cannot_be(arguments: str, message: str) -> None:
    with pytest.raises(GradsegError, match=message) as caught:
        parsed(*arguments.split())
    assert caught.value.exit_code == 2


def test_a_dla_does_not_compute_in_fp32() -> None:
    with pytest.raises(GradsegError, match=r"--dla 0: a DLA computes in FP16 or INT8 only; add --precision fp16"):
        parsed("--dla", "0", precision="fp32")
    with pytest.raises(GradsegError, match="precision 'bf16': expected fp32, fp16, int8"):
        parsed(precision="bf16")


OPTIONS = st.builds(
    BuildOptions,
    precision=st.sampled_from(["fp16", "int8"]),
    targets=st.lists(st.sampled_from(["sm75", "sm86", "sm120"]), unique=True).map(tuple),
    workspace_mib=st.none() | st.integers(1, 1 << 20),
    timing_cache=st.none() | st.text(min_size=1),
    dla=st.none() | st.integers(0, 1),
    sparse=st.booleans(),
    opt_level=st.none() | st.integers(0, 5),
    version_compatible=st.booleans(),
    hardware_compatible=st.booleans(),
    tf32=st.booleans(),
    keep_fp32=st.lists(st.text()).map(tuple),
)


@given(options=OPTIONS)
def test_options_come_back_from_json(options: BuildOptions) -> None:
    assert BuildOptions.from_dict(json.loads(json.dumps(options.to_dict())), "a.json") == options


BAD_DICTS: List[Any] = [
    ([], r"a\.json: build options are \[\]; expected an object with a precision"),
    ({}, "expected an object with a precision"),
    ({"precision": "fp16", "colour": 1}, "unknown build options colour; written by a newer GradSeg"),
    ({"precision": 16}, "build option precision is '16', which is not of its type"),
    ({"precision": "fp16", "targets": "sm89"}, "build option targets is 'sm89'"),
    ({"precision": "fp16", "targets": [89]}, "build option targets"),
    ({"precision": "fp16", "dla": True}, "build option dla is 'True'"),
    ({"precision": "fp16", "sparse": 1}, "build option sparse"),
    ({"precision": "fp16", "timing_cache": 3}, "build option timing_cache"),
    ({"precision": "fp16", "workspace_mib": -1}, r"a\.json: --workspace -1: expected MiB above 0"),
    ({"precision": "fp9"}, "precision 'fp9': expected"),
]


@pytest.mark.parametrize("values, message", BAD_DICTS)
def test_options_in_a_file_are_checked(values: Any, message: str) -> None:
    with pytest.raises(GradsegError, match=message):
        BuildOptions.from_dict(values, "a.json")


@pytest.mark.parametrize("version", VERSIONS)
def test_what_every_version_has(version: str) -> None:
    check(version)
    check(version, workspace_mib=64, sparse=True, tf32=True, keep_fp32=("a",))
    check_options(BuildOptions("fp16", ("sm75",), dla=0, opt_level=1, timing_cache="x"), None)


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.16.1", "11.4.0"])
def test_what_newer_versions_have(version: str) -> None:
    check(version, version_compatible=True, hardware_compatible=True, opt_level=0, timing_cache="x")


LACKING: List[Any] = [
    ("8.5.3", {"opt_level": 3}, r"--opt-level: tensorrt 8\.5\.3\.1 does not have it; TensorRT 8\.6 and later have it"),
    ("8.5.3", {"version_compatible": True}, r"--version-compatible: tensorrt 8\.5\.3\.1 does not have it"),
    ("8.5.3", {"hardware_compatible": True}, r"--hardware-compatible: tensorrt 8\.5\.3\.1 does not have it"),
    (
        "8.5.3",
        {"dla": 0, "precision": "int8"},
        r"--dla 0: the DLA of tensorrt 8\.5\.3\.1 takes no Q/DQ.*--precision fp16",
    ),
    ("10.3.0", {"dla": 0, "precision": "int8"}, r"the DLA of tensorrt 10\.3\.0 takes no Q/DQ"),
    ("10.3.0", {"dla": 0, "hardware_compatible": True}, "a DLA plan fits one chip"),
    ("10.16.1", {"dla": 0}, r"--dla 0: tensorrt 10\.16\.1\.11 has no DLA; TensorRT 8\.5 to 10\.7 .* 11\.4\.1 or newer"),
    ("11.4.0", {"dla": 0}, r"--dla 0: tensorrt 11\.4\.0\.106 has no DLA"),
    ("rtx-1.7.1", {"dla": 0}, r"--dla: tensorrt_rtx 1\.7\.1\.116 does not have it: it knows no DLA"),
    ("rtx-1.7.1", {"timing_cache": "x"}, "--timing-cache: tensorrt_rtx .* it times no kernels while it builds"),
    ("rtx-1.7.1", {"opt_level": 3}, "--opt-level: tensorrt_rtx .* the same plan at every level"),
    ("rtx-1.7.1", {"version_compatible": True}, r"--version-compatible: tensorrt_rtx .* tensorrt from 8\.6 on has it"),
    ("rtx-1.7.1", {"hardware_compatible": True}, "--hardware-compatible: tensorrt_rtx .* --compute-capability sm86"),
    (
        "rtx-1.7.1",
        {"targets": ("sm99",)},
        r"--compute-capability sm99: TensorRT-RTX builds for sm120, sm121, sm75, sm80",
    ),
]


@pytest.mark.parametrize("version, options, message", LACKING)
def test_an_option_that_a_version_lacks_is_one_line(version: str, options: Dict[str, Any], message: str) -> None:
    with pytest.raises(GradsegError, match=message) as caught:
        check(version, **{"precision": "fp16", **options})
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["8.5.3", "8.6.1", "10.3.0"])
def test_fp16_on_a_dla(version: str) -> None:
    check(version, dla=0)


def test_dla_is_back_in_11_4_1() -> None:
    trt = surface("11.4.0")
    trt.__version__ = "11.4.1"
    for precision in ("fp16", "int8"):
        check_options(BuildOptions(precision, dla=0), ("tensorrt", trt))


@pytest.mark.parametrize("version", ["8.5.3", "11.4.0"])
def test_classic_tensorrt_builds_for_this_gpu_only(version: str) -> None:
    with pytest.raises(GradsegError, match="builds for this machine's GPU only; leave --compute-capability out") as why:
        check(version, targets=("sm89",))
    assert why.value.exit_code == 3


@pytest.mark.parametrize("text, expected", [("8.5.3.1", (8, 5, 3, 1)), ("10.3.0b1", (10, 3, 0)), ("dev", ())])
def test_version_numbers(text: str, expected: Any) -> None:
    trt = surface("8.5.3")
    trt.__version__ = text
    assert version_of(trt) == expected
