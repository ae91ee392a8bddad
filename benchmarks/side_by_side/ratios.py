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
    saved = follows(rows, gmac)
    for model in dict.fromkeys(row.model for row in rows):
        ours, base = chosen(rows, model), fastest(rows, model=model, name=EAGER)
        if ours is None:
            continue
        ceiling = (ceilings or {}).get(ours.precision)
        # milliseconds that its multiply-accumulates take at this machine's measured ceiling
        least = 1000 * gmac[model] / ceiling if ceiling and model in gmac else None
        found.update(_against_peers(rows, ours, least))
        found[f"{model}: best float / chosen"] = _float_or_int8(rows, ours)
        if model != REFERENCE:
            nothing = {**figure(None, NEEDED_OPERATIONS), "of": f"no {ours.kind} of {REFERENCE} was measured"}
            found[f"{model}: speed-up / operations, chosen"] = saved.get(ours.kind, {}).get(model, nothing)
        if base and base.miou is not None and ours.miou is not None:
            mine, theirs = 100 * ours.miou, 100 * base.miou
            drop = {**figure(mine - theirs, -MAX_DROP), "of": f"{mine:.2f} - {theirs:.2f}"}
            found[f"{model}: mIoU of chosen, points above pytorch eager"] = drop
    return {**found, FOLLOWS: saved}


def fastest(rows: Iterable[Row], **wanted: Any) -> Optional[Row]:
    """Of those that have these values."""
    fitting = (row for row in rows if all(getattr(row, name) == value for name, value in wanted.items()))
    return min(fitting, key=lambda row: row.p50_ms, default=None)


def chosen(rows: Sequence[Row], model: str) -> Optional[Row]:
    """GradSeg's pipeline of a model: tune.py's engine if it was measured, else the fastest that keeps the accuracy."""
    base = fastest(rows, model=model, name=EAGER)
    least = -math.inf if base is None or base.miou is None else 100 * base.miou - MAX_DROP
    kept = [row for row in rows if row.miou is None or 100 * row.miou >= least]
    return fastest(rows, model=model, ours=True, name=TUNED) or fastest(kept, model=model, ours=True)


def _against_peers(rows: Sequence[Row], ours: Row, least: Optional[float]) -> dict[str, Any]:
    """The tutorial on the same network, the best of all peers on it, and the reference network's tutorial."""
    peers = [
        (TUTORIAL, fastest(rows, model=ours.model, name=TUTORIAL), NEEDED_TUTORIAL),
        ("best peer", fastest(rows, model=ours.model, ours=False), NEEDED_BEST),
        (f"{REFERENCE} {TUTORIAL}", fastest(rows, model=REFERENCE, name=TUTORIAL), NEEDED_REFERENCE),
    ]
    return {
        f"{ours.model}: {name} / gradseg": {
            **figure(other.p50_ms / ours.p50_ms, needed if ours.model == SUBJECT else None),
            "of": f"{other.text} / {ours.text} ({ours.engine} {ours.precision})",
            "gradseg_floor_ms": least,
            "at_floor": None if least is None else other.p50_ms / least,
        }
        for name, other, needed in (peers[:2] if ours.model == REFERENCE else peers)
        if other is not None
    }


def _float_or_int8(rows: Sequence[Row], ours: Row) -> dict[str, Any]:
    """INT8, if it was chosen, is not slower than the best float engine of GradSeg's; nothing is asked of float."""
    best_float = fastest((row for row in rows if row.precision != "int8"), ours=True, model=ours.model)
    best_int8 = fastest(rows, ours=True, model=ours.model, precision="int8")
    needed = 1.0 if ours.precision == "int8" else None
    if best_float is None:
        return {**figure(None, needed), "of": f"no float engine was measured / {ours.text}", "best_int8": None}
    return {
        **figure(best_float.p50_ms / ours.p50_ms, needed),
        "of": f"{best_float.text} ({best_float.kind}) / {ours.text} ({ours.kind})",
        "best_int8": best_int8 and best_int8.text,
    }


def follows(rows: Sequence[Row], gmac: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Per class of engine and precision that ran the reference: model → (speed-up over it) / (operations saved).

    1 means that the milliseconds fell as the multiply-accumulates did. The fastest pipeline of a class stands for it.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind, model in dict.fromkeys((row.kind, row.model) for row in rows):
        base, row = fastest(rows, kind=kind, model=REFERENCE), fastest(rows, kind=kind, model=model)
        if base is None or row is None or model == REFERENCE:
            continue
        operations = gmac[REFERENCE] / gmac[model]
        found.setdefault(kind, {})[model] = {
            **figure(base.p50_ms / row.p50_ms / operations, NEEDED_OPERATIONS if row.ours else None),
            "network_only": base.network_ms / row.network_ms / operations,
            "speed_up": base.p50_ms / row.p50_ms,
            "operations": operations,
            "of": f"({base.text} / {row.text}) / ({gmac[REFERENCE]:.2f} GMAC / {gmac[model]:.2f} GMAC)",
        }
    return found


def figure(value: Optional[float], needed: Optional[float]) -> dict[str, Any]:
    """A ratio, what it must at least be (None: nothing is asked of it), and whether it is."""
    known = value if value is not None and math.isfinite(value) else None
    return {"value": known, "needed": needed, "met": None if needed is None else known is not None and known >= needed}


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
