"""What gpu.py builds and opens: TensorRT, or a stand-in on the CPU that tries the script without a GPU. Python 3.8."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Protocol, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path
from gradseg.base.packages import need
from gradseg.benchmarks.on_gpu.index import Pack
from gradseg.benchmarks.on_gpu.measure import STAGES
from gradseg.runtime.cuda.gpu import Gpu, need_gpu

TIMING_CACHE = "timing.cache"


@dataclass(frozen=True)
class Wanted:
    """One engine: which network of the pack, in which precision, at which borders (network or frame)."""

    model: str
    precision: str
    border: str

    @property
    def stem(self) -> str:
        return f"{self.model}.{self.precision}.{self.border}"


class Backend(Protocol):
    """Builds and opens engines. library, version: of what builds. stand_in: what this is in TensorRT's place, or None.

    ways: how an engine can be run: with a CUDA graph, plain.
    """

    library: str
    version: str
    stand_in: Optional[str]
    gpu: Optional[Gpu]
    ways: Tuple[str, ...]

    def build(self, pack: Pack, wanted: Wanted) -> Dict[str, Any]:
        """Builds the engine, or takes up the one that an earlier run left: JSON facts about it."""

    def open(self, wanted: Wanted, way: str) -> Any:
        """The built engine; `way` is one of `ways`."""


class TensorRt:
    """The TensorRT of this machine. plans: folder for plans, which later runs take up, and the timing cache.

    Raises GradsegError with exit code 3 if there is no GPU or no TensorRT.
    """

    stand_in: Optional[str] = None
    ways: Tuple[str, ...] = ("graph", "plain")

    def __init__(self, plans: Path) -> None:
        from gradseg.export.trt.build import import_tensorrt

        self.gpu: Optional[Gpu] = need_gpu("benchmarks/gpu.py")
        self._library = import_tensorrt(False)
        self.library, self.version = self._library[0], str(self._library[1].__version__)
        self._plans = _made(plans)

    def build(self, pack: Pack, wanted: Wanted) -> Dict[str, Any]:
        from gradseg.export.trt.build import build_plan, strongly_typed
        from gradseg.export.trt.manifest import manifest_for, write_plan
        from gradseg.export.trt.options import BuildOptions
        from gradseg.export.trt.prepare import Prepared
        from gradseg.export.trt.verify import Reference

        typed = strongly_typed(*self._library)
        data, keep = pack.onnx(wanted.model, wanted.precision, wanted.border, typed)
        cache = str(self._plans / TIMING_CACHE)
        options = BuildOptions(precision=wanted.precision, timing_cache=cache, keep_fp32=() if typed else keep)
        plan = self._plan(wanted)
        if (kept := self._kept(plan, data, options.to_dict())) is not None:
            return kept
        frame_hw = pack.frame_hw if wanted.border == "frame" else pack.input_hw
        built = build_plan(data, options, f"{wanted.stem}.onnx", self._library, frame_hw)
        spec = pack.spec(wanted.model)
        source = Prepared(data, spec, wanted.precision, frame_hw, 1, Reference(data, "itself"))
        write_plan(plan, built, manifest_for(plan.name, built, source, f"{wanted.stem}.onnx", options, self.gpu))
        return {
            "seconds": built.seconds,
            "plan_bytes": len(built.plan),
            "flags": list(built.flags),
            "notes": list(built.notes),
            "typed": typed,
            "kept_fp32": list(options.keep_fp32),
            "taken_up": False,
        }

    def open(self, wanted: Wanted, way: str) -> Any:
        from gradseg.runtime.engines.trt import TrtEngine

        engine = TrtEngine(self._plan(wanted), cuda_graph=way == "graph")
        if way == "graph" and not engine.uses_cuda_graph:
            engine.close()
            raise GradsegError(f"{wanted.stem}: no CUDA graph here; they need cuda-python")
        return engine

    def _plan(self, wanted: Wanted) -> Path:
        return self._plans / f"{wanted.stem}.plan"

    def _kept(self, plan: Path, data: bytes, options: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """Facts about a plan that an earlier run built from the same ONNX in the same way, None if there is none."""
        from gradseg.runtime.engines.trt_manifest import check_file, check_gpu, check_library, read_manifest

        if not plan.is_file() or self.gpu is None:
            return None
        try:
            manifest = read_manifest(plan)
            check_file(plan, manifest)
            check_library(plan, manifest, self.library, self.version)
            check_gpu(plan, manifest, self.gpu)
        except GradsegError:
            return None
        same = manifest.get("onnx", {}).get("sha256") == hashlib.sha256(data).hexdigest()
        if not same or manifest["options"] != options:
            return None
        return {
            "seconds": manifest["build_seconds"],
            "plan_bytes": manifest["plan"]["bytes"],
            "flags": manifest["builder_flags"],
            "notes": [],
            "kept_fp32": options["keep_fp32"],
            "taken_up": True,
        }


class OnOnnxRuntime:
    """ONNX Runtime on the CPU in TensorRT's place: it exercises the script, and says nothing about a GPU."""

    ways: Tuple[str, ...] = ("graph", "plain")
    gpu: Optional[Gpu] = None

    def __init__(self, plans: Path) -> None:
        need("--stand-in ort", "ort", "onnxruntime")
        import onnxruntime

        self.library, self.version = "onnxruntime", str(onnxruntime.__version__)
        self.stand_in: Optional[str] = f"ONNX Runtime {self.version} on the CPU, not a GPU"
        self._plans = _made(plans)

    def build(self, pack: Pack, wanted: Wanted) -> Dict[str, Any]:
        begin = time.perf_counter_ns()
        data, _ = pack.onnx(wanted.model, wanted.precision, wanted.border, wanted.precision == "fp16")
        with atomic_path(self._file(wanted)) as temporary:
            temporary.write_bytes(data)
        return {"seconds": (time.perf_counter_ns() - begin) / 1e9, "plan_bytes": len(data), "flags": [], "notes": []}

    def open(self, wanted: Wanted, way: str) -> Any:
        from gradseg.runtime.engines.ort import OrtEngine

        return Staged(OrtEngine(self._file(wanted)))

    def _file(self, wanted: Wanted) -> Path:
        return self._plans / f"{wanted.stem}.onnx"


def _made(plans: Path) -> Path:
    """The folder, made if need be; GradsegError if it cannot be."""
    try:
        plans.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GradsegError(f"--plans {plans}: cannot be made ({error.strerror}); name another folder") from error
    return plans


class Staged:
    """Any engine of the runtime with the methods of `TrtEngine` that measuring needs; all times by wall clock."""

    uses_cuda_graph = False

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.frame_hw: Tuple[int, int] = tuple(engine.frame_hw)
        self.staging: np.ndarray[Any, Any] = np.empty((1, *self.frame_hw, 3), np.uint8)
        self._waiting: List[np.ndarray[Any, Any]] = []

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        labels: np.ndarray[Any, Any] = self._engine.infer(batch)
        return labels

    def begin(self, batch: np.ndarray[Any, Any]) -> None:
        self._waiting.append(self.infer(batch).copy())

    def finish(self) -> np.ndarray[Any, Any]:
        return self._waiting.pop(0)

    def stage_times(self, batch: np.ndarray[Any, Any]) -> Dict[str, float]:
        marks, data = [time.perf_counter_ns()], batch
        for stage in (np.copy, self.infer, np.copy):
            data = stage(data)
            marks.append(time.perf_counter_ns())
        return {name: (end - begin) / 1e6 for name, begin, end in zip(STAGES, marks, marks[1:])}

    def close(self) -> None:
        self._engine.close()
