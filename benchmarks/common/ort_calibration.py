"""Frames as ONNX Runtime's calibrators and its quantiser take them."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Optional

import numpy as np


def reader_of(name: str, frames: Iterable[np.ndarray[Any, Any]]) -> Any:
    """A CalibrationDataReader that gives one array after the other as the model's input `name`. Needs onnxruntime."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # an untyped base class
        def __init__(self) -> None:
            self._left = iter(frames)

        def get_next(self) -> Optional[Dict[str, Any]]:
            frame = next(self._left, None)
            return None if frame is None else {name: frame}

    return Reader()
