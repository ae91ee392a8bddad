"""What tune.py tries: engine × precision × rewrite, each with what it is built from and why it may not be there."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional

from gradseg.base.files import sha256_of
from gradseg.export.tuning.machine import Placement, has_bf16
from gradseg.export.tuning.prepare import PLAIN, Sources
from gradseg.export.tuning.process import BUILD, CandidateError, Worker
from gradseg.export.tuning.state import Record, Store

TORCH, ORT, OPENVINO, NATIVE = "PyTorch", "ONNX Runtime", "OpenVINO", "GradSeg native"
MODULES = {TORCH: "torch", ORT: "onnxruntime", OPENVINO: "openvino"}
BUILDS = {TORCH: ("copy", ".pth"), ORT: ("copy", ".onnx"), OPENVINO: ("openvino", ".xml"), NATIVE: ("native", ".gsn")}
BASE = f"ort-fp32-{PLAIN}"  # FP32 as exported: whose labels and mIoU the others are held against
FIRST = (BASE, "native-int8", "ort-int8-cpu")  # built and looked at before all others, however short the time


@dataclass(frozen=True)
class Candidate:
    """precision: fp32, bf16 or int8. rewrite: in words. source: file in the work folder, None where there is none, and
    then `missing` says why. hint, pinning: see `tuning.worker.build`. base: whose labels it has as its variant."""

    name: str
    engine: str
    precision: str
    rewrite: str
    source: Optional[str]
    missing: str = ""
    hint: str = ""
    pinning: Optional[bool] = None
    base: str = ""

    @property
    def title(self) -> str:
        return f"{self.engine} {self.precision.replace('fp32', 'FP32').replace('int8', 'INT8')}, {self.rewrite}"


def candidates(sources: Sources) -> List[Candidate]:
    """The base first, then the promising ones: where time is short, the last are left out."""
    forms, words = sources.floats, "rewritten for it"
    plain = forms[PLAIN]

    def int8(name: str, engine: str, rewrite: str, kind: str, hint: str = "") -> Candidate:
        return Candidate(name, engine, "int8", rewrite, sources.int8.get(kind), sources.missing.get(kind, ""), hint)

    found = [
        Candidate(BASE, ORT, "fp32", "as exported", plain),
        int8("native-int8", NATIVE, "fused blocks", "native"),
        int8("ort-int8-cpu", ORT, "grouped convolutions as dense ones", "cpu"),
        int8("openvino-int8", OPENVINO, f"{words}, the rest in float32", "openvino", "f32"),
        Candidate("openvino-fp32", OPENVINO, "fp32", words, plain, hint="f32"),
        Candidate("openvino-bf16", OPENVINO, "bf16", words, plain, hint="bf16"),
        int8("openvino-int8-bf16", OPENVINO, f"{words}, the rest in bf16", "openvino", "bf16"),
        *(Candidate(f"ort-fp32-{n}", ORT, "fp32", sources.words[n], forms[n]) for n in forms if n != PLAIN),
        int8("ort-int8-groups", ORT, "true groups", "groups"),
    ]
    if sources.checkpoint is not None:
        found.append(Candidate("torch-fp32", TORCH, "fp32", "eager, as trained", sources.checkpoint))
    return found


def pinned(candidate: Candidate) -> List[Candidate]:
    """The same with OpenVINO's threads kept to their cores, and with them left to the system; others have no choice."""
    if candidate.engine != OPENVINO:
        return []
    name, rewrite = candidate.name, f"{candidate.rewrite}, threads "
    return [
        replace(candidate, name=f"{name}-pinned", rewrite=f"{rewrite}kept to their cores", pinning=True, base=name),
        replace(candidate, name=f"{name}-loose", rewrite=f"{rewrite}left to the system", pinning=False, base=name),
    ]


def unavailable(candidate: Candidate) -> str:
    """Why a candidate cannot be tried here, or ''."""
    module = MODULES.get(candidate.engine)
    if module is not None and importlib.util.find_spec(module) is None:
        return f"{candidate.engine} is not installed here: pip install {module}"
    if candidate.hint == "bf16" and not has_bf16():
        return "this CPU has no bfloat16 arithmetic"
    if candidate.source is None:
        return candidate.missing or "its model could not be made"
    return ""


def record_of(candidate: Candidate, placement: Placement) -> Record:
    """A record without figures."""
    names = (candidate.name, candidate.title, candidate.engine, candidate.precision, candidate.rewrite)
    return Record(*names, placement.threads, list(placement.cpus), base=candidate.base)


def built(candidate: Candidate, record: Record, store: Store, worker: Worker) -> None:
    """Builds the candidate in the worker's process and notes its files; CandidateError if that cannot be done."""
    assert candidate.source is not None
    how, suffix = BUILDS[candidate.engine]
    given = {"source": str(store.folder / candidate.source), "hint": candidate.hint, "pinning": candidate.pinning}
    out = str(store.folder / "engines" / f"{candidate.name}{suffix}")
    files = [Path(path) for path in worker.ask("build", BUILD, how=how, out=out, **given)["files"]]
    if not files:
        raise CandidateError("nothing was built")
    record.files = [str(path.relative_to(store.folder)) for path in files]
    record.digests = [sha256_of(path) for path in files]
    record.size_bytes = sum(path.stat().st_size for path in files)


def placed(record: Record, placement: Placement) -> Record:
    """The same engine with its threads elsewhere, nothing measured yet."""
    name, title = f"{record.name}@{placement.threads}", f"{record.title}, {placement.words}"
    where = {"threads": placement.threads, "cpus": list(placement.cpus), "base": record.name}
    anew: Dict[str, Any] = {"screening": [], "turns": {}, "memory_bytes": 0}
    return Record.from_dict({**record.to_dict(), "name": name, "title": title, **where, **anew})
