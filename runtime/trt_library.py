"""Importing whichever TensorRT is there: classic (`tensorrt`) or TensorRT for RTX, under either of its names."""

from __future__ import annotations

import importlib
from typing import Any, Optional, Sequence, Tuple

LIBRARIES = ("tensorrt", "tensorrt_rtx")


def import_one(library: str) -> Optional[Any]:
    """The module of "tensorrt" or "tensorrt_rtx"; None if it is not installed or cannot be loaded.

    The RTX packages on PyPI come as two: the libraries must be loaded first, so that the bindings find them.
    """
    ways: Sequence[Sequence[str]] = ((library,),)
    if library == "tensorrt_rtx":
        ways = ((library,), ("tensorrt_rtx_libs", "tensorrt_rtx_bindings"))
    for names in ways:
        try:
            return [importlib.import_module(name) for name in names][-1]
        except (ImportError, OSError):  # OSError: the package is there, a shared library of it is not
            continue
    return None


def import_first(libraries: Sequence[str] = LIBRARIES) -> Optional[Tuple[str, Any]]:
    """(library, module) of the first that can be imported; None if none can."""
    for library in libraries:
        module = import_one(library)
        if module is not None:
            return library, module
    return None
