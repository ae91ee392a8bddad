"""Writes a plan with what stands beside it: NAME.plan.json, the manifest that `engines.trt_manifest` checks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

from gradseg.base.conditions import conditions
from gradseg.base.files import atomic_path
from gradseg.export.trt.build import Built
from gradseg.export.trt.options import BuildOptions
from gradseg.models.spec import ModelSpec
from gradseg.runtime.cuda.gpu import Gpu
from gradseg.runtime.engines.trt_manifest import FORMAT, manifest_path

NOT_RUN = "built, not run"


@dataclass(frozen=True)
class Source:
    """What a plan was built from.

    onnx_name: the file beside the plan. frame_hw: height and width in pixels of what the plan takes. ranges_sha256: of
    the ranges file, None without one.
    """

    onnx: bytes
    onnx_name: str
    spec: ModelSpec
    precision: str
    frame_hw: Tuple[int, int]
    batch: int = 1
    ranges_sha256: Optional[str] = None


@dataclass(frozen=True)
class Verified:
    """What running the plan showed.

    agreement: share of the labels equal to those of `against`. latency_ms: p50, p90, p99 from frame in to labels out,
    transfers included, samples, cuda_graph.
    """

    status: str = NOT_RUN
    agreement: Optional[float] = None
    against: Optional[str] = None
    frames: int = 0
    latency_ms: Optional[Dict[str, Any]] = None
    extra: Dict[str, Any] = field(default_factory=dict)


def manifest_for(
    plan_name: str,
    built: Built,
    source: Source,
    options: BuildOptions,
    gpu: Optional[Gpu] = None,
    verified: Optional[Verified] = None,
) -> Dict[str, Any]:
    """The manifest of a plan as JSON types. gpu: the one in this machine, if the plan was built for it."""
    found = verified or Verified()
    targets = list(built.compute_capability)
    if not targets and gpu is not None and built.library == "tensorrt":
        targets = [gpu.compute_capability]
    return {
        "format": FORMAT,
        "plan": {"file": plan_name, "bytes": len(built.plan), "sha256": hashlib.sha256(built.plan).hexdigest()},
        "spec": source.spec.to_dict(),
        "frame_hw": list(source.frame_hw),
        "batch": source.batch,
        "onnx": {"file": source.onnx_name, "sha256": hashlib.sha256(source.onnx).hexdigest()},
        "ranges": {"sha256": source.ranges_sha256} if source.ranges_sha256 else None,
        "precision": source.precision,
        "library": built.library,
        "version": built.version,
        "compute_capability": targets or None,
        "gpu": {"name": gpu.name, "compute_capability": gpu.compute_capability} if gpu else None,
        "cuda": gpu.cuda if gpu else None,
        "driver": gpu.driver if gpu else None,
        "options": options.to_dict(),
        "builder_flags": list(built.flags),
        "build_seconds": round(built.seconds, 3),
        "verified": {
            "status": found.status,
            "agreement": found.agreement,
            "against": found.against,
            "frames": found.frames,
            **found.extra,
        },
        "latency_ms": found.latency_ms,
        "conditions": conditions(),
    }


def write_plan(plan: Path, built: Built, manifest: Dict[str, Any]) -> None:
    """Writes the plan and its manifest: both under temporary names first, renamed when both are complete.

    Raises GradsegError if the folder cannot be written; an old pair then stays as it was.
    """
    with atomic_path(plan) as temporary, atomic_path(manifest_path(plan)) as beside:
        temporary.write_bytes(built.plan)
        beside.write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", "utf-8")


@contextlib.contextmanager
def on_trial(plan: Path, built: Built, manifest: Dict[str, Any]) -> Iterator[Path]:
    """The plan with its manifest in a folder of its own beside its final place, to be run before it is saved."""
    plan.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{plan.stem}-", dir=str(plan.parent)) as folder:
        trial = Path(folder) / plan.name
        write_plan(trial, built, manifest)
        yield trial
