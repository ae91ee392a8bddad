"""A toy network's statistics and its ranges file, which several tests share."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
from export_toys import HW, exported, frames

from gradseg.calibration.qdq.int8 import observed_tensors
from gradseg.calibration.qdq.targets import Quantisation
from gradseg.calibration.ranges.collect import Statistics, statistics_from_frames
from gradseg.calibration.ranges.ranges_file import RangesFile, model_fingerprint, ranges_from_statistics


def integers(how: Quantisation, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Floats of any shape → integers, as ONNX's QuantizeLinear: rounded half to even, clipped."""
    scaled = np.rint(np.asarray(values, np.float32) / np.float32(how.scale)) + how.zero_point
    clipped: np.ndarray[Any, Any] = np.clip(scaled, *how.limits).astype(how.zero_type)
    return clipped


def round_trip(how: Quantisation, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Floats → what QuantizeLinear and DequantizeLinear make of them, float32."""
    whole = integers(how, values).astype(np.float32) - how.zero_point
    result: np.ndarray[Any, Any] = whole * np.float32(how.scale)
    return result


@functools.cache
def statistics() -> Statistics:
    tensors, means_of = observed_tensors(exported())
    return statistics_from_frames(exported(), tensors, [frame[0] for frame in frames()[:2]], means_of, threads=1)


@functools.cache
def some_statistics() -> Statistics:
    """Of every sixth tensor."""
    every = statistics()
    return dataclasses.replace(every, observers=dict(list(every.observers.items())[::6]))


@functools.cache
def ranges(method: str = "mse", **options: Any) -> RangesFile:
    """Shared between tests: not to be changed."""
    model = {"file": "toy.onnx", "sha256": "0" * 64, "fingerprint": model_fingerprint(exported())}
    data = {"source": "scenes:", "sha256": "1" * 64, "skipped": []}
    found = statistics() if method == "mse" else some_statistics()
    return ranges_from_statistics(found, model, data, {"size": list(HW)}, method, **options)


def edit(path: Path, change: Callable[[Dict[str, Any]], None]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
