"""The roofline: its arithmetic, what profiles say, which steps stand for which nodes, and the script."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Tuple

import numpy as np
import onnx
import pytest
from export_toys import HW, exported, one_torch_thread  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st

from gradseg.base.errors import GradsegError
from gradseg.benchmarks import roofline
from gradseg.benchmarks.ceilings.ceilings import (
    USUAL,
    Ceilings,
    Layer,
    above_peak,
    best_of,
    by_group,
    cache_sizes,
    ceilings_of,
    placed,
    sizes_for,
    totals,
)
from gradseg.benchmarks.ceilings.nodes import Node, attributed, nodes_of_onnx, nodes_of_openvino, plain
from gradseg.benchmarks.ceilings.page import draw
from gradseg.benchmarks.ceilings.peaks import best_rate, memory_rates
from gradseg.benchmarks.ceilings.profiles import (
    in_turns,
    layers_of_native,
    layers_of_onnxruntime,
    layers_of_openvino,
    profile_onnxruntime,
    profile_openvino,
    sample_for,
)
from gradseg.models.counts import count
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.models.spec import spec_for

RATES, WIDTHS = {"fp32": 100e9, "int8": 400e9}, {"L2": 200e9, "L3": 100e9, "DRAM": 20e9}
CEILINGS = Ceilings(RATES, WIDTHS, {"L2": 10**6, "L3": 10**7})
MEASURED = {
    "threads": 1,
    "macs_per_s": {
        "fp32": {"best": 100e9, "source": "openvino", "all": {"openvino": 100e9, "torch": "not installed"}},
        "bf16": None,
        "int8": {"best": 400e9, "source": "native", "all": {"native": 400e9}},
    },
    "bytes_per_s": {
        level: {"best": rate, "copy": rate, "read": rate / 2, "bytes_per_thread": 1 << 20}
        for level, rate in WIDTHS.items()
    },
    "caches": {"L2": 10**6, "L3": 10**7},
}
macs = st.integers(0, 10**11)
sizes = st.integers(1, 10**9)
kinds = st.sampled_from(("fp32", "bf16", "int8"))


@given(kinds, macs, sizes)
def test_the_floor_is_the_longer_of_both_and_the_roof_says_the_same(kind: str, work: int, size: int) -> None:
    floor = CEILINGS.floor_ms(kind, work, size) / 1000
    width = CEILINGS.bytes_per_s[CEILINGS.level(size)]
    assert floor == pytest.approx(max(work / CEILINGS.peak(kind), size / width))
    if work:
        assert work / min(CEILINGS.peak(kind), work / size * width) == pytest.approx(floor)
    assert (CEILINGS.bound(kind, work, size) == "arithmetic") == (work / CEILINGS.peak(kind) >= size / width)


@given(kinds, macs, sizes, sizes)
def test_more_bytes_or_work_never_lower_the_floor(kind: str, work: int, size: int, more: int) -> None:
    floor = CEILINGS.floor_ms(kind, work, size)
    assert CEILINGS.floor_ms(kind, work, size + more) >= floor
    assert CEILINGS.floor_ms(kind, work + more, size) >= floor


def test_levels_and_missing_kinds() -> None:
    assert [CEILINGS.level(size) for size in (10**6, 10**6 + 1, 10**7, 10**7 + 1)] == ["L2", "L3", "L3", "DRAM"]
    assert CEILINGS.peak("int16") == CEILINGS.peak("int8") / 2 and Ceilings({"fp32": 1.0}, {}).peak("int16") == 1.0
    assert CEILINGS.peak("bf16") == CEILINGS.peak("fp32")
    still = placed(Layer("c", "Conv", "k", "int8", 5, 0, 1.0), CEILINGS)
    assert still["attainable_gmac_per_s"] == pytest.approx(400.0)


def test_a_layer_by_hand() -> None:
    """10^9 multiply-accumulates in 20 ms where arithmetic allows 10: half of its ceiling."""
    row = placed(Layer("c", "Conv", "k", "fp32", 10**9, 10**6, 20.0, ("c",)), CEILINGS)
    assert (row["floor_ms"], row["share"], row["lost_ms"], row["bound"]) == (10.0, 0.5, 10.0, "arithmetic")
    assert (row["gmac_per_s"], row["macs_per_byte"], row["attainable_gmac_per_s"]) == (50.0, 1000.0, 100.0)
    copy = placed(Layer("r", "Reorder", "k", "fp32", 0, 20 * 10**6, 4.0), CEILINGS)
    assert (copy["floor_ms"], copy["bound"], copy["attainable_gmac_per_s"]) == (1.0, "DRAM", None)
    total = totals([row, copy], 22.0)
    assert (total["layers_ms"], total["outside_ms"], total["floor_ms"], total["share"]) == (24.0, -2.0, 11.0, 0.5)
    assert [group["op"] for group in by_group([copy, row, row])] == ["Conv", "Reorder"]
    assert above_peak([row, copy], CEILINGS) == []
    assert above_peak([placed(Layer("c", "Conv", "k", "fp32", 10**9, 1, 5.0), CEILINGS)], CEILINGS) == ["c"]


def node(name: str, op: str, source: str, work: int = 0) -> Node:
    return Node(name, op, (source,), (f"{name}_out",), work)


CHAIN = [
    node("conv1", "Conv", "x", 10),
    node("relu1", "Relu", "conv1_out"),
    node("conv2", "Conv", "relu1_out", 20),
    node("quantise", "QuantizeLinear", "conv2_out"),
    node("conv3", "Conv", "quantise_out", 40),
]


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        # a step named after its last tensor takes what is before it, as far as its convolution
        ([["relu1_out_nchwc"], ["conv2"], ["conv3"]], [["conv1", "relu1"], ["conv2", "quantise"], ["conv3"]]),
        # a number behind the first node's name; what follows was fused
        ([["conv1_token_3"], ["conv2_quant"], ["conv3"]], [["conv1", "relu1"], ["conv2", "quantise"], ["conv3"]]),
        # all names listed, and a conversion that stands for nothing
        (
            [["conv1/WithoutBiases", "conv1", "relu1"], ["other"], ["conv2", "conv3"]],
            [["conv1", "relu1"], [], ["conv2", "quantise", "conv3"]],
        ),
        # a convolution that no step names is nobody's, though it stands between two that are known
        ([["conv1"], ["mystery"], ["conv3"]], [["conv1", "relu1"], [], ["quantise", "conv3"]]),
    ],
)
def test_fused_nodes(claims: List[List[str]], expected: List[List[str]]) -> None:
    assert [[each.name for each in found] for found in attributed(CHAIN, claims)] == expected


def test_a_product_split_from_its_bias_joins_it_again() -> None:
    split = [node("gemm/WithoutBiases", "MatMul", "x", 8), node("gemm", "Add", "gemm/WithoutBiases_out")]
    assert [[each.name for each in found] for found in attributed(split, [["Multiply_3", "gemm"]])] == [
        ["gemm/WithoutBiases", "gemm"]
    ]
    assert plain("a_nchwc_token_12") == "a" and plain("b/WithoutBiases") == "b"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, onnx.ModelProto]:
    path = tmp_path_factory.mktemp("roofline") / "toy.onnx"
    onnx.save(exported(), str(path))
    return path, exported()


def test_nodes_multiply_as_the_network_does(toy: Tuple[Path, onnx.ModelProto]) -> None:
    nodes = nodes_of_onnx(toy[1])
    built = count(SegNetwork(spec_for("dg2-star-light", input_hw=HW)), HW).macs
    assert sum(each.macs for each in nodes) == built
    assert {each.op for each in nodes if each.macs} <= {"Conv", "ConvTranspose", "MatMul", "Gemm"}


def test_onnx_runtimes_profile(toy: Tuple[Path, onnx.ModelProto]) -> None:
    found = profile_onnxruntime(toy[0], 1, 3)
    assert found.unmapped == () and found.frames == 3 and found.frame_ms > 0
    assert sum(layer.macs for layer in found.layers) == sum(each.macs for each in nodes_of_onnx(toy[1]))
    assert {layer.kind for layer in found.layers} == {"fp32"}
    convolution = next(layer for layer in found.layers if layer.macs)
    assert convolution.nodes and convolution.bytes_moved > HW[0] * HW[1] and convolution.ms > 0
    names = [name for layer in found.layers for name in layer.nodes]
    assert len(names) == len(set(names))


def test_openvinos_counters(toy: Tuple[Path, onnx.ModelProto]) -> None:
    openvino = pytest.importorskip("openvino", reason="pip install openvino to run this")
    found = profile_openvino(toy[0], 1, 3, "f32")
    nodes = nodes_of_openvino(openvino.Core().read_model(str(toy[0])))
    assert found.unmapped == ()
    assert sum(layer.macs for layer in found.layers) == sum(each.macs for each in nodes)
    assert sum(each.macs for each in nodes) == sum(each.macs for each in nodes_of_onnx(toy[1]))
    assert all(layer.ms > 0 or layer.macs for layer in found.layers)


def test_a_recorded_profile() -> None:
    """Two runs, the first a warm-up; a QLinearConv counts one byte a value; a view moves nothing."""

    def event(name: str, op: str, microseconds: int, **tensors: Any) -> Dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": op, **tensors}}

    shapes = {
        "input_type_shape": [{"uint8": [1, 4, 2, 2]}, {"int8": [4, 4, 1, 1]}, {"int32": [4]}],
        "output_type_shape": [{"uint8": [1, 4, 2, 2]}],
    }
    view = {"input_type_shape": [{"float": [1, 4]}], "output_type_shape": [{"float": [4, 1]}]}
    events = [{"cat": "Session", "name": "model_run", "dur": 9}]
    for scale in (100, 2):
        events.append(event("conv1_token_7", "QLinearConv", 1000 * scale, **shapes))
        events.append(event("flat", "Reshape", 10, **view))
    convolution, reshape = layers_of_onnxruntime(events, CHAIN[:2], [1])
    assert (convolution.kind, convolution.ms, convolution.macs) == ("int8", 2.0, 10)
    assert (convolution.bytes_moved, convolution.nodes) == (16 + 16 + 16 + 16, ("conv1", "relu1"))
    assert (reshape.kind, reshape.bytes_moved, reshape.nodes) == ("fp32", 0, ())


def test_recorded_counters() -> None:
    steps = [
        {
            "name": "conv1",
            "op": "Convolution",
            "kernel": "jit",
            "kind": "int8",
            "nodes": ["conv1", "relu1"],
            "bytes": 64,
        },
        {"name": "constant", "op": "Reorder", "kernel": "jit", "kind": "fp32", "nodes": [""], "bytes": 5},
        {"name": "between", "op": "Reorder", "kernel": "jit", "kind": "fp32", "nodes": [""], "bytes": 7},
    ]
    times = [{"conv1": 3.0, "between": 1.0}, {"conv1": 5.0, "between": 1.0}]
    convolution, between = layers_of_openvino(steps, times, CHAIN[:2])
    assert (convolution.ms, convolution.macs, convolution.kind, convolution.bytes_moved) == (4.0, 10, "int8", 64)
    assert (between.name, between.nodes, between.bytes_moved) == ("between", (), 7)


def test_native_operators_that_were_fused_are_one_layer() -> None:
    """The tensor between them, 2x2 pixels of 4 channels of one byte, is neither written nor read."""
    tensor = SimpleNamespace(height=2, width=2, dtype=0)
    ops = [
        SimpleNamespace(kind=kind, name=name, output=0, cout=4) for kind, name in ((1, "dw"), (0, "pw"), (4, "head"))
    ]
    program = SimpleNamespace(ops=ops, tensors=[tensor], precision="int8")
    run = [("dw", 9, 100, 0.0), ("pw", 16, 60, 2.0), ("head", 5, 30, 1.0)]
    first, head = layers_of_native([run, run], program)
    assert (first.op, first.macs, first.bytes_moved, first.nodes) == ("Depthwise+Conv", 25, 128, ("dw", "pw"))
    assert (first.kind, first.ms, head.kind, head.ms) == ("int8", 2.0, "int16", 1.0)


def test_turns_and_samples() -> None:
    runs: List[str] = []
    kept, frame_ms = in_turns(lambda: runs.append("t"), lambda: runs.append("p"), 7)
    assert kept == [2, 3, 4, 5, 6, 9, 10] and "".join(runs) == "t" * 7 + "p" * 7 + "t" * 4 + "p" * 4 and frame_ms > 0
    assert sample_for([1, 32, 48, 3], True).dtype == np.uint8 and sample_for([1, 3, 8, 8], False).dtype == np.float32
    with pytest.raises(GradsegError, match="static size and one frame"):
        sample_for(["N", 3, 8, 8], False)


def test_caches_are_read_and_otherwise_assumed(tmp_path: Path) -> None:
    for index, facts in enumerate((("1", "Data", "32K"), ("2", "Unified", "1024K"), ("3", "Unified", "32M"))):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in zip(("level", "type", "size"), facts, strict=True):
            (folder / name).write_text(text + "\n", "ascii")
    caches = cache_sizes(tmp_path)
    assert caches == {"L2": 1 << 20, "L3": 32 << 20} and cache_sizes(tmp_path / "none") == USUAL
    assert sizes_for(caches, 2) == {"L2": 1 << 19, "L3": 8 << 20, "DRAM": 64 << 20}


def test_ceilings_from_measurements() -> None:
    assert best_of({"a": "not installed", "b": 2.0, "c": 3.0}) == {
        "best": 3.0,
        "source": "c",
        "all": {"a": "not installed", "b": 2.0, "c": 3.0},
    }
    assert best_of({"a": "no"}) is None
    found = ceilings_of({**MEASURED, "threads": 2})
    assert found.macs_per_s == {"fp32": 100e9, "int8": 400e9} and found.sizes == {"L2": 2 * 10**6, "L3": 10**7}


def test_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradseg.benchmarks.ceilings.peaks.SECONDS", 0.02)
    assert best_rate(5.0, lambda: None, 0.01) > 0
    rates = memory_rates(1 << 16, 2)
    assert min(rates["copy_bytes_per_s"], rates["read_bytes_per_s"]) > 0


def test_the_script(toy: Tuple[Path, onnx.ModelProto], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, out, plot = tmp_path / "before.json", tmp_path / "out.json", tmp_path / "roof.png"
    before.write_text(json.dumps({"ceilings": [MEASURED]}), "utf-8")
    known = ["--ceilings", str(before), "--threads", "1", "--frames", "2"]
    arguments = [str(toy[0]), "--engines", "onnxruntime", "--json", str(out), "--plot", str(plot)]
    assert roofline.main([*arguments, *known]) == 0
    text = capsys.readouterr().out
    assert "400.0 GMAC/s  on registers alone, by native" in text and "of what the ceilings allow" in text
    (engine,) = json.loads(out.read_text("utf-8"))["engines"]
    assert engine["unmapped"] == [] and engine["totals"]["layers"] == len(engine["layers"])
    assert plot.stat().st_size > 1000
    for group, layer in zip(engine["groups"], engine["layers"], strict=False):
        group["kind"] = layer["kind"] = "int16"  # as the native engine's label head
    draw([engine], {**MEASURED, "threads": 1}, tmp_path / "int16.png")
    assert (tmp_path / "int16.png").stat().st_size > 1000
    with pytest.raises(GradsegError, match="has none of 2 threads; measure them anew"):
        roofline.main([str(toy[0]), "--ceilings", str(before), "--threads", "2"])
    with pytest.raises(GradsegError, match="none of native runs"):
        roofline.main([str(toy[0]), "--engines", "native", *known])


def test_what_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "engine.plan"
    other.write_bytes(b"x")
    for arguments, message in (
        (["x.onnx", "--engines", "tvm"], "unknown engine 'tvm'; expected some of onnxruntime, openvino, native"),
        (["--frames", "0"], "--frames must be at least 1"),
        (["--json", os.fspath(tmp_path)], "is a directory"),
    ):
        with pytest.raises(GradsegError, match=message):
            roofline.parse(arguments)
    with pytest.raises(GradsegError, match=r"unknown kind of engine '.plan'"), roofline.as_engine(str(other), None):
        pass
