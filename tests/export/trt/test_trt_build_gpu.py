"""The builder of classic TensorRT on a GPU: what stand-ins (toys/trt_surfaces.py) cannot show. Run with -m gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Tuple

import pytest
from export_toys import HW, exported, one_torch_thread  # noqa: F401
from trt_toys import int8

from gradseg.export.trt.build import Built, build_plan, strongly_typed
from gradseg.export.trt.forms import half_form
from gradseg.export.trt.options import BuildOptions
from gradseg.runtime.cuda.gpu import find_gpu
from gradseg.runtime.engines.trt_library import import_one

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def classic() -> Tuple[str, Any]:
    found = import_one("tensorrt")
    if found is None or find_gpu() is None:
        pytest.skip("needs tensorrt (pip install tensorrt) and an NVIDIA GPU with its driver")
    return "tensorrt", found


def build(library: Tuple[str, Any], precision: str, **options: Any) -> Built:
    model = int8("dg2-star-light", "trt") if precision == "int8" else exported()
    typed = half_form(model) if precision != "fp32" and strongly_typed(*library) else model
    return build_plan(typed.SerializeToString(), BuildOptions(precision, **options), "net.onnx", library, HW)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_builds(classic: Tuple[str, Any], precision: str) -> None:
    built = build(classic, precision, workspace_mib=512, sparse=True)
    assert len(built.plan) > 10_000
    weak = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}
    assert built.flags == ((*weak[precision],) if not strongly_typed(*classic) else ()) + ("SPARSE_WEIGHTS",)


def test_nodes_kept_in_fp32(classic: Tuple[str, Any]) -> None:
    if strongly_typed(*classic):
        pytest.skip("needs a weakly typed TensorRT: 8.5 to 10")
    name = next(node.name for node in exported().graph.node if node.op_type == "Conv")
    built = build(classic, "fp16", keep_fp32=(name,))
    assert "OBEY_PRECISION_CONSTRAINTS" in built.flags
    assert not [note for note in built.notes if "no such node" in note]


def test_timings_are_kept_and_used_again(classic: Tuple[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    first = build(classic, "fp16", timing_cache=str(path))
    size = path.stat().st_size
    second = build(classic, "fp16", timing_cache=str(path))
    assert first.notes[-1].startswith(f"timing cache {path}: ") and second.notes[-1] == first.notes[-1]
    assert path.stat().st_size == size  # every kernel was there already


def test_a_file_that_is_no_timing_cache_is_left_as_it_is(classic: Tuple[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    path.write_bytes(b"not timings" * 100)
    built = build(classic, "fp32", timing_cache=str(path))
    assert "not one that this TensorRT on this GPU can use" in built.notes[-1]
    assert path.read_bytes() == b"not timings" * 100
