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
    if given["how"] == "copy":
        with atomic_path(out) as temporary:
            shutil.copyfile(str(source), str(temporary))
        return [out]
    try:
        import onnx

        model = onnx.load(str(source))
        if given["how"] == "openvino":
            from gradseg.export.ir.files import write_ir
            from gradseg.export.ir.form import openvino_form

            write_ir(openvino_form(model), out, given["hint"], given["pinning"])
            return [out, out.with_suffix(".bin")]
        from gradseg.export.gsn.lower import native_program
        from gradseg.runtime.native.library import native_isa

        if native_isa() is None:  # asked here, where a library that crashes harms nobody
            raise GradsegError("the native extension is not built here, or it has no kernels for this CPU", 3)
        save_program(native_program(model), out)
        return [out]
    except ImportError as error:
        raise GradsegError(f"{error.name or error} is not installed here", 3) from error
