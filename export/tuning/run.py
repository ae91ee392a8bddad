"""From a model to the records of all its candidates: prepared, built, measured, judged. What is known is not redone."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from gradseg.base.conditions import conditions
from gradseg.export.trt.best import DROP
from gradseg.export.tuning.bench import Workbench
from gradseg.export.tuning.candidates import (
    BASE,
    FIRST,
    ORT,
    Candidate,
    built,
    candidates,
    pinned,
    placed,
    record_of,
    unavailable,
)
from gradseg.export.tuning.judge import Judge, refuse_drop
from gradseg.export.tuning.machine import Placement, governor, noise_warnings, versions
from gradseg.export.tuning.measure import BUILT, Deadline, Measuring, Say
from gradseg.export.tuning.prepare import PLAIN, prepared
from gradseg.export.tuning.process import CandidateError, Worker
from gradseg.export.tuning.state import Record, Store
from gradseg.export.tuning.verdict import spread
from gradseg.export.tuning.words import fastest_of
from gradseg.models.spec import ModelSpec


@dataclasses.dataclass
class Tuned:
    """What `tuning.result` writes from. anew: whether anything was measured now. complete: whether nothing was left out
    for want of time. session: facts of the latest measurement, as JSON."""

    store: Store
    records: List[Record]
    spec: ModelSpec
    drop: float
    anew: bool
    complete: bool
    seconds: float
    notes: List[str]
    session: Dict[str, Any]


def tuned(
    args: argparse.Namespace, store: Store, folder: Path, where: Sequence[Placement], deadline: Deadline, say: Say
) -> Tuned:
    """folder: a temporary one. where: the usual placement of threads, then others to try on those in front."""
    load = os.getloadavg()[0]
    sources = prepared(store, args, say)
    deadline.mark_prepared()
    spec = ModelSpec.from_json(sources.spec, args.model)
    known = store.read("session")
    if known is not None:
        refuse_drop(args.max_drop, known["data"]["why_no_miou"])
    drop = DROP if args.max_drop is None else args.max_drop
    listed = candidates(sources)
    records = [_known(store, record_of(each, where[0])) for each in listed]
    base = store.folder / sources.floats[PLAIN]
    bench = Workbench(
        store, folder, lambda: Judge(args.data, spec, args.limit, args.max_drop), base, drop, where[0].threads
    )
    try:
        work = Measuring(bench, [each for each in records if each.name in FIRST], BASE, deadline, say)
        _build(listed, records, work, bench, FIRST)
        work.screen(always=True)
        _build(listed, records, work, bench)
        work.add([each for each in records if each.files or each.state])
        work.screen()
        more = _variants(listed, work, where, bench)
        records += more
        work.add(more)
        work.screen()
        work.settle()
        work.judge_all()
        _profile(work, bench)
    finally:  # also of a run that ends too soon: its figures are kept, so what is to be said of them is too
        bench.close()
        if bench.measured:
            _keep_session(args, store, bench, load, records)
    session = store.read("session") or _keep_session(args, store, bench, load, records)
    notes = [*sources.lines, *store.notes]
    return Tuned(store, records, spec, drop, bench.measured, not deadline.ran_out, deadline.spent, notes, session)


def _keep_session(
    args: argparse.Namespace, store: Store, bench: Workbench, load: float, records: Sequence[Record]
) -> Dict[str, Any]:
    """Notes the data and the conditions of this run; warnings of earlier ones stay, as their figures do."""
    before = store.read("session")
    judge = bench.judge
    unsteady = [(each.title, spread(each.turns)) for each in records if each.turns and not each.state]
    warnings = [*(before["warnings"] if before else []), *noise_warnings(load, bench.others_share, unsteady)]
    known = conditions(threads=args.threads, load_before=load, others_share=bench.others_share, governor=governor())
    known["versions"] = versions()
    data = {"source": args.data, "frames": judge.count, "labelled": judge.labelled, "why_no_miou": judge.why}
    session = {"data": data, "conditions": known, "warnings": list(dict.fromkeys(warnings))}
    store.write("session", session)
    return session


def _known(store: Store, fresh: Record) -> Record:
    """What is known of a candidate, or the record without figures."""
    found = store.record(fresh.name) or fresh
    if found.state == "refused" and found.score is not None:  # by another --max-drop, perhaps
        found.state, found.reason = "", ""
    return found


def _variants(
    listed: Sequence[Candidate], work: Measuring, where: Sequence[Placement], bench: Workbench
) -> List[Record]:
    """Those in front with their threads placed otherwise. Who is in front is decided once."""
    front = bench.store.read("front")
    if front is None:
        front = work.front()
        bench.store.write("front", front)
    made: List[Record] = []
    for record in [work.records[each.name] for each in listed if each.name in front]:
        made += [_known(bench.store, placed(record, each)) for each in where[1:] if record.files]
    more = next(filter(None, (pinned(each) for name in front for each in listed if each.name == name)), [])
    records = [_known(bench.store, record_of(each, where[0])) for each in more]
    _build(more, records, work, bench)
    return [*made, *(each for each in records if each.files or each.state)]


def _build(
    listed: Sequence[Candidate], records: Sequence[Record], work: Measuring, bench: Workbench, first: Sequence[str] = ()
) -> None:
    """Builds what is not built yet, in a process that may crash: a new one follows it. first: only these, however short
    the time."""
    with contextlib.ExitStack() as stack:
        builder: Optional[Worker] = None
        for candidate, record in zip(listed, records):
            if record.files or record.state or (first and candidate.name not in first):
                continue
            why = unavailable(candidate)
            if why:
                record.state, record.reason = "unavailable", why
            elif not first and not work.deadline.allows(until=BUILT):
                continue
            else:
                work.say(f"building: {candidate.title}")
                try:
                    if builder is None or not builder.alive:
                        builder = stack.enter_context(bench.worker())
                    built(candidate, record, bench.store, builder)
                except CandidateError as error:
                    record.state, record.reason = error.state, str(error)
            bench.store.keep(record)


def _profile(work: Measuring, bench: Workbench) -> None:
    """Where ONNX Runtime's best INT8 and float32 spend their time: why one of them lost."""
    ort = [each for each in work.records.values() if each.engine == ORT]
    for some in ([e for e in ort if e.precision == "int8"], [e for e in ort if e.exact]):
        best = fastest_of(some)
        if best is None or best.operators or not work.deadline.allows(1.0):
            continue
        work.say(f"looking into {best.title}")
        with contextlib.suppress(CandidateError):  # it is only an explanation
            best.operators = bench.operators(best)
            bench.keep(best)
