"""tune.py's finding as JSON and as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Mapping

from gradseg.base.pages import rendered
from gradseg.export.tuning.state import Record
from gradseg.export.tuning.verdict import Decision, all_frames
from gradseg.export.tuning.words import lost, outcome, p, turns_of


def row(record: Record, decision: Decision, base: Record) -> Dict[str, Any]:
    """A candidate as `tune.json` has it."""
    found = decision.ratios.get(record.name)
    frames = all_frames(turns_of(record))
    score = record.score or {"miou": None, "agreement": None, "per_class": None, "frames": 0}
    return {
        "name": record.name,
        "title": record.title,
        "engine": record.engine,
        "backend": record.backend or None,
        "precision": record.precision,
        "rewrite": record.rewrite,
        "threads": record.threads,
        "cpus": record.cpus or None,
        "outcome": outcome(record, decision),
        "won": record.name == decision.winner,
        "state": record.state or ("measured" if record.screening else "not measured"),
        "p50_ms": p(record, 0.5),
        "p90_ms": p(record, 0.9),
        "p99_ms": p(record, 0.99),
        "samples": len(frames),
        "rounds": len(record.turns),
        "over_winner": None if found is None else _interval(found.value, found.low, found.high, found.rounds),
        "miou": score["miou"],
        "drop_points": lost(record, base),
        "per_class": score["per_class"],
        "labels_as_fp32": score["agreement"],
        "labels_as_fp32_near_ties_aside": record.agreement,
        "scored_frames": score["frames"],
        "size_bytes": record.size_bytes or None,
        "memory_bytes": record.memory_bytes or None,
        "operators_ms": record.operators or None,
        "notes": record.notes,
        "measured": record.measured or None,
    }


def _interval(value: float, low: float, high: float, rounds: int) -> Dict[str, Any]:
    known = rounds > 1  # one round has no interval, and infinity no JSON
    return {"ratio": value, "low": low if known else None, "high": high if known else None, "rounds": rounds}


def page(result: Mapping[str, Any]) -> str:
    """result: what stands in `tune.json`."""
    return rendered(Path(__file__).with_name("tune.html.j2"), **result)
