"""Which layers INT8 hurts: one at a time is quantised, the rest of the network stays in float.

`cpu` runs with ONNX Runtime's INT8 kernels, `trt` and `tidl` exactly as their Q/DQ pairs are written. Signal to noise
is always measured as written. Needs onnx and onnxruntime; no torch.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import onnx

from gradseg.base.errors import GradsegError
from gradseg.calibration.cost.accuracy import Frames, Score
from gradseg.calibration.qdq.int8 import Int8Parts
from gradseg.calibration.qdq.layers import Layer, rounded
from gradseg.data.base import evenly
from gradseg.graphs.graph import Graph
from gradseg.graphs.sessions import OnnxRunner, argmax_of, exposed

NOISE_FRAMES = 4  # frames that signal to noise is measured on

Tick = Callable[[str], None]
Shown = Union[Frames, Sequence["np.ndarray[Any, Any]"]]


@dataclass(frozen=True)
class Effect:
    """What quantising one layer does.

    sqnr_db: signal to quantisation noise of the layer's own output, scores_sqnr_db: of the scores that the labels are
    taken from; None where there is no noise, or no signal. agreement: share of labels equal to the float network's.
    miou_change: points, and worst_class: (name, points of IoU), negative is a loss; None without labelled frames.
    """

    layer: Layer
    sqnr_db: Optional[float]
    scores_sqnr_db: Optional[float]
    agreement: float
    miou_change: Optional[float]
    worst_class: Optional[Tuple[str, float]]

    def key(self) -> Tuple[float, float]:
        """Sorts the worst first: by mIoU, then by the labels that change."""
        return (self.miou_change or 0.0, self.agreement)

    def to_json(self) -> Dict[str, Any]:
        """JSON types, no NaN."""
        of_layer = {key: getattr(self.layer, key) for key in ("operator", "output", "macs", "weights")}
        return {**vars(self), "layer": self.layer.name, **of_layer, "worst_class": _named(self.worst_class)}


@dataclass(frozen=True)
class Ranking:
    """effects: the worst first. base, int8: float and all layers in INT8 together; without labelled frames both are
    None and only the agreement is known. frames, noise_frames: how many were shown."""

    effects: Tuple[Effect, ...]
    base: Optional[Score]
    int8: Optional[Score]
    int8_agreement: float
    frames: int
    noise_frames: int

    def to_json(self) -> Dict[str, Any]:
        """JSON types, no NaN; mIoU as a fraction, changes in points."""
        base: Optional[Dict[str, Any]] = None
        whole: Dict[str, Any] = {"agreement": self.int8_agreement, "miou": None, "miou_change": None}
        if self.base is not None and self.int8 is not None:
            base = {"miou": self.base.miou, "per_class": self.base.per_class}
            whole.update(miou=self.int8.miou, miou_change=100 * (self.int8.miou - self.base.miou))
            whole.update(worst_class=_named(self.int8.worst_class(self.base)), per_class=self.int8.per_class)
        rows = [{"rank": index + 1, **effect.to_json()} for index, effect in enumerate(self.effects)]
        counts = {"frames": self.frames, "noise_frames": self.noise_frames}
        return {"float": base, "int8": whole, **counts, "layers": rows}


def _named(worst: Optional[Tuple[str, float]]) -> Optional[Dict[str, Any]]:
    return None if worst is None else {"name": worst[0], "change": worst[1]}


def ranking(parts: Int8Parts, frames: Shown, threads: Optional[int] = None, progress: Optional[Tick] = None) -> Ranking:
    """Measures every layer by itself, and all together.

    Args:
        frames: labelled ones; or batches uint8 BGR (1, h, w, 3), which say nothing of mIoU.
        progress: called with a layer's name before it is measured, and once more at the end.

    Takes about one pass over the frames per layer. Raises GradsegError where the target computes nothing in INT8.
    """
    layers = parts.layers()
    if not layers:
        raise GradsegError(f"target {parts.settings.target}: no layer of this network runs in INT8; nothing to rank")
    bench = _Bench(parts, frames, threads)
    effects: List[Effect] = []
    for layer in layers:
        if progress is not None:
            progress(layer.name)
        effects.append(bench.effect(layer, parts.alone(layer)))
    if progress is not None:
        progress("all layers together")
    int8, agreement = bench.score(bench.runner(parts.written(parts.whole)).first)
    ordered = tuple(sorted(effects, key=Effect.key))
    return Ranking(ordered, bench.base, int8, agreement, len(bench.batches), len(bench.noisy))


class _Bench:
    """What all layers are compared with: the float network's labels and scores."""

    def __init__(self, parts: Int8Parts, frames: Shown, threads: Optional[int]) -> None:
        self.frames = frames if isinstance(frames, Frames) else None
        self.batches = [batch for batch, _ in frames] if isinstance(frames, Frames) else list(frames)
        if not self.batches:
            raise GradsegError("no frames to measure with")
        self.model, self.threads, self.kernels = parts.ready, threads, parts.settings.target == "cpu"
        self.noisy = evenly(self.batches, NOISE_FRAMES)
        argmax = argmax_of(self.model)
        self.scores: List[str] = [] if argmax is None else [argmax.input[0]]
        network = self.runner(self.model).first
        self.base: Optional[Score] = None
        if self.frames is None:
            self.labels = [network(batch)[0].copy() for batch in self.batches]
        else:
            self.base, self.labels = self.frames.scored(network)
        floats = OnnxRunner(exposed(self.model, self.scores), "float", threads)
        self.float_scores = [floats.run(batch, self.scores)[0] if self.scores else None for batch in self.noisy]

    def runner(self, model: Any) -> OnnxRunner:
        """A session that computes as the target would."""
        return OnnxRunner(model.SerializeToString(), "INT8", self.threads, integers=self.kernels)

    def score(self, network: Callable[[Any], Any]) -> Tuple[Optional[Score], float]:
        """The score on labelled frames, and the share of labels equal to float's. network: batch → labels (1, h, w)."""
        if self.frames is not None:
            score = self.frames.score(network, self.labels)
            assert score.agreement is not None
            return score, score.agreement
        same = [np.count_nonzero(network(batch)[0] == labels) for batch, labels in zip(self.batches, self.labels)]
        return None, sum(same) / sum(labels.size for labels in self.labels)

    def effect(self, layer: Layer, model: Any) -> Effect:
        """Compares the network with one layer quantised."""
        wanted = [rounded(model, layer.output), *self.scores]
        exact = OnnxRunner(exposed(model, wanted), layer.name, self.threads, integers=False)
        before = OnnxRunner(up_to(self.model, layer.output), layer.name, self.threads)
        own, of_scores = _Noise(), _Noise()
        for batch, scores in zip(self.noisy, self.float_scores):
            found = exact.run(batch, wanted)
            own.add(before.first(batch), found[0])
            if scores is not None:
                of_scores.add(scores, found[1])
        labels = exact.outputs[:1]
        runner = self.runner(model).first if self.kernels else lambda batch: exact.run(batch, labels)[0]
        score, agreement = self.score(runner)
        change, worst = None, None
        if score is not None and self.base is not None:
            change, worst = 100 * (score.miou - self.base.miou), score.worst_class(self.base)
        return Effect(layer, own.ratio_db(), of_scores.ratio_db(), agreement, change, worst)


def up_to(model: Any, tensor: str) -> bytes:
    """The part of a model that computes a float tensor, its only output; serialised."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    return bytes(Graph(copy).to_model().SerializeToString())


class _Noise:
    """Energies, over frames, of a float tensor and of what quantising did to it."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> None:
        self.signal += float(np.square(expected, dtype=np.float64).sum())
        self.noise += float(np.square(np.subtract(found, expected, dtype=np.float64)).sum())

    def ratio_db(self) -> Optional[float]:
        if not (0 < self.signal < np.inf and 0 < self.noise < np.inf):
            return None
        return 10 * float(np.log10(self.signal / self.noise))


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
