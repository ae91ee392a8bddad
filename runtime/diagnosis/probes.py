"""What the doctor asks in a process of its own: an import that crashes or hangs must not take the doctor with it.

    python runtime/diagnosis/probes.py cv2

prints one line, `MARK` and a JSON object: {"version", "file", …} of a module that can be imported, else
{"missing": true} or {"error": one line}. Standard library only, so that it starts wherever Python does.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

MARK = "gradseg-doctor:"
NVINFER = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so.8", "libnvinfer.so.7", "libnvinfer.so")
PROVIDERS = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}


def module_facts(module: Any) -> Dict[str, Any]:
    """Version and file of an imported module."""
    version = getattr(module, "__version__", None)
    return {"version": None if version is None else str(version), "file": getattr(module, "__file__", None)}


def probe_numpy() -> Dict[str, Any]:
    """NumPy, with a first calculation: a broken BLAS shows only then."""
    numpy = importlib.import_module("numpy")
    numpy.dot(numpy.ones((2, 2), numpy.float32), numpy.ones(2, numpy.float32))
    return module_facts(numpy)


def probe_cv2() -> Dict[str, Any]:
    """OpenCV and what it says it was built with."""
    cv2 = importlib.import_module("cv2")
    return {**module_facts(cv2), "build": cv2.getBuildInformation()}


def probe_onnxruntime() -> Dict[str, Any]:
    """ONNX Runtime, the providers that it was built with, and why those of the GPU cannot be loaded, if so.

    `get_available_providers` lists what was compiled; whether CUDA's libraries are there shows when it is loaded.
    """
    runtime = importlib.import_module("onnxruntime")
    found = module_facts(runtime)
    found["providers"] = list(runtime.get_available_providers())
    found["broken"] = {}
    folder = Path(found["file"]).parent / "capi"
    for provider, name in PROVIDERS.items():
        if provider in found["providers"]:
            try:
                ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
                ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"))
            except OSError as error:
                found["broken"][provider] = one_line(error)
    return found


def probe_openvino() -> Dict[str, Any]:
    """OpenVINO, and the float and integer types that it computes in on this CPU."""
    runtime = importlib.import_module("openvino")
    found = module_facts(runtime)
    found["version"] = str(found["version"]).partition("-")[0]  # "2026.4.1-22982-e213a147257-releases/2026/4"
    found["types"] = [str(name) for name in runtime.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
    return found


def probe_native() -> Dict[str, Any]:
    """The native engine's library, and the instructions that it uses on this CPU."""
    native = importlib.import_module("gradseg.runtime.native.library")
    path = native.library_path()
    if path is None:
        return {"missing": True}
    return {"version": str(native.ABI), "file": str(path), "isa": native.open_library().isa()}


def probe_tensorrt() -> Dict[str, Any]:
    """TensorRT's Python module and the library that it brought into this process."""
    found = module_facts(importlib.import_module("tensorrt"))
    found["library"] = next(iter(loaded_nvinfer()), None)
    return found


def probe_tensorrt_rtx() -> Dict[str, Any]:
    """TensorRT for RTX, under either of its names."""
    with contextlib.suppress(ModuleNotFoundError):
        return module_facts(importlib.import_module("tensorrt_rtx"))
    importlib.import_module("tensorrt_rtx_libs")
    return module_facts(importlib.import_module("tensorrt_rtx_bindings"))


def probe_cuda() -> Dict[str, Any]:
    """cuda-python, and whether it finds a driver and a device."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")  # since 12.6 and 11.8.6
    except ModuleNotFoundError:
        runtime = importlib.import_module("cuda.cudart")
    package = sys.modules.get("cuda.bindings") or sys.modules.get("cuda")
    found = {**module_facts(package), "file": getattr(runtime, "__file__", None)}
    try:
        code, count = runtime.cudaGetDeviceCount()
        found["devices"] = int(count) if int(code) == 0 else 0
        found["device_error"] = "" if int(code) == 0 else str(code)
    except RuntimeError as error:  # without a driver to load
        found["devices"], found["device_error"] = 0, one_line(error)
    return found


def probe_pycuda() -> Dict[str, Any]:
    """PyCUDA: importing its driver module needs the driver's library and a NumPy that it knows."""
    driver = importlib.import_module("pycuda.driver")
    found = module_facts(sys.modules["pycuda"])
    found["version"] = found["version"] or getattr(sys.modules["pycuda"], "VERSION_TEXT", None)
    found["cuda"] = ".".join(str(part) for part in driver.get_version()[:2])
    return found


