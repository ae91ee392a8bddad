"""The result file of gpu.py: rows that survive a kill, the checks, and the table. Python 3.8.

A row is one engine: planned → built → checked (labels) → measured, or failed or skipped with the reason in "error".
The file is written after every step.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from gradseg.base.errors import GradsegError
from gradseg.base.files import read_json, write_json
from gradseg.benchmarks.common.tables import aligned

FORMAT = "gradseg.gpu/1"
PLANNED, BUILT, CHECKED, MEASURED, FAILED, SKIPPED = "planned", "built", "checked", "measured", "failed", "skipped"
ENDED = (MEASURED, FAILED, SKIPPED)
TENSORRT, STAND_IN, TORCH = "tensorrt", "stand-in", "torch"
FP32_NEEDED, FP16_NEEDED, MIOU_NEEDED, EAGER_NEEDED = 0.9999, 0.995, 0.5, 5.0
MOST_ATTEMPTS = 2  # at one step of a row that the process did not survive
# what must be equal for a run to go on where another one stopped
IDENTITY = ("pack", "gpu", "library", "version", "stand_in", "settings")


def row_id(model: str, engine: str, precision: str, border: str) -> str:
    """Such as "erfnet/tensorrt/int8/network"."""
    return f"{model}/{engine}/{precision}/{border}"


class Results:
    """The file's content, `data`, and how it changes."""

    def __init__(self, path: Path, data: Dict[str, Any]) -> None:
        self.path, self.data = path, data

    @staticmethod
    def new(path: Path, identity: Dict[str, Any], rows: Sequence[Dict[str, Any]], facts: Dict[str, Any]) -> Results:
        """A file with every row planned. identity: the fields of `IDENTITY`. facts: the others."""
        planned = [{**row, "status": PLANNED, "error": None, "attempts": {}} for row in rows]
        return Results(path, {"format": FORMAT, "complete": False, **identity, **facts, "rows": planned, "checks": []})

    @staticmethod
    def read(path: Path) -> Results:
        data = read_json(path, "the result of an earlier gpu.py")
        if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("rows"), list):
            raise GradsegError(
                f"{path}: is not a result of gpu.py ({FORMAT}); leave --resume out, or name another --json"
            )
        return Results(path, data)

    def check_same(self, identity: Dict[str, Any]) -> None:
        """GradsegError naming the first field that differs from an earlier run's."""
        for name in IDENTITY:
            before, now = self.data.get(name), identity[name]
            if before != now:
                raise GradsegError(
                    f"{self.path}: --resume goes on with the same run only; {name} was {before!r} and is {now!r} now. "
                    "Leave --resume out to start afresh, or name another --json"
                )

    def save(self) -> None:
        write_json(self.path, self.data)

    @property
    def rows(self) -> List[Dict[str, Any]]:
        rows: List[Dict[str, Any]] = self.data["rows"]
        return rows

    def of_model(self, model: str, torch: Optional[bool] = None) -> List[Dict[str, Any]]:
        """A model's rows; only PyTorch's or only the others, if asked."""
        mine = [row for row in self.rows if row["model"] == model]
        return [row for row in mine if torch is None or torch is (row["engine"] == TORCH)]

    def unfinished(self, model: str) -> List[Dict[str, Any]]:
        return [row for row in self.of_model(model) if row["status"] not in ENDED]

    def begin(self, row: Dict[str, Any], step: str) -> bool:
        """Notes that a step starts, so that a crash in it is known; False if it was not survived too often before."""
        done = row["attempts"].get(step, 0)
        if done >= MOST_ATTEMPTS:
            self.fail(row, f"the process ended {done} times while it was {step}: a crash, or no time left for it")
            return False
        row["attempts"][step], row["error"] = done + 1, None
        self.save()
        return True

    def survived(self, row: Dict[str, Any], step: str) -> None:
        row["attempts"].pop(step, None)

    def fail(self, row: Dict[str, Any], why: str, status: str = FAILED) -> None:
        row["status"], row["error"] = status, " ".join(why.split())[:500] or "no reason given"
        self.save()

    def finish(self, scored: Dict[str, bool]) -> None:
        """Works out the checks; complete if every row has ended."""
        self.data["complete"] = all(row["status"] in ENDED for row in self.rows)
        self.data["checks"] = checks_of(self.rows, scored, self.data["stand_in"])
        self.save()

    @property
    def exit_code(self) -> int:
        """0 if every row was measured or skipped and no check fails, else 1."""
        bad = [row for row in self.rows if row["status"] not in (MEASURED, SKIPPED)]
        return 1 if bad or any(check["holds"] is False for check in self.data["checks"]) else 0


def checks_of(rows: Sequence[Dict[str, Any]], scored: Dict[str, bool], stand_in: Optional[str]) -> List[Dict[str, Any]]:
    """What has to hold of the rows: {"name", "needed", "found", "holds", "note"}; holds is None where it is not known.

    scored: by model, whether its mIoU means something. stand_in: what ran in TensorRT's place; then nothing is claimed
    about speed.
    """
    found: List[Dict[str, Any]] = []
    by_id, engine = {row["id"]: row for row in rows}, STAND_IN if stand_in else TENSORRT
    for model in dict.fromkeys(row["model"] for row in rows):
        for border in dict.fromkeys(row["border"] for row in rows if row["model"] == model):
            mine = {name: by_id.get(row_id(model, engine, name, border)) for name in ("fp32", "fp16", "int8")}
            found += _label_checks(model, border, mine, scored.get(model, False))
            place = "" if border == "network" else ", resize inside"
            int8, fp16 = (inference_ms(mine[precision]) for precision in ("int8", "fp16"))
            name = f"{model} int8{place}: inference p50 not above FP16's"
            if stand_in or int8 is None or fp16 is None:
                found.append(_check(name, "<= FP16's", None, None, _no_speed(stand_in)))
            else:
                found.append(_check(name, f"<= {fp16:.4f} ms", int8, int8 <= fp16))
        found.append(_against_eager(model, rows, stand_in))
    return found


