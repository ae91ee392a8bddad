"""One measurement of what this machine can do at best, in a process of its own: `ceilings.ceilings.py` starts it.

`python benchmarks/ceilings/peaks.py SOURCE KIND THREADS` prints {"macs_per_s": …} or, for the source "memory", with
BYTES for KIND, {"copy_bytes_per_s": …, "read_bytes_per_s": …}; {"missing": reason} where there is no such thing here.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import sys
import time
from functools import partial
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

SECONDS = 1.0  # of measuring, after a warm-up of a fifth of it
ROWS, INNER, COLUMNS = 1024, 2048, 1024  # of the product: 2.1 G multiply-accumulates, its inputs in L3 or L2 by blocks
CONV = (1, 128, 64, 128)  # of the convolution's input and output; 3x3, all channels with all: 1.2 G


class MissingError(Exception):
    """There is no such source or kind here; the message says why."""


def best_rate(work: float, run: Callable[[], Any], seconds: float = SECONDS) -> float:
    """The most `work` per second over single runs: a ceiling, so the best counts and not the median."""
    end = time.perf_counter() + seconds / 5
    while time.perf_counter() < end:
        run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter_ns()
        run()
        best = min(best, time.perf_counter_ns() - begin)
    return work / best * 1e9


def numpy_rate(kind: str, threads: int) -> float:
    """NumPy's BLAS, mostly OpenBLAS; its threads are set by the environment."""
    if kind != "fp32":
        raise MissingError("NumPy multiplies matrices in float32 only")
    left, right = np.ones((ROWS, INNER), np.float32), np.ones((INNER, COLUMNS), np.float32)
    out = np.empty((ROWS, COLUMNS), np.float32)
    return best_rate(ROWS * INNER * COLUMNS, lambda: np.matmul(left, right, out=out))


def torch_rate(kind: str, threads: int) -> float:
    """PyTorch: MKL or oneDNN for float32, oneDNN for bf16 and for int8 (linear, uint8 x int8)."""
    import torch

    torch.set_num_threads(threads)
    if kind == "int8":
        return _torch_int8(torch)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
    left, right = torch.ones(ROWS, INNER, dtype=dtype), torch.ones(INNER, COLUMNS, dtype=dtype)
    with torch.inference_mode():
        return best_rate(ROWS * INNER * COLUMNS, lambda: torch.mm(left, right))


def _torch_int8(torch: Any) -> float:
    if "onednn" not in torch.backends.quantized.supported_engines:
        raise MissingError("this PyTorch has no quantised oneDNN engine")
    torch.backends.quantized.engine = "onednn"
    weight = torch.quantize_per_tensor(torch.ones(COLUMNS, INNER), 0.1, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    left = torch.quantize_per_tensor(torch.ones(ROWS, INNER), 0.1, 0, torch.quint8)
    return best_rate(ROWS * INNER * COLUMNS, lambda: torch.ops.quantized.linear(left, packed, 1.0, 0))


def openvino_rate(kind: str, threads: int) -> float:
    """OpenVINO, which is oneDNN's: the better of a matrix product and a 3x3 convolution."""
    import openvino

    core = openvino.Core()
    if kind == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise MissingError("this CPU has no bf16 instructions")
    hint = "bf16" if kind == "bf16" else "f32"
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    rates = []
    for macs, model in _models(kind == "int8"):
        request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
        x = np.ones(list(request.input_tensors[0].shape), request.input_tensors[0].data.dtype)
        rates.append(best_rate(macs, partial(request.infer, {0: x}, share_inputs=True, share_outputs=True)))
    return max(rates)


def onnxruntime_rate(kind: str, threads: int) -> float:
    """ONNX Runtime's own kernels (MLAS): the better of a matrix product and a 3x3 convolution."""
    import onnxruntime

    from gradseg.runtime.engines.ort import session_options

    if kind == "bf16":
        raise MissingError("ONNX Runtime computes in no bf16 on CPUs")
    rates, options = [], session_options(onnxruntime, threads)
    for macs, model in _models(kind == "int8"):
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        x = np.ones(session.get_inputs()[0].shape, np.uint8 if kind == "int8" else np.float32)
        rates.append(best_rate(macs, partial(session.run, None, {"x": x})))
    return max(rates)


def _models(int8: bool) -> List[Tuple[int, bytes]]:
    """(multiply-accumulates, ONNX model) of a matrix product and of a convolution; int8: uint8 and int8 with Q/DQ."""
    from onnx import TensorProto, helper, numpy_helper

    channels, pixels = CONV[1], CONV[2] * CONV[3]
    found = []
    for op, shape, weight, macs in (
        ("MatMul", (ROWS, INNER), (INNER, COLUMNS), ROWS * INNER * COLUMNS),
        ("Conv", CONV, (channels, channels, 3, 3), channels * channels * 9 * pixels),
    ):
        pads: Dict[str, Any] = {"pads": [1, 1, 1, 1]} if op == "Conv" else {}
        values: Dict[str, Any] = {"w": np.ones(weight, np.int8 if int8 else np.float32)}
        nodes = [helper.make_node(op, ["x", "w"], ["y"], **pads)]
        kind = TensorProto.UINT8 if int8 else TensorProto.FLOAT
        if int8:
            values.update(scale=np.float32(0.01), zero=np.uint8(0), even=np.int8(0))
            nodes = [
                helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["xf"]),
                helper.make_node("DequantizeLinear", ["w", "scale", "even"], ["wf"]),
                helper.make_node(op, ["xf", "wf"], ["yf"], **pads),
                helper.make_node("QuantizeLinear", ["yf", "scale", "zero"], ["y"]),
            ]
        ends = (("x", shape), ("y", CONV if op == "Conv" else (ROWS, COLUMNS)))
        x, y = (helper.make_tensor_value_info(name, kind, size) for name, size in ends)
        weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
        graph, opset = helper.make_graph(nodes, "peak", [x], [y], weights), [helper.make_opsetid("", 17)]
        found.append((macs, helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()))
    return found


