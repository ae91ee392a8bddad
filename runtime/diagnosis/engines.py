"""Which kinds of engine can run on a machine, and what the others are missing. Pure functions of the facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Tuple

from gradseg.runtime.diagnosis.checks import OLDEST_NUMPY, OLDEST_ORT, OLDEST_PYTHON
from gradseg.runtime.diagnosis.facts import Facts, numbers
from gradseg.runtime.diagnosis.fixes import OLDEST_TENSORRT

GPU_NEEDED = "an NVIDIA GPU with its driver"


@dataclass(frozen=True)
class Kind:
    """A kind of engine. how: as a user would say it. missing: what it still needs here; empty: it can run."""

    suffix: str
    how: str
    missing: Tuple[str, ...]

    @property
    def runs(self) -> bool:
        return not self.missing


def kinds(facts: Facts) -> List[Kind]:
    """Every kind of engine, the preferred first."""
    base = base_missing(facts)
    gpu = [] if facts.gpu is not None else [GPU_NEEDED]
    found = [
        Kind(".plan", _tensorrt_name(facts), tuple(base + gpu + _plan_missing(facts))),
        Kind(".gsn", _native_name(facts), tuple(base + _native_missing(facts))),
        Kind(".onnx", "ONNX Runtime on the CPU", tuple(base + _ort_missing(facts))),
        Kind(".xml", "OpenVINO on the CPU", tuple(base + _openvino_missing(facts))),
    ]
    for word, option in (("CUDA", "cuda"), ("Tensorrt", "tensorrt")):
        missing = base + gpu + _ort_missing(facts) + _provider_missing(facts, f"{word}ExecutionProvider")
        found.append(Kind(".onnx", f"ONNX Runtime, --provider {option}", tuple(missing)))
    torch = facts.modules["torch"]
    found.append(Kind(".pth", "PyTorch", tuple(base + ([] if torch.works else ["PyTorch (torch)"]))))
    return found


def base_missing(facts: Facts) -> List[str]:
    """What every engine needs and this machine has not: Python, NumPy, OpenCV."""
    missing = [] if facts.python_version >= OLDEST_PYTHON else ["Python 3.8 or newer"]
    numpy = facts.modules["numpy"]
    if not numpy.works or numbers(numpy.version) < OLDEST_NUMPY:
        missing.append("NumPy")
    return missing + ([] if facts.modules["cv2"].works else ["OpenCV"])


def can_run(facts: Facts) -> bool:
    """Whether run_video.py can run here at all: NumPy, OpenCV and one kind of engine."""
    return any(kind.runs for kind in kinds(facts))


def verdict(facts: Facts) -> List[str]:
    """The last lines of the report: the kinds that can run here, and for each of the others what it is missing."""
    every = kinds(facts)
    running = "; ".join(f"{kind.suffix} ({kind.how})" for kind in every if kind.runs)
    first = f"Can run here: {running}" if running else "Nothing can run here yet"
    return [first, *(f"{kind.suffix} ({kind.how}) needs: {', '.join(kind.missing)}" for kind in every if not kind.runs)]


def _tensorrt_name(facts: Facts) -> str:
    for name, title in (("tensorrt", "TensorRT"), ("tensorrt_rtx", "TensorRT for RTX")):
        if facts.modules[name].works:
            return f"{title} {facts.modules[name].version}"
    return "TensorRT"


def _native_name(facts: Facts) -> str:
    isa = facts.modules["native"].extra.get("isa")
    return "GradSeg's own kernels" + (f", {isa}" if isa else "")


def _native_missing(facts: Facts) -> List[str]:
    """Nothing where NumPy does not work, without which the library cannot be asked."""
    known = facts.modules["native"].works or not facts.modules["numpy"].works
    return [] if known else ["the native engine's library"]


def _plan_missing(facts: Facts) -> List[str]:
    modules, missing = facts.modules, []
    classic = modules["tensorrt"].works and numbers(modules["tensorrt"].version) >= OLDEST_TENSORRT
    if not classic and not modules["tensorrt_rtx"].works:
        missing.append("TensorRT 8.5 or newer with its Python module")
    driver = numbers(facts.driver_cuda)
    fits = modules["cuda"].works and not (driver and numbers(modules["cuda"].version)[:1] > driver[:1])
    if not fits and not modules["pycuda"].works:
        missing.append("cuda-python or pycuda")
    return missing


def _ort_missing(facts: Facts) -> List[str]:
    module = facts.modules["onnxruntime"]
    return [] if module.works and numbers(module.version) >= OLDEST_ORT else ["ONNX Runtime 1.14 or newer"]


def _openvino_missing(facts: Facts) -> List[str]:
    return [] if facts.modules["openvino"].works else ["OpenVINO (openvino)"]


def _provider_missing(facts: Facts, provider: str) -> List[str]:
    module = facts.modules["onnxruntime"]
    if provider not in module.extra.get("providers", []):
        return [f"an ONNX Runtime with {provider}"]
    return [f"libraries: {module.extra['broken'][provider]}"] if provider in module.extra.get("broken", {}) else []