def _check(name: str, needed: str, found: Optional[float], holds: Optional[bool], note: str = "") -> Dict[str, Any]:
    return {"name": name, "needed": needed, "found": found, "holds": holds, "note": note}


def _label_checks(
    model: str, border: str, rows: Dict[str, Optional[Dict[str, Any]]], scored: bool
) -> List[Dict[str, Any]]:
    place = "" if border == "network" else ", resize inside"
    found = []
    for precision, needed in (("fp32", FP32_NEEDED), ("fp16", FP16_NEEDED)):
        row = rows[precision]
        if row is None:
            continue
        share = _at(row, "labels", "agreement")
        name = f"{model} {precision}{place}: labels equal to ONNX Runtime's"
        holds = None if share is None else share >= needed
        note = _reason(row) or str(_at(row, "labels", "left_out") or "")
        found.append(_check(name, f">= {100 * needed:g} %", None if share is None else 100 * share, holds, note))
    row = rows["int8"]
    if row is not None and border == "network":
        change = _at(row, "labels", "miou_change_points") if scored else None
        note = _reason(row) or ("" if scored else "untrained, or trained on other classes: mIoU says nothing")
        holds = None if change is None else abs(change) <= MIOU_NEEDED
        name = f"{model} int8: mIoU against FP32 in ONNX Runtime"
        found.append(_check(name, f"within {MIOU_NEEDED:g} points", change, holds, note))
    return found


def _against_eager(model: str, rows: Sequence[Dict[str, Any]], stand_in: Optional[str]) -> Dict[str, Any]:
    name, needed = f"{model}: end to end p50, PyTorch eager over the fastest engine", f">= {EAGER_NEEDED:g}"
    times = {row["id"]: (row["engine"], end_to_end_ms(row)) for row in rows if row["model"] == model}
    _, eager = times.get(row_id(model, TORCH, "eager", "network"), (TORCH, None))
    known = {key: value for key, (engine, value) in times.items() if engine != TORCH and value is not None}
    if stand_in or eager is None or not known:
        return _check(name, needed, None, None, _no_speed(stand_in))
    best = min(known, key=lambda key: known[key])
    ratio = eager / known[best]
    return _check(name, needed, ratio, ratio >= EAGER_NEEDED, f"{best}: {known[best]:.4f} ms, eager {eager:.4f} ms")


def _no_speed(stand_in: Optional[str]) -> str:
    return f"a stand-in ran: {stand_in}" if stand_in else "not measured"


def _reason(row: Dict[str, Any]) -> str:
    return f"{row['status']}: {row['error']}" if row["error"] else ""


def _at(row: Optional[Dict[str, Any]], *keys: str) -> Any:
    """A value deep in a row; None if it is not there."""
    found: Any = row
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _way(row: Optional[Dict[str, Any]]) -> Any:
    """What was measured with a CUDA graph if there is one, else without."""
    return _at(row, "ways", "graph") or _at(row, "ways", "plain") or {}


def inference_ms(row: Optional[Dict[str, Any]]) -> Optional[float]:
    """p50 of the inference alone, in milliseconds, with a CUDA graph if there is one."""
    found: Optional[float] = _at(_way(row), "stages", "inference", "p50")
    return found


def end_to_end_ms(row: Optional[Dict[str, Any]]) -> Optional[float]:
    """p50 from frame to labels, in milliseconds, with a CUDA graph if there is one."""
    found: Optional[float] = _at(_way(row), "end_to_end", "p50")
    return found


def table(data: Dict[str, Any]) -> str:
    """The rows as aligned text: milliseconds, with a CUDA graph where there is one; then the checks."""
    head = ["engine", "build s", "labels %", "mIoU", "upload", "infer p50", "p90", "p99", "download", "e2e p50", "p99"]
    head += ["no graph", "FPS x2", "x fused", "x arith"]
    lines = [head]
    for row in data["rows"]:
        if row["status"] != MEASURED:
            lines.append([row["id"], f"{row['status']}: {row['error'] or 'not run'}"[:150]])
            continue
        way, share = _way(row), _at(row, "labels", "agreement")
        stages = [(name, "p50") for name in ("upload", "inference")]
        stages += [("inference", "p90"), ("inference", "p99"), ("download", "p50")]
        times = [_at(way, "stages", *keys) for keys in stages]
        times += [_at(way, "end_to_end", name) for name in ("p50", "p99")]
        times.append(_at(row, "ways", "plain", "end_to_end", "p50") if _at(row, "ways", "graph") else None)
        facts = [(_at(row, "build", "seconds"), 1), (share and 100 * share, 4), (_at(row, "labels", "miou"), 4)]
        facts += [*((each, 3) for each in times), (way.get("two_in_flight_fps"), 0)]
        facts += [(_at(row, "distance", name), 1) for name in ("memory_fused", "arithmetic")]
        lines.append([row["id"], *("-" if value is None else f"{value:.{digits}f}" for value, digits in facts)])
    shown = [f"NOT A GPU'S FIGURES: {data['stand_in']}"] if data["stand_in"] else []
    shown += aligned(lines)
    words = {True: "holds", False: "DOES NOT HOLD", None: "not known"}
    for check in data["checks"]:
        value = "" if check["found"] is None else f", found {check['found']:.4f}"
        note = f" ({check['note']})" if check["note"] else ""
        shown.append(f"{words[check['holds']]}: {check['name']}, needed {check['needed']}{value}{note}")
    return os.linesep.join(shown)
