"""How far an engine is from the floors of its GPU: what its memory and its arithmetic allow at best. Python 3.8.

Floors are bounds on one inference at the highest clock. `memory_layers_ms`: every layer's inputs, weights and outputs
cross the memory once. A GPU whose L2 cache keeps a tensor between two layers can be faster than that; none can be
faster than `memory_fused_ms` (weights, input, output and skip connections alone) unless its L2 keeps even those.
`arithmetic_ms`: all multiply-accumulates at the peak rate of their precision; depthwise convolutions cannot use tensor
cores, so real kernels stay further away. `roofline_ms`: per layer the longer of the two, added up.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Dict, Optional

from gradseg.runtime.cuda.cuda_python_backend import import_cudart
from gradseg.runtime.cuda.gpu import Gpu

COPY_BYTES = 256 << 20  # well beyond any L2 cache
COPIES, WAKING = 20, 3  # counted ones, after those that wake the GPU
FLOAT_BYTES = {"fp32": 4, "fp16": 2, "int8": 2}


@dataclass(frozen=True)
class Rates:
    """Dense multiply-accumulates per clock and multiprocessor. fp32: CUDA cores, no TF32. fp16, int8: tensor cores.
    None: not published. source: where they are from; a figure in TFLOPS or TOPS is divided by 2, SMs and clock."""

    fp32: Optional[int]
    fp16: Optional[int]
    int8: Optional[int]
    source: str


# FP32: "Throughput of Native Arithmetic Instructions" of NVIDIA's CUDA C++ Programming Guide, by compute capability.
# Tensor cores: NVIDIA's architecture whitepapers and datasheets, dense figures (half of those "with sparsity").
RATES: Dict[str, Rates] = {
    "sm72": Rates(
        64, 512, 1024, "Jetson AGX Xavier: 11 TFLOPS FP16, 22 TOPS INT8 with 8 SMs at 1.377 GHz (NVIDIA developer blog)"
    ),
    "sm75": Rates(
        64, 512, 1024, "Turing whitepaper: 8 tensor cores per SM, 64 FP16 FMA per clock each; 2048 INT8 operations"
    ),
    "sm80": Rates(64, 1024, 2048, "A100 whitepaper: 4 tensor cores per SM, 256 FP16 FMA per clock each; 624 TOPS INT8"),
    "sm86": Rates(
        128, 512, 1024, "GA102 whitepaper: 4 tensor cores per SM, 128 FP16 FMA per clock each (RTX 3090: 284 TOPS INT8)"
    ),
    "sm87": Rates(
        128, 1024, 2048, "Jetson AGX Orin technical brief: 170 sparse INT8 TOPS, 85 dense, with 16 SMs at 1.3 GHz"
    ),
    "sm89": Rates(
        128, 512, 1024, "Ada whitepaper, RTX 4090: 330.3 TFLOPS FP16, 660.6 TOPS INT8 with 128 SMs at 2.52 GHz"
    ),
    "sm90": Rates(
        128, 2048, 4096, "H100 whitepaper, SXM5: 989.4 TFLOPS FP16, 1978.9 TOPS INT8 with 132 SMs at 1.83 GHz"
    ),
    "sm100": Rates(128, 4096, 8192, "HGX B200 datasheet: 2.25 PFLOPS FP16, 4.5 POPS INT8 dense with 148 SMs"),
    "sm110": Rates(
        128, 4096, None, "Jetson T5000 datasheet: 1035 sparse FP8 TFLOPS with 20 SMs at 1.57 GHz, FP16 half of FP8's"
    ),
    "sm120": Rates(
        128, 512, 1024, "RTX Blackwell whitepaper, RTX 5090: 419 TFLOPS FP16, 838 TOPS INT8 with 170 SMs at 2.407 GHz"
    ),
}


def peaks_of(gpu: Gpu) -> Dict[str, Any]:
    """{"fp32", "fp16", "int8": multiply-accumulates per second or None, "source"} at the GPU's highest clock."""
    known = f"no published rates at hand for {gpu.compute_capability} (known: {', '.join(sorted(RATES))})"
    rates = RATES.get(gpu.compute_capability, Rates(None, None, None, known))
    per_rate = gpu.multiprocessors * gpu.clock_khz * 1000
    if rates.source != known and (gpu.clock_khz <= 0 or gpu.multiprocessors <= 0):
        unknown = "the driver does not say how many multiprocessors there are, or their clock"
        rates = Rates(None, None, None, unknown)
    found = {name: getattr(rates, name) for name in FLOAT_BYTES}
    return {"source": rates.source, **{name: rate and rate * per_rate for name, rate in found.items()}}


