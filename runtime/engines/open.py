"""Opens an engine file: its suffix picks the backend, which is imported only then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Callable, Optional, TypeVar, Union

from gradseg.base.errors import GradsegError
from gradseg.base.files import require_file
from gradseg.base.json_process import environment_for
from gradseg.base.options import ENGINES, PROVIDERS, check_threads
from gradseg.models.spec import ModelSpec
from gradseg.runtime.engines.protocol import PLANS, Engine
from gradseg.runtime.engines.shipped import shipped_or_given
from gradseg.runtime.engines.trt_manifest import StalePlan, check_present


def open_engine(
    path: Union[str, Path],
    threads: Optional[int] = None,
    spec: Optional[ModelSpec] = None,
    provider: Optional[str] = None,
    cuda_graph: bool = True,
) -> Engine:
    """Opens an engine file; its suffix picks the backend, which is imported only now.

    Args:
        path: .onnx, .xml (its .bin beside it), .gsn, .pth, .plan or .engine, or the name of a shipped model.
        threads: CPU threads for the network; None: the backend's usual number. Ignored by GPU backends.
        spec: for a file of other origin, which carries no ModelSpec; else the artefact's own is used.
        provider: of ONNX Runtime, for an .onnx: "cpu" (also with None), "cuda" or "tensorrt".
        cuda_graph: for a TensorRT plan: run it as a CUDA graph where that can be done.

    Raises:
        GradsegError: a file that is missing, empty, of another kind or not loadable (exit code 2; StalePlan for a plan
            that building again mends); a backend or device that is not there (exit code 3).
    """
    check_threads(threads)
    if provider not in (None, *PROVIDERS):
        raise GradsegError(f"--provider {provider}: expected {', '.join(PROVIDERS)}")
    path = shipped_or_given(path, provider)[0]
    suffix = path.suffix.lower()
    if suffix in PLANS:
        check_present(path)
    found = require_file(path, f"an engine: {ENGINES}")
    if suffix == ".onnx":
        from gradseg.runtime.engines.ort import OrtEngine

        return OrtEngine(found, threads, spec, provider or "cpu")
    if provider is not None and suffix in (".xml", ".gsn", ".pth", *PLANS):
        raise GradsegError(
            f"--provider {provider}: is for .onnx files, which ONNX Runtime runs; leave it out for {found}"
        )
    if suffix == ".xml":
        from gradseg.runtime.engines.ov import OvEngine

        return OvEngine(found, threads, spec)
    if suffix == ".gsn":
        from gradseg.runtime.engines.native import NativeEngine

        return NativeEngine(found, threads, spec)
    if suffix == ".pth":
        from gradseg.runtime.engines.pytorch import TorchEngine

        return TorchEngine(found, threads, spec)
    if suffix in PLANS:
        from gradseg.runtime.engines.trt import TrtEngine

        return TrtEngine(found, spec, cuda_graph)
    raise GradsegError(f"{found}: unknown kind of engine {found.suffix!r}; expected {ENGINES}")


T = TypeVar("T")
PATIENCE_S = 30.0  # how long a builder that was told to end may take to remove its temporary files


def open_or_rebuild(plan: Union[str, Path], opened: Callable[[], T]) -> T:
    """What `opened` returns; if it raises StalePlan, the plan is built again, once, and `opened` is called again."""
    try:
        return opened()
    except StalePlan as error:
        print(f"{error}\n--rebuild: building {plan} again, which can take minutes", file=sys.stderr, flush=True)
    rebuild(Path(plan))
    return opened()


def rebuild(plan: Path) -> None:
    """Runs `to_trt.py --rebuild PLAN`, its output passed through. GradsegError with its exit code if it fails."""
    command = [sys.executable, "-m", "gradseg.export.to_trt", "--rebuild", str(plan)]
    process = subprocess.Popen(command, env=environment_for())
    try:
        code = process.wait()
    except BaseException:  # Ctrl-C, SIGTERM: the builder must not go on by itself
        _end(process)
        raise
    if code != 0:
        raise GradsegError(
            f"{plan}: was not built again (export/to_trt.py ended with {code}, see above)", code if code > 0 else 1
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
