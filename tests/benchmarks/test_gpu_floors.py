"""Counts of what a network computes and moves, and the floors that follow for a GPU."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, List, Tuple

import numpy as np
import onnx
import pytest
from export_toys import HW, checkpoint, exported, one_torch_thread  # noqa: F401
from gpu_toys import H100
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from trt_toys import int8

from gradseg.benchmarks.on_gpu.counts import counts_of
from gradseg.benchmarks.on_gpu.floors import COPIES, RATES, bandwidth_of, distances, floors_of, peaks_of
from gradseg.models.counts import count
from gradseg.models.networks.erfnet import SegNetwork


def network(
    nodes: List[Any], weights: dict[str, np.ndarray[Any, Any]], shape: Tuple[int, ...], out: str
) -> onnx.ModelProto:
    """A model from float input x of that shape to `out`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(out, TensorProto.UNDEFINED if out == "q" else TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def conv(source: str, weight: str, out: str, **options: Any) -> Any:
    return helper.make_node("Conv", [source, weight, f"{weight}_bias"], [out], name=out, pads=[1, 1, 1, 1], **options)


def weight(name: str, *shape: int) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.ones(shape, np.float32), f"{name}_bias": np.ones(shape[0], np.float32)}


def test_a_residual_block_by_hand() -> None:
    """x (3, 4, 6) → conv 8 → ReLU → r; r → conv 8 → sum with r → ReLU."""
    nodes = [
        conv("x", "a", "c1"),
        helper.make_node("Relu", ["c1"], ["r"]),
        conv("r", "b", "c2", group=8),
        helper.make_node("Add", ["c2", "r"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    found = counts_of(network(nodes, {**weight("a", 8, 3, 3, 3), **weight("b", 8, 1, 3, 3)}, (1, 3, 4, 6), "y"), 4)
    first, second = found["layers"]
    assert (first["op"], first["macs"], first["weights"]) == ("Conv", 8 * 3 * 9 * 24, 4 * (8 * 27 + 8))
    assert (first["reads"], first["writes"]) == (4 * 72, 4 * 192)
    assert (second["macs"], second["weights"]) == (8 * 9 * 24, 4 * (72 + 8))
    assert (second["reads"], second["writes"]) == (4 * 192, 4 * 192)  # r once, for the convolution and the sum
    assert found["fused"] == {"weights": 4 * (224 + 80), "input": 288, "output": 768, "skips": 0}


def test_a_skip_connection_is_written_and_read_once() -> None:
    nodes = [
        conv("x", "a", "c1"),
        conv("c1", "b", "c2"),
        helper.make_node("Relu", ["c2"], ["r2"]),
        conv("r2", "c", "c3"),
        helper.make_node("Add", ["c3", "c1"], ["y"]),
    ]
    weights = {**weight("a", 8, 3, 3, 3), **weight("b", 8, 8, 3, 3), **weight("c", 8, 8, 3, 3)}
    found = counts_of(network(nodes, weights, (1, 3, 4, 6), "y"), 2)
    assert [layer["reads"] for layer in found["layers"]] == [2 * 72, 2 * 192, 2 * 192 * 2]
    assert found["fused"]["skips"] == 2 * (2 * 192)


def test_int8_is_counted_where_it_is_stored() -> None:
    """Q/DQ in front of a convolution with int8 weights: its input is stored in one byte a value."""
    scale = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    packed = {"b_int8": np.ones((8, 8, 3, 3), np.int8), "b_bias": np.ones(8, np.float32)}
    nodes = [
        conv("x", "a", "c1"),
        helper.make_node("QuantizeLinear", ["c1", "s", "z"], ["q1"]),
        helper.make_node("DequantizeLinear", ["q1", "s", "z"], ["d1"]),
        helper.make_node("DequantizeLinear", ["b_int8", "s", "z"], ["b"]),
        conv("d1", "b", "y"),
    ]
    found = counts_of(network(nodes, {**weight("a", 8, 3, 3, 3), **packed, **scale}, (1, 3, 4, 6), "y"), 2)
    first, second = found["layers"]
    assert not first["int8"] and (first["reads"], first["writes"]) == (2 * 72, 192)
    assert second["int8"] and (second["reads"], second["writes"]) == (192, 2 * 192)
    assert second["weights"] == 8 * 8 * 9 + 2 * 8


def test_concat_and_pooling_move_what_they_must() -> None:
    nodes = [
        conv("x", "a", "c1", strides=[2, 2]),
        helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["c1", "p"], ["c"], axis=1),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    found = counts_of(network(nodes, weight("a", 5, 3, 3, 3), (1, 3, 4, 6), "y"), 4)
    assert [layer["op"] for layer in found["layers"]] == ["Conv", "MaxPool"]
    assert found["fused"]["skips"] == 0 and found["fused"]["output"] == 4 * 8 * 6


def test_a_deconvolution_counts_at_its_input() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    found = counts_of(network([node], {"w": np.ones((3, 4, 2, 2), np.float32)}, (1, 3, 4, 6), "y"), 4)
    assert found["layers"][0]["macs"] == 3 * 4 * 4 * 24 and found["layers"][0]["writes"] == 4 * 4 * 8 * 12


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 6)
)
def test_chains_of_convolutions_count_as_by_hand(layers: List[Tuple[int, bool]], height: int, width: int) -> None:
    nodes, weights, source, before = [], {}, "x", 3
    macs = moved = 0
    for index, (channels, relu) in enumerate(layers):
        name = f"w{index}"
        weights.update(weight(name, channels, before, 3, 3))
        nodes.append(conv(source, name, f"c{index}"))
        source = f"c{index}"
        if relu:
            nodes.append(helper.make_node("Relu", [source], [f"r{index}"]))
            source = f"r{index}"
        macs += channels * before * 9 * height * width
        moved += 2 * (channels * before * 9 + channels + (before + channels) * height * width)
        before = channels
    found = counts_of(network(nodes, weights, (1, 3, height, width), source), 2)
    assert sum(layer["macs"] for layer in found["layers"]) == macs and len(found["layers"]) == len(layers)
    assert sum(layer["weights"] + layer["reads"] + layer["writes"] for layer in found["layers"]) == moved
    assert found["fused"]["skips"] == 0 and found["fused"]["input"] == 2 * 3 * height * width


@pytest.mark.parametrize("arch", ["erfnet", "d-star-light", "dg2s", "dg4-star-light"])
def test_networks_count_as_models_counts_does(arch: str) -> None:
    found = counts_of(exported(arch), 4)
    known = count(SegNetwork(checkpoint(arch).spec), HW)
    # BatchNorm behind ERFNet's pooled branches is a scale per channel in the graph, no convolution of the network
    scales = [layer for layer in found["layers"] if "MaxPool" in layer["name"] and layer["op"] == "Conv"]
    assert len(scales) == (3 if arch == "erfnet" else 0)
    assert sum(layer["macs"] for layer in found["layers"]) - sum(layer["macs"] for layer in scales) == known.macs
    biases = sum(
        len(v.dims) == 1 and int(np.prod(v.dims))
        for v in exported(arch).graph.initializer
        if "Conv" in _reader(arch, v.name)
    )
    kept = sum(layer["weights"] for layer in found["layers"]) - sum(layer["weights"] for layer in scales)
    assert known.weights * 4 <= kept <= (known.weights + biases) * 4
    assert found["fused"]["input"] == 3 * HW[0] * HW[1] and found["fused"]["output"] == HW[0] * HW[1]


def _reader(arch: str, name: str) -> str:
    return next((node.op_type for node in exported(arch).graph.node if name in node.input), "")


def test_int8_moves_less_and_computes_the_same() -> None:
    plain, packed = counts_of(exported(), 2), counts_of(int8("dg2-star-light", "trt"), 2)
    sums = [
        {key: sum(layer[key] for layer in each["layers"]) for key in ("macs", "weights", "reads")}
        for each in (plain, packed)
    ]
    assert sums[0]["macs"] == sums[1]["macs"] and len(plain["layers"]) == len(packed["layers"])
    assert 0.5 < sums[1]["reads"] / sums[0]["reads"] < 0.75 and 0.5 < sums[1]["weights"] / sums[0]["weights"] < 0.6


# --- floors ---

PUBLISHED = [  # compute capability, TFLOPS FP16 or TOPS INT8 (dense), SMs, GHz: NVIDIA's datasheets and whitepapers
    ("sm72", "fp16", 11.3, 8, 1.377),
    ("sm72", "int8", 22.6, 8, 1.377),
    ("sm75", "fp16", 130.5, 72, 1.770),
    ("sm75", "int8", 261.0, 72, 1.770),
    ("sm80", "fp16", 312, 108, 1.410),
    ("sm80", "int8", 624, 108, 1.410),
    ("sm80", "fp32", 19.5, 108, 1.410),
    ("sm86", "int8", 284, 82, 1.695),
    ("sm86", "fp32", 35.6, 82, 1.695),
    ("sm87", "int8", 85, 16, 1.3),
    ("sm87", "fp32", 5.3, 16, 1.3),
    ("sm89", "fp16", 330.3, 128, 2.520),
    ("sm89", "int8", 660.6, 128, 2.520),
    ("sm89", "fp32", 82.6, 128, 2.520),
    ("sm90", "fp16", 989.4, 132, 1.830),
    ("sm90", "int8", 1978.9, 132, 1.830),
    ("sm90", "fp32", 66.9, 132, 1.980),
    ("sm100", "fp16", 2250, 148, 1.860),
    ("sm120", "fp16", 419, 170, 2.407),
    ("sm120", "int8", 838, 170, 2.407),
    ("sm120", "fp32", 104.8, 170, 2.407),
]


@pytest.mark.parametrize(("target", "precision", "tera", "multiprocessors", "ghz"), PUBLISHED)
def test_rates_are_the_published_ones(
    target: str, precision: str, tera: float, multiprocessors: int, ghz: float
) -> None:
    rate = getattr(RATES[target], precision)
    assert 2 * rate * multiprocessors * ghz / 1000 == pytest.approx(tera, rel=0.025)
    assert RATES[target].source


def test_peaks_of_gpus_known_and_unknown() -> None:
    peaks = peaks_of(H100)
    assert peaks["int8"] == 2 * peaks["fp16"] == 4096 * 132 * 1_980_000 * 1000 and "H100" in peaks["source"]
    unknown = peaks_of(dataclasses.replace(H100, compute_capability="sm999"))
    assert unknown["fp16"] is None and "no published rates at hand for sm999" in unknown["source"]
    assert peaks_of(dataclasses.replace(H100, compute_capability="sm110"))["int8"] is None
    assert peaks_of(dataclasses.replace(H100, clock_khz=0))["fp32"] is None


class FakeCudart:
    """cuda-python whose copies take `ms` milliseconds each; `fails` names a call that does not work."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDeviceToDevice=3)  # noqa: N815

    def __init__(self, ms: float = 0.2, fails: str = "") -> None:
        self.ms, self.fails, self.held, self.calls = ms, fails, 0, 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Tuple[Any, ...]:
            self.calls += name == "cudaMemcpyAsync"
            if name == self.fails:
                return (2,)
            if name in ("cudaMalloc", "cudaEventCreate", "cudaStreamCreate"):
                self.held += 1
                return (0, 7)
            self.held -= name in ("cudaFree", "cudaEventDestroy", "cudaStreamDestroy")
            return (0, self.ms) if name == "cudaEventElapsedTime" else (0,)

        return call


def test_bandwidth_is_measured_or_else_said_to_be_theoretical(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = FakeCudart()
    found = bandwidth_of(H100, cudart)
    assert found["bytes_per_s"] == pytest.approx(2 * (256 << 20) / 0.0002) and "256 MiB" in found["how"]
    assert cudart.held == 0 and cudart.calls == COPIES + 3
    for broken in ("cudaMalloc", "cudaMemcpyAsync", "cudaStreamCreate"):
        cudart = FakeCudart(fails=broken)
        found = bandwidth_of(H100, cudart)
        assert found["bytes_per_s"] == 2 * 2_619_000 * 1000 * 5120 // 8 and f"{broken}: 2" in found["how"]
        assert cudart.held == 0
    assert "no time" in bandwidth_of(H100, FakeCudart(ms=0))["how"]
    monkeypatch.setattr("gradseg.benchmarks.on_gpu.floors.import_cudart", lambda: None)
    assert "cuda-python cannot be imported" in bandwidth_of(H100)["how"]
    assert bandwidth_of(dataclasses.replace(H100, memory_clock_khz=0))["bytes_per_s"] is None


def test_floors_by_hand() -> None:
    layer = {"name": "a", "op": "Conv", "macs": 4_000_000, "int8": True, "weights": 1000, "reads": 3000, "writes": 4000}
    other = {**layer, "int8": False, "macs": 1_000_000, "reads": 1000, "writes": 0, "weights": 0}
    counts = {"layers": [layer, other], "fused": {"weights": 1000, "input": 500, "output": 400, "skips": 100}}
    peaks = {"fp32": 1e9, "fp16": 2e9, "int8": 4e9, "source": ""}
    found = floors_of(counts, "int8", 1e6, peaks)
    assert (found["macs"], found["int8_macs"], found["layers_bytes"], found["fused_bytes"]) == (5e6, 4e6, 9000, 2000)
    assert found["memory_layers_ms"] == 9.0 and found["memory_fused_ms"] == 2.0
    assert found["arithmetic_ms"] == pytest.approx(1.0 + 0.5) and found["roofline_ms"] == pytest.approx(8.0 + 1.0)
    assert distances(found, 18.0) == {"memory_layers": 2.0, "memory_fused": 9.0, "arithmetic": 12.0, "roofline": 2.0}
    blind = floors_of(counts, "int8", None, {**peaks, "int8": None})
    assert blind["arithmetic_ms"] is blind["memory_fused_ms"] is blind["roofline_ms"] is None
    assert set(distances(blind, 1.0).values()) == {None} == set(distances(found, None).values())
    assert floors_of({**counts, "layers": [other]}, "fp32", 1e6, peaks)["arithmetic_ms"] == 1.0