def bandwidth_of(gpu: Gpu, cudart: Any = None) -> Dict[str, Any]:
    """{"bytes_per_s", "how"}: measured by copying on the GPU, else by its memory's clock and width; None if neither.

    cudart: the runtime API of cuda-python; imported by default.
    """
    runtime = cudart if cudart is not None else import_cudart()
    reason = "cuda-python cannot be imported here"
    if runtime is not None:
        size = min(COPY_BYTES, gpu.memory_bytes // 16 or COPY_BYTES)
        try:
            return {
                "bytes_per_s": copy_bandwidth(runtime, size),
                "how": f"device-to-device copies of {size >> 20} MiB, bytes read and written, median of {COPIES}",
            }
        except RuntimeError as error:
            reason = str(error)
    theoretical = 2 * gpu.memory_clock_khz * 1000 * gpu.memory_bus_bits // 8  # two transfers per clock
    if theoretical <= 0:
        return {"bytes_per_s": None, "how": f"not measured ({reason}), and the driver does not say the memory's clock"}
    return {
        "bytes_per_s": float(theoretical),
        "how": f"2 x memory clock x bus width, not reached in practice; not measured: {reason}",
    }


def copy_bandwidth(cudart: Any, size: int) -> float:
    """Bytes per second that copies of `size` bytes on the device read and write together. RuntimeError if CUDA fails.

    Streams and events are passed as the objects that cuda-python gave: old versions take no integers for them.
    """
    held = contextlib.ExitStack()

    def call(name: str, *arguments: Any) -> Any:
        result = getattr(cudart, name)(*arguments)
        if int(result[0]) != 0:
            raise RuntimeError(f"{name}: {result[0]}")
        return result[1] if len(result) > 1 else None

    def take(give_back: str, name: str, *arguments: Any) -> Any:
        thing = call(name, *arguments)
        held.callback(getattr(cudart, give_back), thing)
        return thing

    with held:
        stream = take("cudaStreamDestroy", "cudaStreamCreate")
        source, target = (take("cudaFree", "cudaMalloc", size) for _ in range(2))
        begin, end = (take("cudaEventDestroy", "cudaEventCreate") for _ in range(2))
        for pointer in (source, target):  # pages that were never written may not be there yet
            call("cudaMemset", pointer, 1, size)
        kind, times = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice, []
        for _ in range(WAKING + COPIES):
            call("cudaEventRecord", begin, stream)
            call("cudaMemcpyAsync", target, source, size, kind, stream)
            call("cudaEventRecord", end, stream)
            call("cudaStreamSynchronize", stream)
            times.append(float(call("cudaEventElapsedTime", begin, end)))
    middle = sorted(times[WAKING:])[COPIES // 2]
    if middle <= 0:
        raise RuntimeError("copies took no time by CUDA's events")
    return 2 * size / (middle / 1000)


def floors_of(
    counts: Dict[str, Any], precision: str, bandwidth: Optional[float], peaks: Dict[str, Any]
) -> Dict[str, Any]:
    """The floors of one engine in milliseconds, None where a rate is not known, and the sums they come from.

    counts: from `on_gpu.counts.counts_of`. precision: fp32, fp16 or int8; INT8 engines compute the rest in FP16.
    """
    layers, fused = counts["layers"], counts["fused"]
    plain = "fp32" if precision == "fp32" else "fp16"
    moved = [each["weights"] + each["reads"] + each["writes"] for each in layers]
    once = sum(fused.values())
    rates = [peaks["int8" if each["int8"] else plain] for each in layers]
    known = all(rate or not each["macs"] for rate, each in zip(rates, layers))
    times = [1000 * each["macs"] / rate if rate else 0.0 for rate, each in zip(rates, layers)]
    memory = [1000 * each / bandwidth for each in moved] if bandwidth else []
    return {
        "macs": sum(each["macs"] for each in layers),
        "int8_macs": sum(each["macs"] for each in layers if each["int8"]),
        "layers_bytes": sum(moved),
        "fused_bytes": once,
        "memory_layers_ms": 1000 * sum(moved) / bandwidth if bandwidth else None,
        "memory_fused_ms": 1000 * once / bandwidth if bandwidth else None,
        "arithmetic_ms": sum(times) if known else None,
        "roofline_ms": sum(map(max, memory, times)) if known and bandwidth else None,
    }


def distances(floors: Dict[str, Any], measured_ms: Optional[float]) -> Dict[str, Optional[float]]:
    """How many times each floor the measured inference takes: {"memory_layers", "memory_fused", "arithmetic", …}."""
    names = [name for name in floors if name.endswith("_ms")]
    return {
        name[: -len("_ms")]: measured_ms / floors[name] if measured_ms is not None and floors[name] else None
        for name in names
    }
