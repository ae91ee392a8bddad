"""Writes a candidate's engine from an ONNX model that lies ready. Runs in `tuning.worker`'s process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Dict, List

from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path
from gradseg.runtime.native.files import save_program


def build(given: Dict[str, Any]) -> List[Path]:
    """`how`: copy, openvino or native. `source`, `out`: paths. `hint`, `pinning`: OpenVINO's, see `write_ir`.

    Gives the files written, the engine first. GradsegError for what the engine cannot be built from.
    """
    source, out = Path(given["source"]), Path(given["out"])
    try:
        return {"copy": _copied, "openvino": _openvino, "native": _native}[given["how"]](source, out, given)
    except ImportError as error:
        raise GradsegError(f"{error.name or error} is not installed here", 3) from error


def _copied(source: Path, out: Path, given: Dict[str, Any]) -> List[Path]:
    with atomic_path(out) as temporary:
        shutil.copyfile(str(source), str(temporary))
    return [out]


def _openvino(source: Path, out: Path, given: Dict[str, Any]) -> List[Path]:
    import onnx

    from gradseg.export.ir.files import write_ir
    from gradseg.export.ir.form import openvino_form

    write_ir(openvino_form(onnx.load(str(source))), out, given["hint"], given["pinning"])
    return [out, out.with_suffix(".bin")]


def _native(source: Path, out: Path, given: Dict[str, Any]) -> List[Path]:
    import onnx

    from gradseg.export.gsn.lower import native_program
    from gradseg.runtime.native.library import native_isa

    if native_isa() is None:  # asked here, where a library that crashes harms nobody
        raise GradsegError("the native extension is not built here, or it has no kernels for this CPU", 3)
    save_program(native_program(onnx.load(str(source))), out)
    return [out]
