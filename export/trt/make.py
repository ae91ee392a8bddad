"""One plan: built, run on this machine's GPU if it can be, and written with its ONNX and manifest."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from gradseg.base.errors import GradsegError
from gradseg.base.files import check_writable, sha256_of
from gradseg.export.trt.build import Built, build_plan
from gradseg.export.trt.manifest import manifest_for, on_trial, write_plan
from gradseg.export.trt.options import BuildOptions
from gradseg.export.trt.prepare import Prepared
from gradseg.export.trt.verify import NOT_RUN, Verified, verified
from gradseg.graphs import verify
from gradseg.graphs.frames import default_source
from gradseg.graphs.load import write_out
from gradseg.runtime.cuda.gpu import Gpu
from gradseg.runtime.engines.trt_manifest import OLDEST_COMPATIBLE, read_manifest


@dataclass
class Job:
    """What is to be built, and where to.

    Args:
        beside: the ONNX file's path.
        data: frames to verify on, None for scenes.
        gpu: of this machine, None without one.
    """

    prepared: Prepared
    options: BuildOptions
    library: Optional[Tuple[str, Any]]
    plan: Path
    beside: Path
    data: Optional[str]
    gpu: Optional[Gpu]

    def manifest(self, built: Built, found: Verified) -> Dict[str, Any]:
        gpu = self.gpu if runs_here(built, self.gpu) else None
        return manifest_for(self.plan.name, built, self.prepared, self.beside.name, self.options, gpu, found)

    def batches(self) -> List[Any]:
        """The frames that a plan is verified on, as it takes them."""
        made = self.prepared
        return verify.verification_batches(self.data or default_source(made.frame_hw), made.frame_hw, batch=made.batch)


@dataclass
class Made:
    """A plan in memory and what is known of it. lines: for the user."""

    built: Built
    found: Verified
    lines: List[str] = field(default_factory=list)

    @property
    def ran(self) -> bool:
        return self.found.status != NOT_RUN


def runs_here(built: Built, gpu: Optional[Gpu]) -> bool:
    """Whether this machine's GPU is one that the plan was built for."""
    if gpu is None:
        return False
    if built.library == "tensorrt_rtx" and not built.compute_capability:
        return int(gpu.compute_capability[2:]) >= OLDEST_COMPATIBLE  # the library's default
    return not built.compute_capability or gpu.compute_capability in built.compute_capability


def make(job: Job) -> Made:
    """Builds the plan, and runs it if this machine can. GradsegError if its labels are not what was promised."""
    made, beside = job.prepared, str(job.beside)
    assert job.library is not None, "a job without a library is not built"
    shown = sys.stderr.isatty()
    built = build_plan(made.data, job.options, beside, job.library, made.frame_hw, made.batch, show_progress=shown)
    if not runs_here(built, job.gpu):
        return Made(built, Verified(), list(built.notes))
    try:
        with on_trial(job.plan, built, job.manifest(built, Verified())) as trial:
            found, lines = verified(trial, made.precision, made.reference, job.batches())
    except GradsegError as error:
        if error.exit_code != 3:
            raise
        return Made(built, Verified(), [*built.notes, f"note: {NOT_RUN}: {error}"])
    return Made(built, found, [*built.notes, *lines])


def write_made(job: Job, made: Made) -> str:
    """Writes the ONNX, the plan and its manifest; what to tell the user."""
    line = write_onnx(job.beside, job.prepared)
    write_plan(job.plan, made.built, job.manifest(made.built, made.found))
    built = made.built
    default = "Ampere and newer GPUs" if built.library == "tensorrt_rtx" else "this machine's GPU"
    where = ", ".join(built.compute_capability) or default
    state = "" if made.ran else f"; {NOT_RUN}"
    said = (
        f"wrote {job.plan}: {job.plan.stat().st_size / 1e6:.2f} MB, {job.prepared.precision}, {built.library} "
        f"{built.version} for {where}, built in {built.seconds:.1f} s{state}. Beside it {job.plan.name}.json"
    )
    return f"{line}\n{said}" if line else said


def write_onnx(beside: Path, prepared: Prepared) -> str:
    """Writes the ONNX unless it is there already; what to tell the user."""
    if beside.exists() and beside.read_bytes() == prepared.data:
        return ""
    write_out(beside, prepared.data)
    return f"wrote {beside}: {len(prepared.data) / 1e6:.2f} MB, {prepared.precision}"


def onnx_beside(plan: Path, prepared: Prepared, given: Optional[Path] = None) -> Path:
    """Where the ONNX of a plan goes: NAME.onnx, or NAME.trt.onnx if another file stands there.

    Only an ONNX that the plan's own manifest names is replaced, and not one that was `given` to build from.
    GradsegError if neither name is free.
    """
    for beside in (plan.with_suffix(".onnx"), plan.with_suffix(".trt.onnx")):
        if not beside.exists() or (_is_of(plan, beside) and not (given and given.exists() and beside.samefile(given))):
            check_writable(beside)
            return beside
        if beside.is_file() and beside.read_bytes() == prepared.data:
            return beside
    raise GradsegError(
        f"{plan}: its ONNX goes beside it, and {plan.with_suffix('.onnx').name} and {beside.name} are other files; "
        "name another plan with -o, or remove them"
    )


def _is_of(plan: Path, onnx: Path) -> bool:
    """Whether the manifest beside the plan says that this file is its ONNX."""
    try:
        noted = read_manifest(plan).get("onnx") or {}
        return noted.get("file") == onnx.name and noted.get("sha256") == sha256_of(onnx)
    except (GradsegError, OSError):
        return False
