"""The figures that decide: ratios of measured latencies, with what is needed and what arithmetic allows beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from gradseg.benchmarks.side_by_side.jobs import EAGER, TUNED, TUTORIAL

SUBJECT, REFERENCE = "dg2-star-light", "erfnet"
NEEDED_TUTORIAL, NEEDED_BEST, NEEDED_REFERENCE, NEEDED_OPERATIONS = 5.0, 2.0, 15.0, 0.9
FOLLOWS = "speed-up / operations by class"
MAX_DROP = 0.5  # points of mIoU below PyTorch's


@dataclass(frozen=True)
class Row:
    """A measured pipeline. p50_ms: from frame to labels. network_ms: its network's share. miou: fraction or None."""

    name: str
    model: str
    p50_ms: float
    network_ms: float
    miou: Optional[float]
    engine: str
    precision: str
    ours: bool

    @property
    def kind(self) -> str:
        """The class that speed-ups are compared in: whose pipeline, engine, precision."""
        return f"{'gradseg' if self.ours else 'peer'} {self.engine} {self.precision}"

    @property
    def text(self) -> str:
        return f"{self.name} {self.model} {self.p50_ms:.1f} ms"


def ratios(
    rows: Sequence[Row], gmac: Mapping[str, float], ceilings: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Everything that is claimed of a run. gmac: of each model. ceilings: GMAC/s by precision ("fp32", "int8")."""
    found: dict[str, Any] = {}
    models = list(dict.fromkeys(row.model for row in rows))
    floor, saved = Floors(gmac, ceilings or {}), follows(rows, gmac)
    for model in models:
        ours = chosen(rows, model)
        if ours is None:
            continue
        found.update(_against_peers(rows, model, ours, floor))
        found[f"{model}: best float / chosen"] = _float_or_int8(rows, model, ours)
        if model != REFERENCE:
            nothing = {**figure(None, NEEDED_OPERATIONS), "of": f"no {ours.kind} of {REFERENCE} was measured"}
            found[f"{model}: speed-up / operations, chosen"] = saved.get(ours.kind, {}).get(model, nothing)
        drop = _drop(rows, model, ours)
        if drop is not None:
            found[f"{model}: mIoU of chosen, points above pytorch eager"] = drop
    return {**found, FOLLOWS: saved}


class Floors:
    """Milliseconds that a model's multiply-accumulates take at this machine's measured ceiling."""

    def __init__(self, gmac: Mapping[str, float], ceilings: Mapping[str, float]) -> None:
        self._gmac, self._ceilings = gmac, ceilings

    def of(self, model: str, precision: str) -> Optional[float]:
        ceiling = self._ceilings.get(precision)
        return None if not ceiling or model not in self._gmac else 1000 * self._gmac[model] / ceiling


def chosen(rows: Sequence[Row], model: str) -> Optional[Row]:
    """GradSeg's pipeline of a model: tune.py's engine if it was measured, else the fastest that keeps the accuracy."""
    ours = [row for row in rows if row.ours and row.model == model]
    tuned = [row for row in ours if row.name == TUNED]
    base = _reference_miou(rows, model)
    kept = [row for row in ours if base is None or row.miou is None or 100 * (base - row.miou) <= MAX_DROP]
    return min(tuned or kept, key=lambda row: row.p50_ms, default=None)


def _reference_miou(rows: Iterable[Row], model: str) -> Optional[float]:
    return next((row.miou for row in rows if row.model == model and row.name == EAGER), None)


def _against_peers(rows: Sequence[Row], model: str, ours: Row, floor: Floors) -> dict[str, Any]:
    """The tutorial on the same network, the best of all peers on it, and the reference network's tutorial."""
    peers = [row for row in rows if row.model == model and not row.ours]
    decides = model == SUBJECT
    named: list[tuple[str, Optional[Row], float]] = [
        (TUTORIAL, next((row for row in peers if row.name == TUTORIAL), None), NEEDED_TUTORIAL),
        ("best peer", min(peers, key=lambda row: row.p50_ms, default=None), NEEDED_BEST),
    ]
    if model != REFERENCE:
        tutorial = next((row for row in rows if row.model == REFERENCE and row.name == TUTORIAL), None)
        named.append((f"{REFERENCE} {TUTORIAL}", tutorial, NEEDED_REFERENCE))
    least = floor.of(model, ours.precision)
    return {
        f"{model}: {name} / gradseg": {
            **figure(other.p50_ms / ours.p50_ms, needed if decides else None),
            "of": f"{other.text} / {ours.text} ({ours.engine} {ours.precision})",
            "gradseg_floor_ms": least,
            "at_floor": None if least is None else other.p50_ms / least,
        }
        for name, other, needed in named
        if other is not None
    }


def _float_or_int8(rows: Sequence[Row], model: str, ours: Row) -> dict[str, Any]:
    """INT8, if it was chosen, is not slower than the best float engine of GradSeg's; nothing is asked of float."""
    mine = [row for row in rows if row.ours and row.model == model]
    best_float = min((row for row in mine if row.precision != "int8"), key=lambda row: row.p50_ms, default=None)
    best_int8 = min((row for row in mine if row.precision == "int8"), key=lambda row: row.p50_ms, default=None)
    needed = 1.0 if ours.precision == "int8" else None
    if best_float is None:
        return {**figure(None, needed), "of": f"no float engine was measured / {ours.text}", "best_int8": None}
    return {
        **figure(best_float.p50_ms / ours.p50_ms, needed),
        "of": f"{best_float.text} ({best_float.kind}) / {ours.text} ({ours.kind})",
        "best_int8": None if best_int8 is None else best_int8.text,
    }


def _drop(rows: Sequence[Row], model: str, ours: Row) -> Optional[dict[str, Any]]:
    base = _reference_miou(rows, model)
    if base is None or ours.miou is None:
        return None
    return {**figure(100 * (ours.miou - base), -MAX_DROP), "of": f"{100 * ours.miou:.2f} - {100 * base:.2f}"}


def follows(rows: Sequence[Row], gmac: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Per class of engine and precision that ran the reference: model → (speed-up over it) / (operations saved).

    1 means that the milliseconds fell as the multiply-accumulates did. The fastest pipeline of a class stands for it.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(row.kind for row in rows):
        best = {
            model: min((row for row in rows if row.kind == kind and row.model == model), key=lambda row: row.p50_ms)
            for model in dict.fromkeys(row.model for row in rows if row.kind == kind)
        }
        base = best.pop(REFERENCE, None)
        if base is None or not best:
            continue
        found[kind] = {}
        for model, row in best.items():
            operations = gmac[REFERENCE] / gmac[model]
            found[kind][model] = {
                **figure(base.p50_ms / row.p50_ms / operations, NEEDED_OPERATIONS if row.ours else None),
                "network_only": base.network_ms / row.network_ms / operations,
                "speed_up": base.p50_ms / row.p50_ms,
                "operations": operations,
                "of": f"({base.text} / {row.text}) / ({gmac[REFERENCE]:.2f} GMAC / {gmac[model]:.2f} GMAC)",
            }
    return found


def figure(value: Optional[float], needed: Optional[float]) -> dict[str, Any]:
    """A ratio, what it must at least be (None: nothing is asked of it), and whether it is."""
    known = value is not None and math.isfinite(value)
    return {
        "value": value if known else None,
        "needed": needed,
        "met": None if needed is None else bool(known and value is not None and value >= needed),
    }


def read_ceilings(path: Path, threads: int) -> dict[str, float]:
    """GMAC/s by kind of arithmetic ("fp32", "bf16", "int8") out of roofline.py's JSON, of so many threads; {} if it
    was not run on this machine or holds none of them."""
    try:
        found = _measured(json.loads(path.read_text("utf-8")), threads)
        return {kind: float(each["best"]) / 1e9 for kind, each in found.items() if each and float(each["best"]) > 0}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _measured(raw: Any, threads: int) -> Mapping[str, Any]:
    """The rates of so many threads, wherever in the file they stand."""
    if isinstance(raw, dict) and "macs_per_s" in raw and raw.get("threads") == threads:
        rates: Mapping[str, Any] = raw["macs_per_s"]
        return rates
    inner = raw.values() if isinstance(raw, dict) else raw if isinstance(raw, list) else ()
    return next(filter(None, (_measured(each, threads) for each in inner)), {})