def probe_torch() -> Dict[str, Any]:
    """PyTorch and its CUDA."""
    torch = importlib.import_module("torch")
    return {**module_facts(torch), "cuda": torch.version.cuda, "available": bool(torch.cuda.is_available())}


def probe_driver() -> Dict[str, Any]:
    """The CUDA driver's library: the CUDA it supports, whether it starts, and the GPU."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        absent = "cannot open shared object file" in str(error) and str(error).startswith("libcuda.so.1:")
        return {"missing": True} if absent else {"error": one_line(error)}
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    code = int(library.cuInit(0))
    gpu = importlib.import_module("gradseg.runtime.cuda.gpu")
    device = gpu.find_gpu() if code == 0 else None
    return {
        "version": gpu.cuda_text(number.value),
        "init": gpu.error_name(library, code) if code else "",
        "driver": gpu.driver_version(),
        "gpu": None if device is None else dataclasses.asdict(device),
    }


def probe_nvinfer() -> Dict[str, Any]:
    """TensorRT's libraries as the loader finds them, without Python's module."""
    found: List[Dict[str, Any]] = []
    broken: List[str] = []
    for name in NVINFER:
        try:
            library = ctypes.CDLL(name)
        except OSError as error:
            if not str(error).startswith(f"{name}: cannot open shared object file"):
                broken.append(one_line(error))
            continue
        version = nvinfer_text(library.getInferLibVersion())
        if version not in [entry["version"] for entry in found]:
            found.append({"name": name, "version": version})
    if not found and not broken:
        return {"missing": True}
    return {"version": found[0]["version"] if found else None, "file": None, "libraries": found, "broken": broken}


def loaded_nvinfer() -> List[str]:
    """Versions of the libnvinfer.so files mapped into this process."""
    maps = ""
    with contextlib.suppress(OSError):
        maps = Path("/proc/self/maps").read_text("utf-8", errors="replace")
    paths = sorted(set(re.findall(r"(/\S*libnvinfer\.so\S*)", maps)))
    return [nvinfer_text(ctypes.CDLL(path).getInferLibVersion()) for path in paths]


def nvinfer_text(number: int) -> str:
    """What `getInferLibVersion` says, as text: 8503 → "8.5.3" (before 10), 100300 → "10.3.0" (from 10 on).

    NV_TENSORRT_VERSION in NvInferVersion.h: major·1000 + minor·100 + patch, from TensorRT 10 on major·10000 + …
    """
    major, rest = divmod(number, 10000) if number >= 100000 else divmod(number, 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def one_line(error: BaseException) -> str:
    """The first line that says something, cut to a length that a table can hold."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


PROBES: Dict[str, Callable[[], Dict[str, Any]]] = {  # every probe_ above, in their order, by the name that is asked for
    name[len("probe_") :]: probe for name, probe in globals().items() if name.startswith("probe_")
}


def probe_engine(path: str) -> Dict[str, Any]:
    """Opens an engine file just as run_video.py does; what it is, or why it cannot run here."""
    from gradseg.base.errors import GradsegError

    try:
        engine = importlib.import_module("gradseg.runtime.engines.open").open_engine(path)
    except GradsegError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    found = {"backend": engine.backend, "device": engine.device, "precision": engine.precision}
    found["frame_hw"] = list(engine.frame_hw)
    engine.close()
    if engine.batch > 1:
        return {"error": f"{path}: takes {engine.batch} frames at a time, run_video.py gives it one", "exit_code": 2}
    return found


def ask(name: str, argument: Optional[str] = None) -> Dict[str, Any]:
    """Runs one probe in this process; an import that fails becomes {"missing"} or {"error"}."""
    try:
        return probe_engine(argument or "") if name == "engine" else PROBES[name]()
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        absent = {"cuda": ("cuda",), "tensorrt_rtx": ("tensorrt_rtx_libs", "tensorrt_rtx_bindings")}
        return {"missing": True} if root in absent.get(name, (name,)) else {"error": one_line(error)}
    except Exception as error:  # noqa: BLE001 whatever a broken package raises at import is what is asked for
        return {"error": f"{type(error).__name__}: {one_line(error)}"}


def main(arguments: Tuple[str, ...]) -> int:
    folder = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if entry == "" or os.path.realpath(entry) != folder]
    print("\n" + MARK + json.dumps(ask(*arguments)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:])))
