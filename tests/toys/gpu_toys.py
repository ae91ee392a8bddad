"""What the tests of gpu.py share: a prepared folder of one tiny network, and engines that know its answers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.benchmarks.on_gpu.engines import Wanted
from gradseg.benchmarks.on_gpu.index import Pack
from gradseg.benchmarks.on_gpu.launch import TorchMissing, TorchProcess
from gradseg.benchmarks.on_gpu.results import Results
from gradseg.benchmarks.on_gpu.run import FreshProcess, Run, Settings, rows_for
from gradseg.runtime.cuda.gpu import Gpu
from gradseg.runtime.preprocess import Preprocessor

H100 = Gpu("NVIDIA H100 80GB HBM3", "sm90", "580.1", "13.0", 80 << 30, False, 132, 1_980_000, 2_619_000, 5120, 50 << 20)
INFERENCE_MS = {"fp32": 4.0, "fp16": 2.0, "int8": 1.5}


class FakeEngine:
    """Gives the labels that the pack holds for its frames; `wrong` of every thousand pixels are another class."""

    def __init__(self, pack: Pack, wanted: Wanted, wrong: int = 0) -> None:
        self.frame_hw: Tuple[int, int] = pack.frame_hw if wanted.border == "frame" else pack.input_hw
        self.staging = np.zeros((1, *self.frame_hw, 3), np.uint8)
        self.uses_cuda_graph, self.closed = True, False
        self._known: Dict[str, np.ndarray[Any, Any]] = {}
        self._waiting: List[np.ndarray[Any, Any]] = []
        self.milliseconds = INFERENCE_MS[wanted.precision]
        kind, prepare = "frame" if wanted.border == "frame" else "fp32", Preprocessor(self.frame_hw)
        for index in range(pack.references(wanted.model, kind)):
            labels, levels = pack.reference(wanted.model, kind, index)
            labels = labels.copy()
            sure = np.flatnonzero(levels.ravel() == 2)
            labels.ravel()[sure[: labels.size * wrong // 1000]] ^= 1
            self._known[_key(prepare(pack.image(index)[0]))] = labels[None]
        self._other = np.zeros((1, *self.frame_hw), np.uint8)

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert not self.closed
        return self._known.get(_key(batch), self._other)

    def begin(self, batch: np.ndarray[Any, Any]) -> None:
        assert len(self._waiting) < 2
        self._waiting.append(self.infer(batch))

    def finish(self) -> np.ndarray[Any, Any]:
        return self._waiting.pop(0)

    def stage_times(self, batch: np.ndarray[Any, Any]) -> Dict[str, float]:
        return {"upload": 0.1, "inference": self.milliseconds, "download": 0.05}

    def close(self) -> None:
        self.closed = True


def _key(batch: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(batch.tobytes()).hexdigest()


class FakeBackend:
    """TensorRT that needs no GPU. on_build, on_open: called first, to fail; engine: makes an engine."""

    library, version, stand_in = "tensorrt", "8.5.3.1", None
    ways: Tuple[str, ...] = ("graph", "plain")

    def __init__(self, pack: Pack) -> None:
        self.pack, self.gpu = pack, H100
        self.built: List[str] = []
        self.on_build: Callable[[Wanted], None] = lambda wanted: None
        self.on_open: Callable[[Wanted, str], None] = lambda wanted, way: None
        self.engine: Callable[[Wanted, str], Any] = lambda wanted, way: FakeEngine(self.pack, wanted)

    def build(self, pack: Pack, wanted: Wanted) -> Dict[str, Any]:
        self.on_build(wanted)
        taken_up = wanted.stem in self.built
        self.built += [] if taken_up else [wanted.stem]
        return {"seconds": 1.0, "plan_bytes": 10, "flags": [], "notes": [], "taken_up": taken_up}

    def open(self, wanted: Wanted, way: str) -> Any:
        self.on_open(wanted, way)
        return self.engine(wanted, way)


class FakeTorch:
    """PyTorch's process, with one network that takes `ms` from frame to labels."""

    def __init__(self, ms: float = 50.0) -> None:
        self.facts = {"torch": "2.11", "device": "fake"}
        self.ms, self.row, self.way = ms, "", "plain"

    def open(self, row: str, model: str, variant: str) -> Tuple[Any, Dict[str, Any]]:
        if variant == "compile":
            raise GradsegError("PyTorch: BackendCompilerFailed: no gcc")
        found = FakeTorch(self.ms)
        found.row = row
        return found, {"agreement": 1.0}

    def end_to_end(self, start: int, count: int, settle: int) -> List[float]:
        return [self.ms] * count

    def stages(self, start: int, count: int, settle: int) -> List[List[float]]:
        return [[0.1, self.ms, 0.1]] * count

    def flight(self, count: int) -> float:
        return count * self.ms / 1000

    def close(self) -> None:
        pass


class NoClocks:
    def look(self) -> None:
        pass

    def summary(self) -> Optional[Dict[str, Any]]:
        return {"sm_mhz": {"min": 1.0, "median": 1.0, "max": 1.0}, "looks": 1}


def no_torch() -> TorchProcess:
    raise TorchMissing("python3: has no PyTorch")


def fake_torch() -> Any:
    return FakeTorch()


def launcher(
    path: Path, backend: Any, settings: Settings, torch: Callable[[], Any] = no_torch
) -> Callable[[str, Optional[float]], int]:
    """`launch` for `run_models`, in this process: what `gpu.py --worker` does."""

    def launch(model: str, left: Optional[float]) -> int:
        run = Run(backend.pack, backend, Results.read(path), settings, torch, lambda line: None, NoClocks)  # type: ignore[arg-type]
        try:
            run.model(model)
        except FreshProcess:
            return 75
        except SystemExit as crash:  # a process that is gone
            return int(str(crash.code))
        return 0

    return launch


def new_results(path: Path, backend: Any, settings: Settings) -> None:
    identity = {"pack": "p", "gpu": None, "library": "tensorrt", "version": "8.5.3.1", "stand_in": None}
    identity["settings"] = settings.to_dict()  # type: ignore[assignment]
    Results.new(path, identity, rows_for(backend.pack, settings), {}).save()
