"""`--max-drop`: layers go back to float, the cheapest in latency per point of mIoU first, until the budget holds.

A script with a float network, what builds its INT8 form with given nodes kept in float, and labelled frames calls
`budgeted`; its `model` is to be written and its `lines` are to be printed. Needs onnx and onnxruntime; no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple

from gradseg.base.errors import GradsegError
from gradseg.calibration.cost.accuracy import Frames, Score
from gradseg.calibration.cost.ranking import Costs, latency_costs, work_costs
from gradseg.calibration.qdq.int8 import Form
from gradseg.calibration.qdq.layers import Layer, layers_of
from gradseg.calibration.qdq.plan import plan_for
from gradseg.commands import command
from gradseg.graphs.graph import is_quantised
from gradseg.graphs.sessions import OnnxRunner

RANK_FRAMES = 24  # frames that single layers are tried on
TRIED_BACK = 16  # layers at most that are tried in INT8 again at the end
LABELS = 0.01  # points that a percent of changed labels counts for, so that a chance gain of mIoU does not decide alone

Build = Callable[[Tuple[str, ...]], Any]


@dataclass(frozen=True)
class Kept:
    """A layer in float. gain: points that INT8 takes from it, `alone` or beside all others. cost: of being in float.

    without: points lost in all if this layer alone went back to INT8; None if that was not tried.
    """

    layer: Layer
    gain: float
    cost: float
    alone: bool = True
    without: Optional[float] = None


@dataclass(frozen=True)
class Budgeted:
    """model: onnx.ModelProto that holds the budget, `drop` points of mIoU below float. evaluations: networks scored on
    all frames. lines: for people, which layers are in float and why."""

    model: Any
    score: Score
    drop: float
    kept_float: Tuple[Kept, ...]
    evaluations: int
    lines: Tuple[str, ...]


def budgeted(
    model: Any,
    target: str,
    build: Build,
    frames: Frames,
    max_drop: float,
    form: Optional[Form] = None,
    threads: Optional[int] = None,
) -> Budgeted:
    """`within_budget` for a network and a target.

    Args:
        model: FP32 (onnx.ModelProto, `frame` → `labels`).
        build: names of nodes to keep in float → the INT8 model.
        form: what `build` rewrites the model with before it plans, as for `int8.Int8Parts`.

    Latency is measured here for `cpu`; for other targets, which have no device here, work stands for it.
    """
    layers = layers_of(model, plan_for(model if form is None else form(model), target))
    base = frames.score(OnnxRunner(model.SerializeToString(), "float", threads).first)
    batch = next(iter(frames))[0]

    def measured() -> Costs:
        return latency_costs(build, layers, batch, threads) if target == "cpu" else work_costs(layers, target)

    return within_budget(build, layers, frames, base, max_drop, measured, threads, target == "cpu")


def within_budget(
    build: Build,
    layers: Sequence[Layer],
    frames: Frames,
    float_score: Score,
    max_drop: float,
    costs: Callable[[], Costs],
    threads: Optional[int] = None,
    integers: bool = True,
) -> Budgeted:
    """Keeps as few layers in float as the budget needs.

    Args:
        frames: labelled; the budget holds on these. float_score: of the float network on them.
        max_drop: points of mIoU that may be lost.
        costs: called only if full INT8 misses the budget.
        integers: run INT8 kernels, see `OnnxRunner`.

    Each layer is tried alone in INT8 on at most `RANK_FRAMES` frames: what it loses is what float regains. A sum that
    runs in INT8 only between others is left out of full INT8 instead. In the order of points per cost, layers then go
    back to float, 1, 2, 4… at a time, and the shortest such list that holds is found by bisection. At last those that
    are not needed return to INT8. On all frames at most 2 + 2 log2(layers) + `TRIED_BACK` networks
    are scored. Raises GradsegError if no list holds, with the best that was reached.
    """
    if not 0 <= max_drop < math.inf:
        raise GradsegError(f"--max-drop {max_drop:g}: expected points of mIoU, 0 or more, such as 0.5")
    search = _Search(build, layers, frames, float_score, max_drop, threads, integers)
    whole = search.drop(())
    first = f"full INT8 {_lost(whole)} on {len(frames)} frames, {max_drop:g} may be lost"
    if whole <= max_drop:
        return search.result((), (f"{first}: no layer goes back to float",))
    gains, known = search.gains(), costs()
    order = sorted(layers, key=lambda layer: -gains[layer.name].value / known.values[layer.name])
    needed = search.shortest(order)
    # what gained nothing by itself is tried in INT8 first, then the dearest
    kept, without = search.tidied(needed, lambda each: (gains[each.name].points > 0, -known.values[each.name]))
    rows = tuple(
        Kept(layer, gain.points, known.values[layer.name], gain.alone, without.get(layer.name))
        for layer, gain in ((layer, gains[layer.name]) for layer in kept)
    )
    head = f"{first}: with {len(kept)} of {len(layers)} layers in float it {_lost(search.drop(kept))}"
    lines = (_why(row, known.unit, min(RANK_FRAMES, len(frames))) for row in rows)
    return search.result(rows, (head, *lines, known.note))


def _why(row: Kept, unit: str, frames: int) -> str:
    text = (
        f"  {row.layer.name}: in INT8 {'alone' if row.alone else 'beside the others'} it {_lost(row.gain)} on {frames}"
    )
    text += f" frames, in float it costs {row.cost:.3g} {unit}"
    return text if row.without is None else f"{text}; were it in INT8 too, the network {_would(row.without)}"


def _would(points: float) -> str:
    return _lost(points).replace("loses", "would lose").replace("gains", "would gain")


def _lost(points: float) -> str:
    return f"loses {points:.2f} points of mIoU" if points >= 0 else f"gains {-points:.2f} points of mIoU"


@dataclass(frozen=True)
class _Gain:
    """points: of mIoU. changed: percent of the labels. alone: with all other layers in float, else in INT8."""

    points: float
    changed: float
    alone: bool

    @property
    def value(self) -> float:
        return max(self.points, 0.0) + LABELS * self.changed


@dataclass
class _Search:
    """Scores networks with some layers in float, each once."""

    build: Build
    layers: Sequence[Layer]
    frames: Frames
    base: Score
    most: float
    threads: Optional[int]
    integers: bool
    _known: Dict[FrozenSet[str], Score] = field(default_factory=dict)

    def without(self, layers: Sequence[Layer]) -> Any:
        """The model with these layers in float."""
        return self.build(tuple(name for layer in layers for name in layer.nodes))

    def network(self, model: Any) -> Callable[[Any], Any]:
        return OnnxRunner(model.SerializeToString(), "INT8", self.threads, integers=self.integers).first

    def score(self, kept: Sequence[Layer]) -> Score:
        key = frozenset(layer.name for layer in kept)
        if key not in self._known:
            self._known[key] = self.frames.score(self.network(self.without(kept)))
        return self._known[key]

    def drop(self, kept: Sequence[Layer]) -> float:
        """Points of mIoU lost on all frames."""
        return 100 * (self.base.miou - self.score(kept).miou)

    def gains(self) -> Dict[str, _Gain]:
        """What float regains, by layer."""
        few = self.frames.some(RANK_FRAMES)
        base, labels = few.scored(self.network(self.without(self.layers)))
        whole: Optional[Score] = None
        found = {}
        for layer in self.layers:
            alone = self.without([other for other in self.layers if other is not layer])
            if is_quantised(alone):
                found[layer.name] = _gain(base, few.score(self.network(alone), labels), True)
                continue
            whole = whole or few.score(self.network(self.without(())), labels)
            found[layer.name] = _gain(few.score(self.network(self.without([layer])), labels), whole, False)
        return found

    def shortest(self, order: Sequence[Layer]) -> Sequence[Layer]:
        """The first layers of `order` that hold the budget, found by doubling and bisection."""
        missed, count = 0, 1
        while self.drop(order[:count]) > self.most:
            if count >= len(order):
                raise self._out_of_reach()
            missed, count = count, min(2 * count, len(order))
        while count - missed > 1:
            middle = (missed + count) // 2
            if self.drop(order[:middle]) > self.most:
                missed = middle
            else:
                count = middle
        return order[:count]

    def _out_of_reach(self) -> GradsegError:
        best = max(self._known, key=lambda key: (self._known[key].miou, -len(key)))
        lost = 100 * (self.base.miou - self._known[best].miou)
        return GradsegError(
            f"--max-drop {self.most:g} cannot be held on {len(self.frames)} frames: the best of {len(self._known)} "
            f"networks, with {len(best)} of {len(self.layers)} layers in float, loses {lost:.2f} points of mIoU; allow "
            f"more, calibrate on other frames, or fine-tune for INT8 ({command('train/finetune.py')})"
        )

    def tidied(
        self, kept: Sequence[Layer], key: Callable[[Layer], Tuple[bool, float]]
    ) -> Tuple[List[Layer], Dict[str, float]]:
        """Without the layers that need not be there, and what would be lost without others that were tried."""
        left, lost = list(kept), {}
        for layer in sorted(kept, key=key)[:TRIED_BACK]:
            fewer = [other for other in left if other is not layer]
            lost[layer.name] = self.drop(fewer)
            if lost[layer.name] <= self.most:
                left, lost = fewer, {}  # the rest was found beside the layer that has now gone
        return left, lost

    def result(self, rows: Tuple[Kept, ...], lines: Tuple[str, ...]) -> Budgeted:
        kept = [row.layer for row in rows]
        score, drop = self.score(kept), self.drop(kept)
        return Budgeted(self.without(kept), score, drop, rows, len(self._known), lines)


def _gain(better: Score, worse: Score, alone: bool) -> _Gain:
    assert better.agreement is not None and worse.agreement is not None
    return _Gain(100 * (better.miou - worse.miou), 100 * (better.agreement - worse.agreement), alone)
