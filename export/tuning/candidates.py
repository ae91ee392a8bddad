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
BASE = f"ort-fp32-{PLAIN}"  # FP32 as exported: whose labels and mIoU the others are held against
FIRST = (BASE, "native-int8", "ort-int8-cpu")  # built and looked at before all others, however short the time


@dataclass(frozen=True)
class Candidate:
    """precision: fp32, bf16 or int8. rewrite: in words. source: file in the work folder, None where there is none, and
    then `missing` says why. how, hint, pinning: see `tuning.build`. base: whose labels it has as its variant."""

    name: str
    engine: str
    precision: str
    rewrite: str
    how: str
    suffix: str
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
    forms = sources.floats
    base = Candidate(BASE, ORT, "fp32", "as exported", "copy", ".onnx", forms[PLAIN])
    int8 = []
    for name, words in (("cpu", "grouped convolutions as dense ones"), ("groups", "true groups")):
        where = sources.int8.get(name), sources.missing.get(name, "")
        int8.append(Candidate(f"ort-int8-{name}", ORT, "int8", words, "copy", ".onnx", *where))
    found = [base, *_native(sources), int8[0], *_openvino(sources)]
    for name, file in forms.items():
        if name != PLAIN:
            found.append(Candidate(f"ort-fp32-{name}", ORT, "fp32", sources.words[name], "copy", ".onnx", file))
    found += int8[1:]
    if sources.checkpoint is not None:
        found.append(Candidate("torch-fp32", TORCH, "fp32", "eager, as trained", "copy", ".pth", sources.checkpoint))
    return found


def _native(sources: Sources) -> List[Candidate]:
    where = sources.int8.get("native"), sources.missing.get("native", "")
    return [Candidate("native-int8", NATIVE, "int8", "fused blocks", "native", ".gsn", *where)]


def _openvino(sources: Sources) -> List[Candidate]:
    plain, words = sources.floats[PLAIN], "rewritten for it"
    where = sources.int8.get("openvino"), sources.missing.get("openvino", "")
    int8 = Candidate(
        "openvino-int8", OPENVINO, "int8", f"{words}, the rest in float32", "openvino", ".xml", *where, "f32"
    )
    bf16 = Candidate(
        "openvino-int8-bf16", OPENVINO, "int8", f"{words}, the rest in bf16", "openvino", ".xml", *where, "bf16"
    )
    return [
        int8,
        Candidate("openvino-fp32", OPENVINO, "fp32", words, "openvino", ".xml", plain, hint="f32"),
        Candidate("openvino-bf16", OPENVINO, "bf16", words, "openvino", ".xml", plain, hint="bf16"),
        bf16,
    ]


def pinned(candidate: Candidate) -> List[Candidate]:
    """The same with OpenVINO's threads kept to their cores, and with them left to the system; others have no choice."""
    if candidate.engine != OPENVINO:
        return []
    ways = ((True, "threads kept to their cores", "pinned"), (False, "threads left to the system", "loose"))
    return [
        replace(
            candidate,
            name=f"{candidate.name}-{short}",
            rewrite=f"{candidate.rewrite}, {words}",
            pinning=pinning,
            base=candidate.name,
        )
        for pinning, words, short in ways
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
    made = Record(candidate.name, candidate.title, candidate.engine, candidate.precision, candidate.rewrite)
    made.threads, made.cpus, made.base = placement.threads, list(placement.cpus), candidate.base
    return made


def built(candidate: Candidate, record: Record, store: Store, worker: Worker) -> None:
    """Builds the candidate in the worker's process and notes its files; CandidateError if that cannot be done."""
    assert candidate.source is not None
    out = store.folder / "engines" / f"{candidate.name}{candidate.suffix}"
    given: Dict[str, Any] = {
        "how": candidate.how,
        "source": str(store.folder / candidate.source),
        "out": str(out),
        "hint": candidate.hint,
        "pinning": candidate.pinning,
    }
    files = [Path(path) for path in worker.ask("build", BUILD, **given)["files"]]
    if not files:
        raise CandidateError("nothing was built")
    record.files = [str(path.relative_to(store.folder)) for path in files]
    record.digests = [sha256_of(path) for path in files]
    record.size_bytes = sum(path.stat().st_size for path in files)


def placed(record: Record, placement: Placement) -> Record:
    """The same engine with its threads elsewhere, nothing measured yet."""
    made = Record.from_dict(record.to_dict())
    made.name, made.base = f"{record.name}@{placement.threads}", record.name
    made.title = f"{record.title}, {placement.words}"
    made.threads, made.cpus = placement.threads, list(placement.cpus)
    made.screening, made.turns, made.memory_bytes = [], {}, 0
    return made
