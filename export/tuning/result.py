"""Writes what tune.py found: the engine that won, tune.json and tune.html."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from pathlib import Path
from typing import Any, Dict, List, Sequence

from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path, sha256_of, write_json, write_text
from gradseg.commands import command
from gradseg.export.tuning.candidates import BASE
from gradseg.export.tuning.measure import ROUNDS
from gradseg.export.tuning.page import page, row
from gradseg.export.tuning.run import Tuned
from gradseg.export.tuning.state import Record
from gradseg.export.tuning.words import decision_of, ordered, text_table, verdict

SUFFIXES = (".onnx", ".xml", ".bin", ".gsn", ".pth")  # of engines that may have won before


def write_result(found: Tuned, args: argparse.Namespace, out: Path, words: Sequence[str]) -> List[str]:
    """Writes everything into the folder `out`; gives what to tell the user."""
    decision = decision_of(found.records)
    if decision is None:
        raise GradsegError(f"{args.model}: no candidate could be measured; more --time-budget is needed")
    by_name = {record.name: record for record in found.records}
    winner, base = by_name[decision.winner], by_name[BASE]
    files = _engine(found, winner, out)
    said = verdict(found.records, decision, base)
    warnings = list(found.session["warnings"])
    result: Dict[str, Any] = {
        "engine": files[0],
        "files": files,
        "candidate": winner.name,
        "precision": winner.precision,
        "threads": winner.threads,
        "cpus": winner.cpus or None,
        "verdict": said,
        "warnings": warnings,
        "notes": found.notes,
        "complete": found.complete,
        "measured_now": found.anew,
        "seconds": round(found.seconds, 1),
        "max_drop": found.drop,
        "rounds": ROUNDS,
        "fp32": BASE,
        "model": {
            "file": Path(args.model).name,
            "sha256": sha256_of(args.model),
            "arch": found.spec.arch,
            "input_hw": list(found.spec.input_hw),
        },
        "data": found.session["data"],
        "candidates": [row(record, decision, base) for record in ordered(found.records)],
        "conditions": {**found.session["conditions"], "command": command("export/tune.py", *words)},
    }
    text = page(result)
    write_json(out / "tune.json", result)
    write_text(out / "tune.html", text)
    old = "nothing is new since it was measured, so the figures are those (--force measures again)"
    lines = [*found.notes, *([] if found.anew else [old]), *text_table(found.records, decision, base), *said]
    lines += [f"warning: {each}: measure again on a quiet machine" for each in warnings]
    if not found.complete:
        lines.append("the time was over before everything was measured; the same command goes on")
    return [
        *lines,
        f"wrote {out / files[0]}, {out / 'tune.json'} and {out / 'tune.html'}",
        run_line(winner, out / files[0], args),
    ]


def run_line(winner: Record, engine: Path, args: argparse.Namespace) -> str:
    """The command that runs the engine as it was measured."""
    pinned = f"taskset -c {','.join(map(str, winner.cpus))} " if winner.cpus else ""
    threads = ("--threads", winner.threads) if winner.cpus or args.threads else ()
    return f"run it: {pinned}{command('runtime/run_video.py', '--engine', engine, *threads, 'SOURCE')}"


def _engine(found: Tuned, winner: Record, out: Path) -> List[str]:
    """Copies the winner's files to OUT/engine.*, the engine's own last; gives their names, the engine's first."""
    names = [f"engine{Path(file).suffix}" for file in winner.files]
    for file, name in list(zip(winner.files, names))[::-1]:
        with atomic_path(out / name) as temporary:
            shutil.copyfile(str(found.store.folder / file), str(temporary))
    for name in {f"engine{suffix}" for suffix in SUFFIXES} - {*names}:
        with contextlib.suppress(OSError):
            (out / name).unlink()
    return names
