"""What versus.py measures: the pipelines, the networks, and where what is built from them lies. No heavy imports.

A pipeline lives in a module of its own with two functions: `build(job, variant)` makes files in the job's folder that
are kept for the next run, `open_pipeline(job, variant)` opens them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from gradseg.base.conditions import code_hash
from gradseg.base.errors import GradsegError
from gradseg.base.files import require_file, sha256_of, write_json
from gradseg.base.packages import install
from gradseg.benchmarks.common.job import INPUT_HW, Job, missing
from gradseg.commands import ROOT, command
from gradseg.models.spec import ARCHS

MODELS = ("erfnet", "d-star-light", "dg2-star-light", "dg4-star-light")
FRAME_HW = (540, 960)
ENGINE_SUFFIXES = (".onnx", ".xml", ".gsn")


@dataclass(frozen=True)
class Kind:
    """A way to run a network. follows: whose instructions. files: what `build` leaves in the job's folder. packages:
    what it imports. ours: GradSeg's, not a peer's. compiler: needs a C++ compiler."""

    name: str
    module: str
    variant: str
    follows: str
    files: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    ours: bool = False
    compiler: bool = False


TORCH = "https://pytorch.org/hub/pytorch_vision_deeplabv3_resnet101/"
COMPILE = "https://docs.pytorch.org/docs/stable/torch.compiler_get_started.html"
NCNN = "https://pypi.org/project/ncnn/ (PyTorch -> pnnx -> ncnn)"
ORT = "https://docs.pytorch.org/tutorials/advanced/super_resolution_with_onnxruntime.html"
ORT_INT8 = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
OPENVINO = "https://docs.openvino.ai/2024/notebooks/hello-segmentation-with-output.html"
NNCF = (
    "https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/"
    "basic-quantization-flow.html"
)
EAGER, TUTORIAL, TUNED = "pytorch eager", "onnxruntime tutorial", "gradseg tuned"


def _peer(name: str, module: str, variant: str, follows: str, files: tuple[str, ...], *packages: str) -> Kind:
    return Kind(name, f"gradseg.benchmarks.side_by_side.{module}", variant, follows, files, packages)


def _own(file: str, *packages: str) -> Kind:
    """file: ENGINE.PRECISION.SUFFIX, which is the variant too."""
    engine, precision, _ = file.split(".")
    name = f"gradseg {'onnxruntime' if engine == 'ort' else engine} {precision}"
    return Kind(name, "gradseg.benchmarks.side_by_side.ours", file, "", (file,), packages, ours=True)


KINDS: tuple[Kind, ...] = (
    _peer(EAGER, "peers_torch", "eager", TORCH, (), "torch"),
    replace(_peer("torch.compile", "peers_torch", "compile", COMPILE, (), "torch"), compiler=True),
    _peer("ncnn", "peers_ncnn", "fp32", NCNN, ("net.ncnn.param", "net.ncnn.bin"), "ncnn", "pnnx"),
    _peer(TUTORIAL, "peers_ort", "fp32", ORT, ("logits.onnx",), "onnxruntime"),
    _peer(
        "onnxruntime quantize_static", "peers_ort", "int8", ORT_INT8, ("quantize_static.onnx",), "onnxruntime", "sympy"
    ),
    _peer("openvino tutorial", "peers_openvino", "default", OPENVINO, ("logits.onnx",), "openvino"),
    _peer("openvino nncf", "peers_openvino", "int8", NNCF, ("nncf.xml", "nncf.bin"), "openvino", "nncf"),
    _own("ort.fp32.onnx", "onnxruntime"),
    _own("ort.int8.onnx", "onnxruntime"),
    _own("openvino.fp32.xml", "openvino"),
    _own("openvino.bf16.xml", "openvino"),
    _own("openvino.int8.xml", "openvino"),
    _own("native.int8.gsn"),
    Kind(TUNED, "gradseg.benchmarks.side_by_side.ours", "tuned", "", ("tuned/engine.*",), (), ours=True),
)


def make_jobs(
    models: Sequence[str], checkpoints: Sequence[str], work: Path, tuned: Optional[Path], **shared: Any
) -> list[Job]:
    """A job per model. checkpoints: NAME=PATH texts. shared: what all have. GradsegError for what is not there or does
    not fit."""
    given = {}
    for text in checkpoints:
        name, equals, path = text.partition("=")
        if not equals or name not in models:
            raise GradsegError(f"--checkpoint {text}: write NAME=PATH, NAME one of {', '.join(models)}")
        given[name] = require_file(path, "a checkpoint (.pth)")
    if tuned is not None and not tuned.is_dir():
        raise GradsegError(f"--tuned {tuned}: no such folder; give one that holds MODEL/engine.*")
    jobs = []
    for model in models:
        if model not in ARCHS:
            raise GradsegError(f"--models {model}: unknown architecture; known: {', '.join(ARCHS)}")
        # the one given, else the shipped one, else the one of a training run here, else none
        places = (ROOT / "assets" / f"{model}.pth", ROOT / "runs" / f"{model}.pth")
        found = given.get(model) or next((place for place in places if place.is_file()), None)
        folder = work / f"{model}-{sha256_of(found)[:8] if found else 'untrained'}"
        engine = None if tuned is None else tuned_engine(tuned, model)
        checkpoint = found or folder / "untrained.pth"
        jobs.append(Job(model, checkpoint, found is not None, folder, tuned=engine, **shared))
    return jobs


def tuned_engine(folder: Path, model: str) -> Path:
    """The engine of `model` among tune.py's: MODEL/engine.SUFFIX as it writes them, or MODEL.SUFFIX."""
    found = engine_in(folder / model, "engine") or engine_in(folder, model)
    if found is None:
        size = f"{INPUT_HW[0]}x{INPUT_HW[1]}"
        how = command("export/tune.py", "CKPT", "--size", size, "--data", "SPEC", "-o", folder / model)
        raise GradsegError(f"--tuned {folder}: no engine of {model}; make one: {how}")
    return found


