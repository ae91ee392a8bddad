"""`--rebuild`: builds a plan again that cannot run here, by export/to_trt.py in a process of its own, then opens it.

In a process of its own, since building belongs to a later layer, and the memory that TensorRT's builder takes is free
again when that ends.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Callable, TypeVar, Union

from gradseg.base.errors import GradsegError
from gradseg.base.json_process import environment_for
from gradseg.runtime.engines.trt_manifest import StalePlan

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
