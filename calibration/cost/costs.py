"""What a layer costs in float instead of INT8. Needs onnx and onnxruntime; no torch."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from gradseg.calibration.qdq.layers import Layer
from gradseg.graphs.sessions import OnnxRunner

GROUP, ROUNDS, TURN = 6, 8, 2  # networks open at a time, rounds, timed runs of a turn
WRITTEN = 16  # multiply-accumulates in the time that one value takes to be written; a guess that ranks sums fairly
LEAST = 0.002  # share of the whole network's latency below which two latencies do not differ


@dataclass(frozen=True)
class Costs:
    """What each layer costs in float, by its name, above 0, in `unit`. note: where that is from, for people."""

    values: Mapping[str, float]
    unit: str
    note: str


def work_costs(layers: Sequence[Layer], target: str) -> Costs:
    """Millions of multiply-accumulates of each layer, and what writing its output takes beside them."""
    values = {layer.name: (layer.macs + WRITTEN * layer.values) / 1e6 for layer in layers}
    note = f"no device for {target} here: costs are estimated from multiply-accumulates and values written"
    return Costs(values, "MMAC", note)


def latency_costs(
    build: Callable[[Tuple[str, ...]], Any],
    layers: Sequence[Layer],
    batch: np.ndarray[Any, Any],
    threads: Optional[int] = None,
) -> Costs:
    """Milliseconds that the network takes longer with one layer in float, on this CPU. batch: uint8 BGR (1, h, w, 3).

    In groups, the networks and full INT8 take turns; the fastest run of each counts, the one that other work on the
    machine disturbed least. Differences too small to be seen are `LEAST` of the whole, more for layers with more work.
    """
    work, values = work_costs(layers, "cpu").values, {}
    most = max(work.values(), default=1.0)
    whole = OnnxRunner(build(()).SerializeToString(), "INT8", threads)
    for start in range(0, len(layers), GROUP):
        group = layers[start : start + GROUP]
        runners = [OnnxRunner(build(layer.nodes).SerializeToString(), layer.name, threads) for layer in group]
        full, *times = _fastest([whole, *runners], batch)
        for layer, taken in zip(group, times):
            values[layer.name] = max(taken - full, LEAST * full) * (1 + LEAST * work[layer.name] / most)
    note = f"costs are milliseconds on this CPU, the fastest of {ROUNDS * TURN} runs with the networks in turn"
    return Costs(values, "ms", note)


def _fastest(runners: Sequence[OnnxRunner], batch: np.ndarray[Any, Any]) -> List[float]:
    """Milliseconds of each one's fastest run; the first of a turn is not timed, caches belong to another then."""
    best = [math.inf] * len(runners)
    for _ in range(ROUNDS):
        for index, runner in enumerate(runners):
            runner.run(batch)
            for _ in range(TURN):
                begin = time.perf_counter_ns()
                runner.run(batch)
                best[index] = min(best[index], (time.perf_counter_ns() - begin) / 1e6)
    return best