def engine_in(folder: Path, stem: str) -> Optional[Path]:
    """FOLDER/STEM.SUFFIX with the suffix of an engine."""
    paths = (folder / f"{stem}{suffix}" for suffix in ENGINE_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def lacking(kind: Kind) -> str:
    """Why a pipeline cannot run on this machine and what to do, or an empty string."""
    absent = missing(kind.packages)
    if absent:
        return f"{' and '.join(absent)} not installed: pip install {' '.join(absent)} (or {install('peers')})"
    if kind.compiler and not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        return "needs a C++ compiler: apt-get install g++"
    return ""


def stamp(job: Job, kind: Kind) -> dict[str, Any]:
    """What a pipeline's files and its mIoU depend on beside the checkpoint: they are made again if it changes."""
    given = {"input_hw": list(job.input_hw), "calib": job.calib, "calib_frames": job.calib_frames}
    code = {"code": code_hash()[:12]} if kind.ours else {}
    tuned = {"tuned": str(job.tuned and sha256_of(job.tuned)), "val": job.val, "threads": job.threads}
    return {**given, "versions": versions_of([kind]), **code, **(tuned if kind.name == TUNED else {})}


def versions_of(kinds: Sequence[Kind]) -> dict[str, str]:
    """The installed versions of what pipelines import, and of what every network is exported with."""
    found = {}
    for name in sorted({"onnxruntime", "torch", *(package for kind in kinds for package in kind.packages)}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def built(job: Job, kind: Kind) -> bool:
    """Whether `build` has nothing left to do."""
    made = all(any(job.folder.glob(name)) for name in kind.files) and kept(job, kind, "built") is not None
    return made or (kind.name == TUNED and job.tuned is not None)


def keep(job: Job, kind: Kind, what: str, value: Any = None) -> None:
    """Remembers in the job's folder that `what` was done, and its result."""
    write_json(_note(job, kind, what), {"of": stamp(job, kind), "value": value})


def kept(job: Job, kind: Kind, what: str) -> Optional[dict[str, Any]]:
    """{"value": …} as `keep` left it, None if nothing was, or something has changed since."""
    try:
        found: dict[str, Any] = json.loads(_note(job, kind, what).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("of") == json.loads(json.dumps(stamp(job, kind))) else None


def _note(job: Job, kind: Kind, what: str) -> Path:
    return job.folder / f"{slug(kind.name)}.{what}.json"


def slug(text: str) -> str:
    """A name as part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in text)
