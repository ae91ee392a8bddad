"""tune.py's finding as JSON and as one HTML page that needs nothing else."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from gradseg.base.markup import ABSENT, Cell, Markup, bullets, document, escaped, percent, points, table, tag
from gradseg.export.tuning.state import Record
from gradseg.export.tuning.verdict import Decision, all_frames
from gradseg.export.tuning.words import lost, ordered, outcome, p, turns_of

BAR, LINE, LABELS, WIDTH = 12, 22, 430, 1000  # of the picture, in its own units


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


def page(result: Mapping[str, Any], records: Sequence[Record], decision: Decision) -> str:
    """result: what stands in `tune.json`."""
    base = next(record for record in records if record.name == result["fp32"])
    model = result["model"]
    warnings = [tag("p", f"Warning: {text}.", "bad") for text in result["warnings"]]
    parts = [
        tag("h1", f"The fastest engine for {model['file']} here"),
        tag("p", Markup(tag("strong", result["verdict"][0]))),
        *warnings,
        bullets(result["verdict"][1:]),
        tag("h2", "Latency"),
        bars(records, decision),
        tag("h2", "Every candidate"),
        candidates_table(records, decision, base),
        tag("h2", "What was compared"),
        tag("p", _method(result)),
        bullets(result["notes"]) if result["notes"] else "",
        tag("h2", "Conditions"),
        tag("pre", json.dumps(result["conditions"], indent=2, ensure_ascii=False)),
    ]
    return document(f"Tuned: {model['file']}", [part for part in parts if part])


def _method(result: Mapping[str, Any]) -> str:
    """How the figures were come by."""
    data, (height, width) = result["data"], result["model"]["input_hw"]
    if data["labelled"]:
        judged = f"mIoU is of {data['frames']} labelled frames of {data['source']}; at most {result['max_drop']:g} "
        judged += "points may be lost against FP32 as exported."
    else:
        judged = f"There is no mIoU ({data['why_no_miou']}): labels are compared with those of FP32 as exported, on "
        judged += f"{data['frames']} frames of {data['source']}."
    return (
        "Each candidate ran in a process of its own, asleep while another one ran. They took turns of some frames, the "
        f"first of each turn untimed, in up to {result['rounds']} rounds; who was surely behind took part in fewer. "
        "Ratios are those of turns of the same round, in brackets the 95 % interval over the rounds. Times are from "
        f"frame to labels at {height}x{width}, without resizing. Float32 forms must give FP32's labels on the timed "
        "frames, near-ties aside; candidates with fewer bits win only if they are surely faster than the best float32 "
        f"one. {judged} Memory is the most that the candidate's whole process took."
    )


def candidates_table(records: Sequence[Record], decision: Decision, base: Record) -> str:
    head: List[Cell] = [
        "Candidate",
        "p50 ms",
        "p99 ms",
        "To the winner",
        "Frames",
        "mIoU %",
        "Change, points",
        "FP32's labels %",
        "Size, MB",
    ]
    head += ["Memory, MB", "Threads", _text("What came of it")]
    rows: List[Tuple[str, Sequence[Cell]]] = []
    for record in ordered(records):
        score, change = record.score or {}, lost(record, base)
        found = decision.ratios.get(record.name)
        style = "best" if record.name == decision.winner else "float" if record is base else ""
        said = outcome(record, decision)
        if not record.screening:
            rows.append((style, [record.title, *[ABSENT] * (len(head) - 2), _text(said)]))
            continue
        cells: List[Cell] = [
            record.title,
            f"{p(record, 0.5):.2f}",
            f"{p(record, 0.99):.2f}",
            ABSENT if found is None else f"{found.value:.2f}",
            str(len(all_frames(turns_of(record)))),
            percent(score.get("miou")),
            ABSENT if change is None else points(-change),
            percent(score.get("agreement"), 3),
            f"{record.size_bytes / 1e6:.2f}",
            f"{record.memory_bytes / 1e6:.0f}",
            str(record.threads or ABSENT),
            _text("; ".join([said, *record.notes])),
        ]
        rows.append((style, cells))
    return table("Green: what won. Grey: FP32 as exported", head, rows)


def _text(said: str) -> Cell:
    """A sentence in a table of figures: it may wrap."""
    return Markup(tag("span", said, "words"))


def bars(records: Sequence[Record], decision: Decision) -> str:
    """The medians as bars, a line to the 99th percentile."""
    shown = [record for record in ordered(records) if record.screening]
    most = max((p(record, 0.99) or 0.0 for record in shown), default=1.0) or 1.0
    scale = (WIDTH - LABELS - 90) / most
    parts = []
    for index, record in enumerate(shown):
        top, median, far = index * LINE, p(record, 0.5) or 0.0, p(record, 0.99) or 0.0
        won = record.name == decision.winner
        colour = "#3b8a57" if won else "#b8c2cf" if record.state else "#2f5d9b"
        middle = top + LINE / 2
        parts.append(
            f'<text x="{LABELS - 8}" y="{middle + 4:.0f}" text-anchor="end" font-weight="{600 if won else 400}">'
            f"{escaped(_short(record.title, 54 if won else 62))}</text>"
            f'<rect x="{LABELS}" y="{middle - BAR / 2:.0f}" width="{median * scale:.1f}" height="{BAR}" '
            f'fill="{colour}"/>'
            f'<line x1="{LABELS + median * scale:.1f}" x2="{LABELS + far * scale:.1f}" y1="{middle:.0f}" '
            f'y2="{middle:.0f}" stroke="#1b1f24"/>'
            f'<text x="{LABELS + far * scale + 6:.1f}" y="{middle + 4:.0f}">{median:.2f}</text>'
        )
    caption = "Milliseconds per frame: median as a bar, the line goes to the 99th percentile; pale: thrown out."
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {max(1, len(shown)) * LINE}" role="img" font-size="12" '
        f'aria-label="{escaped(caption)}" style="width:100%;font-family:inherit">{"".join(parts)}</svg>'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def _short(title: str, most: int) -> str:
    return title if len(title) <= most else f"{title[: most - 1]}…"
