"""Which kinds of engine can run on a machine, and what the others are missing. Pure functions of the facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Tuple

from gradseg.runtime.diagnosis.checks import OLDEST_NUMPY, OLDEST_ORT, OLDEST_PYTHON
from gradseg.runtime.diagnosis.facts import Facts, numbers
from gradseg.runtime.diagnosis.fixes import OLDEST_TENSORRT


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
    modules, base = facts.modules, base_missing(facts)
    titles = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
    there = (f"{title} {modules[name].version}" for name, title in titles.items() if modules[name].works)
    gpu, ort = _unless(facts.gpu is not None, "an NVIDIA GPU with its driver"), modules["onnxruntime"]
    new_ort = _unless(ort.works and numbers(ort.version) >= OLDEST_ORT, "ONNX Runtime 1.14 or newer")
    # without NumPy the native library cannot be asked
    native, isa = modules["native"].works or not modules["numpy"].works, modules["native"].extra.get("isa")
    found = [
        (".plan", next(there, "TensorRT"), base + gpu + _plan_missing(facts)),
        (".gsn", f"GradSeg's own kernels{f', {isa}' if isa else ''}", base + _unless(native, "its native library")),
        (".onnx", "ONNX Runtime on the CPU", base + new_ort),
        (".xml", "OpenVINO on the CPU", base + _unless(modules["openvino"].works, "OpenVINO (openvino)")),
    ]
    for word, option in (("CUDA", "cuda"), ("Tensorrt", "tensorrt")):
        provider, broken = f"{word}ExecutionProvider", ort.extra.get("broken", {})
        lacking = _unless(provider in ort.extra.get("providers", []), f"an ONNX Runtime with {provider}")
        lacking = lacking or _unless(provider not in broken, f"libraries: {broken.get(provider)}")
        found.append((".onnx", f"ONNX Runtime, --provider {option}", base + gpu + new_ort + lacking))
    found.append((".pth", "PyTorch", base + _unless(modules["torch"].works, "PyTorch (torch)")))
    return [Kind(suffix, how, tuple(missing)) for suffix, how, missing in found]


def base_missing(facts: Facts) -> List[str]:
    """What every engine needs and this machine has not: Python, NumPy, OpenCV."""
    numpy = facts.modules["numpy"]
    missing = _unless(facts.python_version >= OLDEST_PYTHON, "Python 3.8 or newer")
    missing += _unless(numpy.works and numbers(numpy.version) >= OLDEST_NUMPY, "NumPy")
    return missing + _unless(facts.modules["cv2"].works, "OpenCV")


def _unless(there: bool, what: str) -> List[str]:
    return [] if there else [what]


def can_run(facts: Facts) -> bool:
    """Whether run_video.py can run here at all: NumPy, OpenCV and one kind of engine."""
    return any(kind.runs for kind in kinds(facts))


def verdict(facts: Facts) -> List[str]:
    """The last lines of the report: the kinds that can run here, and for each of the others what it is missing."""
    every = kinds(facts)
    running = "; ".join(f"{kind.suffix} ({kind.how})" for kind in every if kind.runs)
    first = f"Can run here: {running}" if running else "Nothing can run here yet"
    return [first, *(f"{kind.suffix} ({kind.how}) needs: {', '.join(kind.missing)}" for kind in every if not kind.runs)]


def _plan_missing(facts: Facts) -> List[str]:
    modules, driver = facts.modules, numbers(facts.driver_cuda)
    classic = modules["tensorrt"].works and numbers(modules["tensorrt"].version) >= OLDEST_TENSORRT
    fits = modules["cuda"].works and not (driver and numbers(modules["cuda"].version)[:1] > driver[:1])
    missing = _unless(classic or modules["tensorrt_rtx"].works, "TensorRT 8.5 or newer with its Python module")
    return missing + _unless(fits or modules["pycuda"].works, "cuda-python or pycuda")
