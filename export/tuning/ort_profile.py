"""Where ONNX Runtime spends its time, by operator: a few frames under its own profiler."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import numpy as np

from gradseg.runtime.engines.ort import session_options

FRAMES, WARM_UP = 8, 2
ROUNDING = ("QuantizeLinear", "DequantizeLinear")


def operators(path: str, threads: Optional[int], frames: np.ndarray[Any, Any]) -> Dict[str, float]:
    """Operator → milliseconds per frame, the longest first, for a deployment-form .onnx.

    frames: uint8 BGR (count, h, w, 3).
    """
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="gradseg-profile-") as folder:
        options = session_options(onnxruntime, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for index in range(WARM_UP + FRAMES):
            first = index % len(frames)
            session.run(None, {name: frames[first : first + 1]})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return times_of(events)


def times_of(events: Any) -> Dict[str, float]:
    """The profiler's events → operator → milliseconds per frame; each node's first runs are warm-up and left out."""
    totals: Dict[str, float] = {}
    runs: Dict[str, int] = {}
    for event in events:
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith("_kernel_time"):
            continue
        runs[event["name"]] = runs.get(event["name"], 0) + 1
        if runs[event["name"]] > WARM_UP:
            kind = str(event["args"]["op_name"])
            totals[kind] = totals.get(kind, 0.0) + event["dur"] / 1e3 / FRAMES
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def rounding_share(times: Mapping[str, float]) -> float:
    """The share of the time that goes into QuantizeLinear and DequantizeLinear, 0..1."""
    whole = sum(times.values())
    return sum(times.get(name, 0.0) for name in ROUNDING) / whole if whole else 0.0
