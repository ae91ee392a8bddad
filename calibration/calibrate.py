"""FP32 deployment-form ONNX and real frames → its INT8 form, what it was calibrated on in the metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, Optional

from gradseg.calibration.collect import observers_from_frames
from gradseg.calibration.quantise import count_quantised, is_quantised, plan_for, quantised
from gradseg.calibration.sources import open_frames
from gradseg.models import metadata
from gradseg.models.errors import GradsegError


@dataclass(frozen=True)
class Settings:
    """How to calibrate.

    target: cpu (ONNX Runtime, OpenVINO) or trt (TensorRT). method: minmax, percentile or mse, see `Observer.range`.
    frames: how many at most. power_of_two: activation scales as powers of two, for fixed-point hardware.
    reduce_range: weights within ±63, for CPUs whose INT8 kernels saturate in int16, see `cpu.int8_saturates`.
    """

    target: str = "cpu"
    method: str = "mse"
    frames: int = 32
    power_of_two: bool = False
    reduce_range: bool = False


def int8_from_fp32(
    model: Any,
    source: str,
    settings: Settings,
    threads: Optional[int] = None,
    progress: Optional[Callable[[int], None]] = None,
) -> Any:
    """onnx.ModelProto (FP32, `frame` → `labels`) → a new one with Q/DQ pairs.

    source: as `open_frames` takes it. Raises GradsegError for a source that does not open or a model in INT8 already.
    """
    if is_quantised(model):
        raise GradsegError("the model is in INT8 already; calibrate its FP32 form")
    plan = plan_for(model, settings.target)
    done = {"frames": 0}

    def count(frames: int) -> None:
        done["frames"] = frames
        if progress is not None:
            progress(frames)

    observers = observers_from_frames(model, plan.observed(), open_frames(source, settings.frames), threads, count)
    ranges = {name: seen.range(settings.method, settings.target == "trt") for name, seen in observers.items()}
    result = quantised(model, plan, ranges, settings.target, settings.power_of_two, settings.reduce_range)
    packed, total = count_quantised(result)
    note: Dict[str, Any] = asdict(settings)
    note.update({"source": source, "frames": done["frames"], "int8_convolutions": packed, "convolutions": total})
    metadata.set_metadata(
        result,
        {
            metadata.PRECISION: "int8",
            metadata.TARGET: settings.target,
            metadata.CALIBRATION: json.dumps(note, sort_keys=True),
        },
    )
    return result