def native_rate(kind: str, threads: int) -> float:
    """GradSeg's native extension, on registers alone, where it is built and measures that."""
    from gradseg.runtime.native import library as native_library

    measure = getattr(native_library, "native_peak", None)
    rate = measure(kind, threads) if measure else None
    if rate is None:
        raise MissingError("the native extension measures no such peak")
    return float(rate)


def memory_rates(size: int, threads: int) -> Dict[str, float]:
    """Copying (bytes read and written) and reading, all threads together; each works on its own `size` bytes."""
    context = multiprocessing.get_context("fork")
    found, barrier = context.SimpleQueue(), context.Barrier(threads)
    workers = [context.Process(target=_memory_worker, args=(size, barrier, found)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rates = []
    while not found.empty():
        rates.append(found.get())
    if len(rates) != threads:
        raise MissingError("a process of the memory measurement died")
    return {"copy_bytes_per_s": sum(copy for copy, _ in rates), "read_bytes_per_s": sum(read for _, read in rates)}


def _memory_worker(size: int, barrier: Any, found: Any) -> None:
    half = size // 2
    source, target = np.ones(half, np.uint8), np.ones(half, np.uint8)
    values = np.ones(size // 4, np.float32)
    addresses = (ctypes.c_void_p(target.ctypes.data), ctypes.c_void_p(source.ctypes.data), ctypes.c_size_t(half))
    memmove = ctypes.CDLL(None).memmove
    again = max(1, (1 << 20) // size)  # so that calling from Python does not count

    def copy() -> None:
        for _ in range(again):
            memmove(*addresses)

    def read() -> None:
        for _ in range(again):
            np.dot(values, values)

    rates = []
    for work in (copy, read):
        barrier.wait()
        rates.append(best_rate(size * again, work, SECONDS / 2))
    found.put(tuple(rates))


SOURCES: Dict[str, Callable[[str, int], float]] = {
    "native": native_rate,
    "openvino": openvino_rate,
    "onnxruntime": onnxruntime_rate,
    "torch": torch_rate,
    "numpy": numpy_rate,
}


def main(argv: Sequence[str]) -> int:
    source, what, threads = argv[0], argv[1], int(argv[2])
    try:
        if source == "memory":
            answer: Dict[str, Any] = dict(memory_rates(int(what), threads))
        else:
            answer = {"macs_per_s": SOURCES[source](what, threads)}
    except ImportError as error:
        answer = {"missing": f"not installed ({error.name or error})"}
    except MissingError as error:
        answer = {"missing": str(error)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
