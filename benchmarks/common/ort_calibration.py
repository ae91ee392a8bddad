"""Frames as ONNX Runtime's calibrators and its quantiser take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, Optional

import numpy as np

from gradseg.base.files import atomic_path


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


def quantise_static(
    model: Path, out: Path, frames: Iterable[np.ndarray[Any, Any]], symbolic: bool = True, **options: Any
) -> None:
    """ONNX Runtime's `quant_pre_process`, with symbolic shapes or without, then `quantize_static` with these options.

    frames: float32 (1, 3, h, w) for `input`.
    """
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_name("prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=not symbolic)
    with atomic_path(out) as temporary:
        quantize_static(str(prepared), str(temporary), reader_of("input", frames), **options)
    prepared.unlink()
