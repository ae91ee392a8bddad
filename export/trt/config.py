"""The builder's configuration over every TensorRT from 8.5 on: only what the version has is touched. Python 3.8."""

from __future__ import annotations

import ctypes
from typing import Any, Dict, List, Tuple

from gradseg.base.errors import GradsegError
from gradseg.export.trt.messages import layers_of
from gradseg.export.trt.options import BuildOptions, Library, known_targets, strongly_typed

# What a weakly typed builder (8 to 10) may use; INT8 stands in the Q/DQ, FP16 is for the layers between
PRECISION_FLAGS: Dict[str, Tuple[str, ...]] = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}
# Libraries of kernels that TensorRT 8.5 loads by these very names if they are there: a function that gives the version,
# at least the given one from the real library. Later versions leave them out by default.
EXTERNAL: Dict[str, Tuple[str, str, int]] = {
    "CUBLAS": ("libcublas.so.11", "cublasGetCudartVersion", 9000),
    "CUBLAS_LT": ("libcublasLt.so.11", "cublasLtGetVersion", 9000),
    "CUDNN": ("libcudnn.so.8", "cudnnGetVersion", 8000),
}


def configure(
    library: Library, builder: Any, network: Any, config: Any, options: BuildOptions, nodes: Dict[str, str]
) -> Tuple[Tuple[str, ...], List[str]]:
    """Sets everything but the timing cache; returns the builder flags set and lines for the user.

    nodes: the ONNX node of each layer. Raises GradsegError for a DLA core that is not there (exit code 3).
    """
    kind, trt = library
    notes: List[str] = []
    flags: List[str] = []
    typed = strongly_typed(kind, trt)
    if not typed:
        flags += PRECISION_FLAGS[options.precision]
        if options.precision != "fp32" and options.keep_fp32:
            notes += _keep_fp32(trt, network, options.keep_fp32, nodes)
            flags.append("OBEY_PRECISION_CONSTRAINTS")
    if options.sparse:
        flags.append("SPARSE_WEIGHTS")
    if options.version_compatible:
        flags.append("VERSION_COMPATIBLE")
    if options.dla is not None:
        notes += _use_dla(trt, builder, network, config, options)
        flags.append("GPU_FALLBACK")
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    # on by default; FP32 is to mean FP32, also for the layers kept in it
    if options.tf32:
        flags.append("TF32")
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    notes += _set_limits(library, config, options)
    return tuple(flags), notes


def _set_limits(library: Library, config: Any, options: BuildOptions) -> List[str]:
    """What is not a flag: memory, the builder's effort, GPUs, where kernels come from."""
    kind, trt = library
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.opt_level is not None:
        config.builder_optimization_level = options.opt_level
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.targets:
        values = known_targets(trt, options.targets)
        config.num_compute_capabilities = len(values)
        for index, value in enumerate(values):
            if not config.set_compute_capability(value, index):
                target = options.targets[index]
                raise GradsegError(f"--compute-capability {target}: TensorRT-RTX {trt.__version__} refuses it")
    return _own_kernels(trt, config) if kind == "tensorrt" else []


def _keep_fp32(trt: Any, network: Any, keep: Tuple[str, ...], nodes: Dict[str, str]) -> List[str]:
    """Asks for FP32 in the layers of the nodes named; a note for nodes that the network does not have."""
    wanted, found = set(keep), set()
    floats = (trt.DataType.FLOAT, trt.DataType.HALF)
    for layer in layers_of(network):
        node = nodes.get(layer.name, layer.name)
        if node not in wanted:
            continue
        found.add(node)
        outputs = [index for index in range(layer.num_outputs) if layer.get_output(index).dtype in floats]
        if not outputs:
            continue
        layer.precision = trt.DataType.FLOAT
        for index in outputs:
            layer.set_output_type(index, trt.DataType.FLOAT)
    missing = sorted(wanted - found)
    return [f"warning: not kept in FP32, no such node: {', '.join(missing)}"] if missing else []


def _use_dla(trt: Any, builder: Any, network: Any, config: Any, options: BuildOptions) -> List[str]:
    """Layers go to the DLA core where it can run them, to the GPU otherwise; says how many."""
    assert options.dla is not None
    cores = int(builder.num_DLA_cores)
    if options.dla >= cores:
        has = f"has {cores}, numbered from 0" if cores else "has none; leave it out to build for the GPU"
        raise GradsegError(f"--dla {options.dla}: this machine {has}", exit_code=3)
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = options.dla
    layers = list(layers_of(network))
    able = sum(bool(config.can_run_on_DLA(layer)) for layer in layers)
    return [f"DLA core {options.dla}: can run {able} of {len(layers)} layers; the GPU runs the others"]


def _own_kernels(trt: Any, config: Any) -> List[str]:
    """Takes cuBLAS and cuDNN out of the kernel sources where they are not usable, as on a lean device image.

    Without this TensorRT 8.5 stops at the first kernel that it tries from them; 8.6 and later leave them out anyway.
    """
    sources = int(config.get_tactic_sources())
    lacking = []
    for source in EXTERNAL:
        bit = 1 << int(trt.TacticSource.__members__[source]) if source in trt.TacticSource.__members__ else 0
        if sources & bit and not _usable(source):
            sources &= ~bit
            lacking.append(source)
    if lacking:
        config.set_tactic_sources(sources)
        return [f"{' and '.join(lacking)} not usable here: built with TensorRT's own kernels only"]
    return []


def _usable(source: str) -> bool:
    file, function, least = EXTERNAL[source]
    try:
        ask = getattr(ctypes.CDLL(file), function)
    except (OSError, AttributeError):
        return False
    ask.restype = ctypes.c_size_t
    return int(ask()) >= least
