"""Running networks on video: engines, sources, sinks and the loop. Imports with NumPy and OpenCV alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradseg.runtime.segmenter import Segmenter

__all__ = ["Segmenter"]


def __getattr__(name: str) -> Any:
    """`Segmenter` is imported when it is asked for: the doctor must start where NumPy or OpenCV are broken."""
    if name == "Segmenter":
        from gradseg.runtime.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
