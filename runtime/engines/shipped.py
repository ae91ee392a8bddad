"""The networks that come with the package, ready to run: found by name, in the form that this machine runs."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Tuple, Union

import gradseg
from gradseg.base.errors import GradsegError
from gradseg.base.packages import importable, install

WEIGHTS = Path(gradseg.__file__).resolve().parent / "weights"
DEFAULT = "dg2-star-light"


def shipped() -> List[Path]:
    """The engine files inside the package."""
    return sorted(path for path in WEIGHTS.glob("*") if path.suffix in (".gsn", ".onnx"))


def is_shipped(name: Union[str, Path]) -> bool:
    """Whether `name` is that of a shipped model, and no file's."""
    return not Path(name).exists() and str(name) in {path.stem for path in shipped()}


def shipped_or_given(name: Union[str, Path], provider: Optional[str] = None) -> Tuple[Path, str]:
    """The file of a shipped model that runs here, and why that one; anything else as it is, an existing file first.

    provider: of ONNX Runtime, if that is asked for. GradsegError with exit code 3 if nothing here runs the model.
    """
    if not is_shipped(name):
        return Path(name), ""
    forms = {path.suffix: path for path in shipped() if path.stem == str(name)}
    from gradseg.runtime.native.library import native_isa

    isa = native_isa() if ".gsn" in forms and provider is None else None
    if isa is not None:
        return forms[".gsn"], f"INT8 in GradSeg's own engine, {isa}"
    if ".onnx" in forms and importable("onnxruntime"):
        missing = "" if provider else ": the native engine's library is not here"
        return forms[".onnx"], f"FP32 in ONNX Runtime{missing}"
    how = install("ort", "onnxruntime")
    raise GradsegError(f"{name}: neither the native engine's library nor ONNX Runtime is here: {how}", 3)
