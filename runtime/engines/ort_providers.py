"""ONNX Runtime's execution providers: CPU, CUDA, TensorRT.

Where a GPU provider is missing or does not start, ONNX Runtime goes on with the CPU and says so in its log at most. A
user who asked for the GPU wants to know: so what a session really has is checked.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

from gradseg.base.errors import GradsegError

NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
WORDS = {"cuda": "CUDA", "tensorrt": "TensorRT"}
TF32_SINCE = (1, 18)  # the CUDA provider knows "use_tf32" since this version, and refuses options it does not know

Provider = Union[str, Tuple[str, Dict[str, str]]]


def providers_for(onnxruntime: Any, provider: str, path: Path, precision: str) -> List[Provider]:
    """What to open a session with: the provider asked for, and behind it those for operators that it does not have.

    precision: of the file. With "tensorrt", FP16 kernels are allowed for fp16 and int8 files, INT8 kernels for int8
    ones, and the engines that it builds, which takes minutes, are kept in the folder {path}.tensorrt beside the file.

    Raises GradsegError (exit code 3) if this ONNX Runtime does not have the provider.
    """
    if provider == "cpu":
        return [NAMES["cpu"]]
    available = list(onnxruntime.get_available_providers())
    if NAMES[provider] not in available:
        raise GradsegError(
            f"{path}: --provider {provider} needs {NAMES[provider]}; this ONNX Runtime {onnxruntime.__version__} has "
            f"{', '.join(available)}. pip uninstall onnxruntime, then pip install onnxruntime-gpu; on a Jetson "
            "NVIDIA's onnxruntime-gpu wheel for its JetPack",
            3,
        )
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21: finds the CUDA libraries that pip installed
        with contextlib.suppress(RuntimeError), contextlib.redirect_stdout(
            None
        ):  # `check_running` says what is missing
            onnxruntime.preload_dlls()
    options: Dict[str, str] = {"device_id": "0"}
    version = tuple(int(part) for part in str(onnxruntime.__version__).split(".")[:2])
    cuda = {**options, **({"use_tf32": "0"} if version >= TF32_SINCE else {})}  # fp32 means fp32
    if provider == "cuda":
        return [(NAMES["cuda"], cuda), NAMES["cpu"]]
    cache = path.with_name(f"{path.name}.tensorrt")
    cache.mkdir(exist_ok=True)
    options.update(trt_engine_cache_enable="1", trt_engine_cache_path=str(cache))
    options.update(trt_fp16_enable="1" if precision in ("fp16", "int8") else "0")
    options.update(trt_int8_enable="1" if precision == "int8" else "0")
    return [(NAMES["tensorrt"], options), (NAMES["cuda"], cuda), NAMES["cpu"]]


def check_running(session: Any, provider: str, path: Path) -> None:
    """GradsegError (exit code 3) if the session does without the provider that was asked for."""
    running = list(session.get_providers())
    if NAMES[provider] not in running:
        raise GradsegError(
            f"{path}: --provider {provider}: {NAMES[provider]} did not start, ONNX Runtime would go on with "
            f"{', '.join(running)}. Its libraries (CUDA, cuDNN{', TensorRT' if provider == 'tensorrt' else ''}) must "
            "be there in the versions that this onnxruntime-gpu was built with: see https://onnxruntime.ai/docs/"
            "execution-providers; or leave --provider out",
            3,
        )
