"""Runs a plan before it is saved: labels against ONNX Runtime, liveness, and its latency on this GPU."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.graphs import verify
from gradseg.graphs.sessions import OnnxRunner
from gradseg.graphs.ties import Decided
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.protocol import Engine

NEEDED = {"fp32": 0.9999, "fp16": 0.95, "int8": 0.9}  # share of labels equal to FP32's below which a plan is refused
WANTED = {"fp32": 0.9999, "fp16": 0.995, "int8": 0.98}  # below which it comes with a warning and is not chosen by best
NOT_RUN = "built, not run"
ADVICE = {
    "fp32": "build without --tf32, with a fresh --timing-cache, and please report the network if it stays so",
    "fp16": "a layer may overflow: verify on frames of your own with --data, or use --precision fp32",
    "int8": "calibrate on frames of your own camera (--calib), set --max-drop, or use --precision fp16",
}
WARM_UP, SAMPLES, TURN, SETTLE = 20, 200, 20, 3


@dataclass(frozen=True)
class Verified:
    """What running the plan showed.

    agreement: share of the labels equal to those of `against`. latency_ms: p50, p90, p99 from frame in to labels out,
    transfers included, samples, cuda_graph.
    """

    status: str = NOT_RUN
    agreement: Optional[float] = None
    against: Optional[str] = None
    frames: int = 0
    latency_ms: Optional[Dict[str, Any]] = None
    extra: Dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What a plan's labels are held against.

    onnx: a deployment form with the plan's borders, FP32 where there is one. words: what it is, for people. quantised:
    it is INT8 itself; ONNX Runtime then computes its Q/DQ as written, without the CPU's INT8 kernels.
    """

    onnx: bytes
    words: str
    quantised: bool = False


def verified(
    plan: Path, precision: str, reference: Reference, batches: List[np.ndarray[Any, Any]]
) -> Tuple[Verified, List[str]]:
    """Opens the plan, runs it, and says what was found, with lines for the user.

    batches: uint8 BGR (batch, H, W, 3) as the plan takes them. Raises GradsegError for labels that are not those of
    the reference to the degree that the precision promises, two answers for one frame, or one for all.
    """
    with contextlib.closing(open_engine(plan)) as engine:
        agreement, warnings = _agreement(engine, plan, precision, reference, batches)
        latency = latencies([engine], batches)[0]
    latency["cuda_graph"] = bool(getattr(engine, "uses_cuda_graph", False))
    found = Verified("run", frames=len(batches), latency_ms=latency)
    if agreement is None:
        lines = [*warnings, "labels: repeatable; not compared: no onnxruntime here"]
    else:
        found = replace(found, agreement=agreement.fraction, against=reference.words)
        lines = [*warnings, f"plan: labels equal to those of {reference.words} on {agreement}"]
    lines.append(
        f"plan: {latency['p50']:.3f} ms p50, {latency['p90']:.3f} p90, {latency['p99']:.3f} p99 on {engine.device}, "
        f"upload and download included{', CUDA graph' if latency['cuda_graph'] else ''}"
    )
    return found, lines


def _agreement(
    engine: Engine, plan: Path, precision: str, reference: Reference, batches: List[np.ndarray[Any, Any]]
) -> Tuple[Optional[verify.Agreement], List[str]]:
    warnings = verify.check_alive(engine.infer, batches, plan.name, None)
    try:
        runner = OnnxRunner(reference.onnx, plan.name, integers=not reference.quantised)
    except GradsegError as error:
        if error.exit_code != 3:
            raise
        return None, warnings
    agreement = verify.agreement_of(engine.infer, runner.first, batches)
    if precision == "fp32" and agreement.fraction < NEEDED[precision]:
        with contextlib.suppress(ImportError):  # without onnx the scores cannot be looked at
            decided = Decided(reference.onnx, plan.name)
            agreement = verify.agreement_of(engine.infer, runner.first, batches, decided)
    if agreement.fraction < NEEDED[precision]:
        raise GradsegError(
            f"{plan.name}: labels equal to those of {reference.words} on only {agreement}; {precision} needs "
            f"{100 * NEEDED[precision]:g} %. The plan was not saved; {ADVICE[precision]}"
        )
    if agreement.fraction < WANTED[precision]:
        warnings.append(
            f"warning: {100 * (1 - agreement.fraction):.2f} % of the labels differ from those of {reference.words}; "
            f"{ADVICE[precision]}"
        )
    return agreement, warnings


def latencies(
    engines: Sequence[Engine], batches: List[np.ndarray[Any, Any]], samples: int = SAMPLES
) -> List[Dict[str, Any]]:
    """p50, p90, p99 in milliseconds of `infer` for each engine: upload, inference, download.

    The engines take turns, so that drift of the clocks hits all alike; the first frames of a turn are not counted.
    """
    times: List[List[int]] = [[] for _ in engines]
    for engine in engines:
        for index in range(WARM_UP):
            engine.infer(batches[index % len(batches)])
    for start in range(0, samples, TURN):
        for engine, kept in zip(engines, times):
            for index in range(-SETTLE, min(TURN, samples - start)):
                begin = time.perf_counter_ns()
                engine.infer(batches[(start + index) % len(batches)])
                if index >= 0:
                    kept.append(time.perf_counter_ns() - begin)
    rows = []
    for kept in times:
        p50, p90, p99 = (round(float(value) / 1e6, 4) for value in np.percentile(kept, (50, 90, 99)))
        rows.append({"p50": p50, "p90": p90, "p99": p99, "samples": len(kept)})
    return rows
