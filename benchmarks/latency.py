"""Latency of engines on this device, measured in one run and in turn, so that drift of the clocks cancels.

`python benchmarks/latency.py --engine E... [--json F]`. A frame at frame size goes through the runtime's preprocessing,
the engine and the label upsampling; every stage is timed, nothing is left out and no slow sample is dropped. An engine
that takes several frames at a time gets as many; the times are of the whole batch then, FPS counts frames.
Needs NumPy, OpenCV and one engine (Python 3.8 or newer).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from gradseg.data.scenes import SceneVideo
from gradseg.models.errors import GradsegError, run_main
from gradseg.models.files import refuse_inputs, write_json
from gradseg.models.spec import ModelSpec, parse_size
from gradseg.runtime.conditions import conditions
from gradseg.runtime.engine import PROVIDERS, Engine, open_engine, read_spec
from gradseg.runtime.inference import Entry

STAGES = ("preprocess", "infer", "postprocess")
TURN, SETTLE = 10, 3  # timed frames of a turn, untimed ones before them
FRAMES = 8  # different frames in turn: a constant input would flatter caches


class Timed:
    """One engine with its buffers and the nanoseconds measured so far, (samples, stages)."""

    def __init__(self, engine: Engine, frame_hw: Sequence[int]) -> None:
        self.engine, self.entry = engine, Entry(engine)
        self.labels: np.ndarray[Any, Any] = np.empty((engine.batch, int(frame_hw[0]), int(frame_hw[1])), np.uint8)
        self.samples: List[Sequence[int]] = []

    def step(self, frame: np.ndarray[Any, Any], keep: bool) -> None:
        """Runs one batch of a frame, uint8 BGR (H, W, 3), repeated; keeps its stage times if asked."""
        clock = time.perf_counter_ns
        begin = clock()
        batch = self.entry.prepare([frame] * self.engine.batch)
        prepared = clock()
        labels = self.entry.infer(batch)
        inferred = clock()
        for small, large in zip(labels, self.labels):
            self.entry.enlarge(small, (large.shape[0], large.shape[1]), large)
        done = clock()
        if keep:
            self.samples.append((prepared - begin, inferred - prepared, done - inferred))

    def row(self) -> Dict[str, Any]:
        """Percentiles in milliseconds per batch over the whole samples, and the frame rate of their mean."""
        stages = np.asarray(self.samples, np.float64) / 1e6
        total = stages.sum(axis=1)
        p50, p90, p99 = (float(v) for v in np.percentile(total, (50, 90, 99)))
        return {
            "engine": self.engine.name,
            "backend": self.engine.backend,
            "device": self.engine.device,
            "threads": self.engine.threads,
            "precision": self.engine.precision,
            "provider": getattr(self.engine, "provider", None),
            "cuda_graph": bool(getattr(self.engine, "uses_cuda_graph", False)),
            "input_hw": list(self.engine.spec.input_hw),
            "frame_hw": list(self.engine.frame_hw),
            "batch": self.engine.batch,
            "p50_ms": p50,
            "p90_ms": p90,
            "p99_ms": p99,
            "mean_ms": float(total.mean()),
            "max_ms": float(total.max()),
            "fps": 1000.0 * self.engine.batch / float(total.mean()),
            "stages_p50_ms": {name: float(v) for name, v in zip(STAGES, np.percentile(stages, 50, axis=0))},
            "samples": len(total),
        }


def measure(engines: Sequence[Engine], frame_hw: Sequence[int], warmup: int, samples: int) -> List[Dict[str, Any]]:
    """A row per engine; `samples` timed frames each, after `warmup` untimed ones.

    The engines take turns of `TURN` frames, so that drift of the clocks hits all alike. The first frames of a turn are
    not timed: caches and worker threads still belong to the engine before.
    """
    video = SceneVideo((int(frame_hw[0]), int(frame_hw[1])), 1)
    frames = [video.frame(5 * i).image for i in range(FRAMES)]
    timed = [Timed(engine, frame_hw) for engine in engines]
    for each in timed:
        for index in range(warmup):
            each.step(frames[index % FRAMES], False)
    for start in range(0, samples, TURN):
        for each in timed:
            settle = SETTLE if len(timed) > 1 else 0
            for index in range(-settle, min(TURN, samples - start)):
                each.step(frames[(start + index) % FRAMES], index >= 0)
    return [each.row() for each in timed]


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True, nargs="+", help="engine files: .onnx, .pth, .plan")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--frame-size", help="frame HxW (default: what the first engine takes)")
    parser.add_argument("--warmup", type=int, default=10, help="untimed frames")
    parser.add_argument("--samples", type=int, default=100, help="timed frames per engine")
    parser.add_argument("--threads", type=int, help="CPU threads of the engines")
    parser.add_argument("--spec", type=Path, help="ModelSpec as JSON, for ONNX files without GradSeg metadata")
    parser.add_argument("--provider", choices=PROVIDERS, help="what ONNX Runtime runs .onnx files on (default: cpu)")
    parser.add_argument("--no-cuda-graph", action="store_true", help="enqueue the inference of plans plainly")
    arguments = parser.parse_args(argv)
    if arguments.samples < 1 or arguments.warmup < 0:
        raise GradsegError("--samples must be at least 1 and --warmup at least 0")
    if arguments.json:
        refuse_inputs(arguments.json, [*arguments.engine, *([arguments.spec] if arguments.spec else [])], "--json")
    spec = read_spec(arguments.spec) if arguments.spec else None
    engines: List[Engine] = []
    try:
        for path in arguments.engine:
            engines.append(_opened(path, arguments, spec))
        return _report(engines, arguments)
    finally:
        for engine in engines:
            engine.close()


def _opened(path: str, arguments: argparse.Namespace, spec: Optional[ModelSpec]) -> Engine:
    provider = arguments.provider if Path(path).suffix.lower() == ".onnx" else None
    return open_engine(path, arguments.threads, spec, provider, not arguments.no_cuda_graph)


def _report(engines: Sequence[Engine], arguments: argparse.Namespace) -> int:
    frame_hw = parse_size(arguments.frame_size) if arguments.frame_size else engines[0].frame_hw
    rows = measure(engines, frame_hw, arguments.warmup, arguments.samples)
    columns = [*(f"{name} ms" for name in ("p50", "p90", "p99")), "FPS", *STAGES]
    print(f"{'engine':<32}{'precision':>10}" + "".join(name.rjust(12) for name in columns))
    for row in rows:
        figures = [row["p50_ms"], row["p90_ms"], row["p99_ms"], row["fps"], *row["stages_p50_ms"].values()]
        cells = "".join(f"{value:12.2f}" for value in figures)
        print(f"{Path(row['engine']).name:<32}{row['precision']:>10}{cells}")
    if arguments.json:
        known = conditions(threads=engines[0].threads, warmup=arguments.warmup, frame_hw=list(frame_hw))
        write_json(arguments.json, {"engines": rows, "conditions": known})
    return 0


if __name__ == "__main__":
    run_main(main)
