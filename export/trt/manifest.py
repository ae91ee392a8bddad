"""Writes a plan with what stands beside it: NAME.plan.json, the manifest that `engines.trt_manifest` checks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from gradseg.base.conditions import conditions
from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path, sha256_of
from gradseg.commands import command
from gradseg.export.trt.build import Built
from gradseg.export.trt.options import NOT_OF_RTX, BuildOptions, Library
from gradseg.export.trt.prepare import Prepared
from gradseg.export.trt.verify import Verified
from gradseg.runtime.cuda.gpu import Gpu
from gradseg.runtime.engines.trt_manifest import FORMAT, StalePlan, manifest_path, read_manifest


def manifest_for(
    plan_name: str,
    built: Built,
    source: Prepared,
    onnx_name: str,
    options: BuildOptions,
    gpu: Optional[Gpu] = None,
    found: Optional[Verified] = None,
) -> Dict[str, Any]:
    """The manifest of a plan as JSON types. gpu: the one in this machine, if the plan was built for it."""
    said = dict(vars(found or Verified()))
    latency, extra = said.pop("latency_ms"), said.pop("extra")
    targets = list(built.compute_capability)
    if not targets and gpu is not None and built.library == "tensorrt":
        targets = [gpu.compute_capability]
    return {
        "format": FORMAT,
        "plan": {"file": plan_name, "bytes": len(built.plan), "sha256": hashlib.sha256(built.plan).hexdigest()},
        "spec": source.spec.to_dict(),
        "frame_hw": list(source.frame_hw),
        "batch": source.batch,
        "onnx": {"file": onnx_name, "sha256": hashlib.sha256(source.data).hexdigest()},
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
        "verified": {**said, **extra},
        "latency_ms": latency,
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


def rebuild_arguments(plan: Path) -> Tuple[List[str], Optional[Dict[str, Any]]]:
    """The command line that builds the plan again from the ONNX beside it, and the manifest.

    Without a usable manifest the ONNX is NAME.onnx, which says itself what it is in; the build options are lost then,
    and the manifest is None. GradsegError if there is no such ONNX, or another one than the plan's.
    """
    again = f"build the plan again from its checkpoint: {command('export/to_trt.py', 'CKPT', '-o', plan)}"
    try:
        manifest: Optional[Dict[str, Any]] = read_manifest(plan)
    except StalePlan as error:
        manifest, onnx = None, plan.with_suffix(".onnx")
        if not onnx.is_file():
            raise GradsegError(
                f"{plan}: no usable {plan.name}.json, and no {onnx.name} to build it from beside it; {again}"
            ) from error
        print(f"note: {plan}: no usable {plan.name}.json; {onnx} is taken, with the default build options")
        return [str(onnx), "-o", str(plan)], None
    assert manifest is not None
    noted = manifest.get("onnx") or {}
    onnx = plan.with_name(Path(str(noted.get("file") or plan.with_suffix(".onnx").name)).name)  # always beside the plan
    renamed = plan.with_suffix(".onnx")
    if not onnx.is_file() and renamed.is_file() and sha256_of(renamed) == noted.get("sha256"):
        onnx = renamed  # all three files were given another name
    if not onnx.is_file():
        raise GradsegError(f"{plan}: the ONNX that it was built from, {onnx}, is not there; copy it along, or {again}")
    if sha256_of(onnx) != noted.get("sha256"):
        raise GradsegError(f"{onnx}: is another file than {plan} was built from (its SHA-256 differs); {again}")
    return [str(onnx), "--precision", str(manifest["precision"]), "-o", str(plan)], manifest


def rebuild_options(
    manifest: Dict[str, Any], plan: Path, given: BuildOptions, library: Optional[Library], gpu: Optional[Gpu]
) -> BuildOptions:
    """The recorded options, those given on this command line over them.

    Target GPUs are kept only for TensorRT-RTX; the GPU in this machine joins them.
    """
    recorded = BuildOptions.from_dict(dict(manifest["options"]), f"{plan}.json")
    changes = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(given)
        if getattr(given, field.name) != field.default and field.name != "precision"
    }
    if library is None or library[0] != "tensorrt_rtx":
        return dataclasses.replace(recorded, **changes, targets=())
    defaults = {name: getattr(BuildOptions, name) for name in NOT_OF_RTX}
    lacking = [name for name, default in defaults.items() if getattr(recorded, name) != default]
    if lacking:
        print(f"note: {plan}: recorded options that TensorRT for RTX does not have are left out: {', '.join(lacking)}")
    merged = dataclasses.replace(recorded, **{**defaults, **changes})
    if gpu is not None and merged.targets and gpu.compute_capability not in merged.targets:
        return dataclasses.replace(merged, targets=(*merged.targets, gpu.compute_capability))
    return merged
