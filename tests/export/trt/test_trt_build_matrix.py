"""Every model × precision × GPU generation builds with TensorRT-RTX, in the form that to_trt.py gives it, without GPU.

One build holds all four GPUs; the networks of benchmarks/gpu.py are built for each alone too, and with -m slow all are.
"""

from __future__ import annotations

import functools
import struct
from typing import Any, Dict, Sequence, Tuple

import onnx
import pytest
from export_toys import HW, exported, one_torch_thread  # noqa: F401
from trt_toys import find_rtx, int8

from gradseg.export.trt.build import Built, build_plan
from gradseg.export.trt.forms import half_form
from gradseg.export.trt.options import BuildOptions
from gradseg.models.spec import ARCHS

TARGETS = ("sm75", "sm86", "sm89", "sm120")
PRECISIONS = ("fp32", "fp16", "int8")
BENCHED = ("erfnet", "d-star-light", "dg2-star-light", "dg4-star-light")


@pytest.fixture(scope="module")
def rtx() -> Tuple[str, Any]:
    return find_rtx()


@functools.cache
def form(arch: str, precision: str) -> bytes:
    """What a strongly typed builder gets: FP16 stands in the ONNX, beside the Q/DQ for INT8."""
    model: onnx.ModelProto = int8(arch, "trt") if precision == "int8" else exported(arch)
    made = model if precision == "fp32" else half_form(model)
    return bytes(made.SerializeToString())


def build(rtx: Tuple[str, Any], arch: str, precision: str, targets: Sequence[str]) -> Built:
    return build_plan(form(arch, precision), BuildOptions(precision, tuple(targets)), f"{arch}.onnx", rtx, HW)


def held(plan: bytes) -> int:
    """A mask of the GPUs that a plan holds kernels for: bits in its header, which NVIDIA does not document."""
    assert plan[:4] == b"vtrt"
    return int(struct.unpack_from("<I", plan, 32)[0])


@pytest.fixture(scope="module")
def bits(rtx: Tuple[str, Any]) -> Dict[str, int]:
    """The bit of each GPU, from plans built for it alone."""
    return {target: held(build(rtx, "dg4-star-light", "fp32", [target]).plan) for target in TARGETS}


def test_a_plan_says_which_gpus_it_holds(rtx: Tuple[str, Any], bits: Dict[str, int]) -> None:
    assert all(bin(bit).count("1") == 1 for bit in bits.values()) and len(set(bits.values())) == len(TARGETS)
    assert held(build(rtx, "dg4-star-light", "fp32", ["sm86", "sm89"]).plan) == bits["sm86"] | bits["sm89"]
    default = held(build(rtx, "dg4-star-light", "fp32", []).plan)  # Ampere and newer
    assert [target for target, bit in bits.items() if default & bit] == ["sm86", "sm89", "sm120"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("arch", ARCHS)
def test_builds_for_every_gpu(rtx: Tuple[str, Any], bits: Dict[str, int], arch: str, precision: str) -> None:
    built = build(rtx, arch, precision, TARGETS)
    assert held(built.plan) == sum(bits.values())
    assert len(built.plan) > 100_000
    assert built.compute_capability == TARGETS and built.library == "tensorrt_rtx"


def check_alone(rtx: Tuple[str, Any], bits: Dict[str, int], arch: str, precision: str) -> None:
    for target in TARGETS:
        assert held(build(rtx, arch, precision, [target]).plan) == bits[target]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("arch", BENCHED)
def test_builds_for_each_gpu_alone(rtx: Tuple[str, Any], bits: Dict[str, int], arch: str, precision: str) -> None:
    check_alone(rtx, bits, arch, precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch not in BENCHED])
def test_the_others_for_each_gpu_alone(rtx: Tuple[str, Any], bits: Dict[str, int], arch: str, precision: str) -> None:
    check_alone(rtx, bits, arch, precision)
