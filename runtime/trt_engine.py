"""TensorRT engine: classic TensorRT 8.5 or newer (JetPack, desktop) and TensorRT-RTX, by their name-based I/O API.

Written against the documented API of both; tested with stand-ins for the libraries, not on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from gradseg.models.errors import GradsegError
from gradseg.models.spec import ModelSpec
from gradseg.runtime.cuda_memory import Cuda
from gradseg.runtime.engine import check_batch, read_sidecar
from gradseg.runtime.trt_library import LIBRARIES, import_first


class TrtEngine:
    """A .plan of the deployment form with its sidecar NAME.plan.json. See `gradseg.runtime.engine.Engine`.

    The GPU, the library and the sidecar are checked before the plan is deserialised, because TensorRT's own messages
    do not say what does not fit.

    Args:
        path: the plan. Beside it {path}.json: {"spec": ModelSpec, …}; "library", "version", "compute_capability" and
            "precision" in it are checked or shown if present.
        spec: wins over the sidecar's.
    """

    def __init__(self, path: Path, spec: Optional[ModelSpec] = None) -> None:
        sidecar = read_sidecar(path)
        self.threads: Optional[int] = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._cuda: Optional[Cuda] = Cuda(f"{path}: a TensorRT engine")
        try:
            self._open(path, sidecar, spec, self._cuda)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, sidecar: Dict[str, Any], spec: Optional[ModelSpec], cuda: Cuda) -> None:
        trt = _import_library(path, sidecar.get("library"))
        _check_built_for(path, sidecar, trt, cuda.compute_capability)
        if spec is None and not isinstance(sidecar.get("spec"), dict):
            raise GradsegError(
                f"{path}: no {path.name}.json with its ModelSpec beside it; copy it along, or rebuild: "
                f"python export/to_trt.py {path.stem}.onnx"
            )
        self.spec = spec or ModelSpec.from_dict(sidecar["spec"], f"{path}.json")
        self.name, self.device = str(path), cuda.device
        self.backend = f"{trt.__name__} {trt.__version__}"
        self.precision = str(sidecar.get("precision", "unknown"))
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise GradsegError(
                f"{path}: {self.backend} on {self.device} ({cuda.compute_capability}) cannot load it: damaged, "
                f"or built by another version or for another GPU. Rebuild: python export/to_trt.py {path.stem}.onnx"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise GradsegError(f"{path}: not enough GPU memory for {self.name} on {self.device}", 3)
        self._bind(trt, path, cuda)

    def _bind(self, trt: Any, path: Path, cuda: Cuda) -> None:
        """Device and pinned buffers for the one input and the one output, their addresses given by name."""
        height, width = self.spec.input_hw
        wanted: Dict[bool, Tuple[int, ...]] = {True: (1, height, width, 3), False: (1, height, width)}
        found: Dict[bool, List[str]] = {True: [], False: []}
        engine = self._engine
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            found[engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append(name)
        buffers: List[Tuple[np.ndarray[Any, Any], int]] = []
        for is_input, shape in wanted.items():
            names = found[is_input]
            got = tuple(engine.get_tensor_shape(names[0])) if len(names) == 1 else None
            if got != shape or engine.get_tensor_dtype(names[0]) != trt.DataType.UINT8:
                kind = "input" if is_input else "output"
                raise GradsegError(
                    f"{path}: {kind}s {names} {got}; expected one uint8 {shape}: not a deployment-form engine"
                )
            host = cuda.pinned(shape, np.uint8)
            device = cuda.device_buffer(host.nbytes)
            if not self._context.set_tensor_address(names[0], device):
                raise RuntimeError(f"set_tensor_address failed for {names[0]}")
            buffers.append((host, device))
        (self._frame, self._frame_device), (self._labels, self._labels_device) = buffers

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 BGR (1, h, w, 3) → uint8 labels (1, h, w), valid until the next call. Returns when the GPU is done."""
        check_batch(batch, self.spec)
        cuda = self._cuda
        assert cuda is not None, "infer after close"
        np.copyto(self._frame, batch)
        cuda.upload(self._frame, self._frame_device)
        if not self._context.execute_async_v3(int(cuda.stream)):
            raise RuntimeError(f"{self.name}: TensorRT could not enqueue the inference")
        cuda.download(self._labels_device, self._labels)
        cuda.wait()
        return self._labels

    def close(self) -> None:
        """Frees the GPU's memory."""
        if self._cuda is not None:
            self._context = self._engine = self._runtime = None
            self._cuda.close()
            self._cuda = None


def _import_library(path: Path, library: Any) -> Any:
    """The TensorRT that the plan was built with, or, if the sidecar does not say, the first one importable."""
    names = (library,) if library in LIBRARIES else LIBRARIES
    found = import_first(names)
    if found is not None:
        return found[1]
    raise GradsegError(
        f"{path}: a TensorRT engine needs {' or '.join(names)}, and it cannot be imported here; "
        "on a Jetson it comes with JetPack (make the virtual environment with --system-site-packages), "
        "elsewhere pip install tensorrt",
        3,
    )


def _check_built_for(path: Path, sidecar: Dict[str, Any], trt: Any, compute_capability: str) -> None:
    """Compares what the sidecar says about the build with this machine; GradsegError names both if they differ."""
    version, built_for = sidecar.get("version"), sidecar.get("compute_capability")
    other_version = version is not None and str(version).split(".")[:2] != str(trt.__version__).split(".")[:2]
    targets = [built_for] if isinstance(built_for, str) else built_for or [compute_capability]
    if other_version or compute_capability not in targets:
        raise GradsegError(
            f"{path} was built by {sidecar.get('library', 'TensorRT')} {version or '(unknown version)'} for "
            f"{', '.join(targets)}; this is {trt.__version__} on {compute_capability}. "
            f"Rebuild: python export/to_trt.py {path.stem}.onnx"
        )
