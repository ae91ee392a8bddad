"""Importing whichever TensorRT is there: classic (`tensorrt`) or TensorRT for RTX, under either of its names."""

from __future__ import annotations

import functools
import importlib
from collections import deque
from typing import Any, Deque, List, Optional, Sequence, Tuple

LIBRARIES = ("tensorrt", "tensorrt_rtx")
KEPT_MESSAGES = 8


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
    modules = ((library, import_one(library)) for library in libraries)
    return next((found for found in modules if found[1] is not None), None)


class Heard:
    """What a `quiet_logger` was told: the first errors and the latest warnings."""

    def __init__(self) -> None:
        self.errors: List[str] = []
        self.warnings: Deque[str] = deque(maxlen=KEPT_MESSAGES)

    def reason(self) -> str:
        """The first error, or else the latest warning: TensorRT names a cause first, and some causes only as a warning
        ("CUDA initialization failure with error: 35"). "" if it said nothing."""
        return self.errors[0] if self.errors else self.warnings[-1] if self.warnings else ""


def quiet_logger(trt: Any) -> Tuple[Any, Heard]:
    """A logger that prints nothing, and what it hears from now on, for the one line that a user gets.

    One for each library and process: TensorRT keeps the first one that it is given, and may call it as long as any
    runtime or engine lives.
    """
    logger = _quiet(trt)
    logger.heard = Heard()
    return logger, logger.heard


@functools.lru_cache(maxsize=None)
def _quiet(trt: Any) -> Any:
    severity_of = trt.ILogger.Severity

    class Quiet(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.heard = Heard()

        def log(self, severity: Any, message: str) -> None:
            text, heard = " ".join(str(message).split()), self.heard
            if severity == severity_of.WARNING:
                heard.warnings.append(text)
            elif severity in (severity_of.ERROR, severity_of.INTERNAL_ERROR) and len(heard.errors) < KEPT_MESSAGES:
                heard.errors.append(text)

    return Quiet()
