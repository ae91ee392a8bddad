"""The networks that `calibration/report.py` compares: each with the checkpoints fine-tuned from it for INT8."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from gradseg.base.errors import GradsegError
from gradseg.base.files import require_file, sha256_of
from gradseg.data.base import Dataset
from gradseg.graphs.foreign.spec import OPTIONS
from gradseg.graphs.graph import is_quantised
from gradseg.graphs.load import Loaded, load_any

DAMAGED = "its entry 'quantisation' is damaged; fine-tune again"


@dataclass(frozen=True)
class Tuned:
    """A checkpoint after quantisation-aware fine-tuning; `loaded.info["quantisation"]` holds its scales."""

    path: Path
    loaded: Loaded

    @property
    def quantisation(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.loaded.info["quantisation"]
        return found


@dataclass
class Subject:
    """A network in FP32, in the deployment form. name: its architecture, with the file's name if that is not enough."""

    name: str
    path: Path
    sha256: str
    loaded: Loaded
    tuned: list[Tuned] = field(default_factory=list)


def subjects_from(paths: Sequence[str], args: argparse.Namespace, pick_up: bool = True) -> list[Subject]:
    """Loads checkpoints (.pth) and FP32 ONNX files; those fine-tuned for INT8 go to the network they were made from.

    Args:
        paths: files as the user named them.
        args: the options of `foreign.spec.add_foreign_arguments`, for ONNX files.
        pick_up: also take fine-tuned checkpoints that lie beside a network they were made from; each is said on stdout.

    Raises GradsegError for a file that cannot be read, is given twice, is in INT8 already, or was fine-tuned from a
    network that is not among `paths`.
    """
    hashes = _hashes(paths)
    bases: dict[str, Path] = {}
    tuned: list[tuple[Path, str]] = []
    for path, digest in hashes.items():
        made_from = base_of(path)
        if made_from is None:
            bases[digest] = path
        else:
            tuned.append((path, made_from))
    for path, made_from in tuned:
        if made_from not in bases:
            raise GradsegError(
                f"{path}: was fine-tuned for INT8 from another checkpoint (sha256 {made_from[:12]}…), which is not in "
                "the list; name that one too, so that the cost can be measured against it"
            )
    if pick_up:
        tuned += _beside(bases, {path for path, _ in tuned})
    subjects = {digest: Subject("", path, digest, load(path, args)) for digest, path in bases.items()}
    for path, made_from in tuned:
        subjects[made_from].tuned.append(Tuned(path, load(path, args)))
    _name(list(subjects.values()))
    return list(subjects.values())


def check_classes(subjects: Sequence[Subject], data: Dataset) -> None:
    """Raises GradsegError, naming the file, unless every network's classes are the data's, in order."""
    for subject in subjects:
        classes = subject.loaded.spec.classes
        if tuple(classes) != tuple(data.classes):
            raise GradsegError(
                f"{subject.path}: its classes {list(classes)} are not the data's {list(data.classes)}; measure on data "
                "with the classes it was trained on (an ONNX file of other origin: say them with --classes)"
            )


def _hashes(paths: Sequence[str]) -> dict[Path, str]:
    found: dict[Path, str] = {}
    for text in paths:
        path = require_file(text, "a checkpoint (.pth) or an FP32 ONNX model (.onnx)")
        if path.suffix.lower() not in (".pth", ".onnx"):
            raise GradsegError(f"{path}: expected a checkpoint (.pth) or an FP32 ONNX model (.onnx)")
        digest = sha256_of(path)
        same = next((other for other, known in found.items() if known == digest), None)
        if same is not None:
            raise GradsegError(f"{path}: is the same network as {same}; name each one once")
        found[path] = digest
    return found


def base_of(path: Path) -> Optional[str]:
    """The SHA-256 of the file that a checkpoint was fine-tuned for INT8 from; None for other checkpoints and files."""
    if path.suffix.lower() != ".pth":
        return None
    from gradseg.models.checkpoint import read_raw

    info = read_raw(path).get("info")
    if not isinstance(info, dict) or "quantisation" not in info:
        return None
    stored = info["quantisation"]
    base = stored.get("base") if isinstance(stored, dict) else None
    if not isinstance(base, dict) or not isinstance(base.get("sha256"), str):
        raise GradsegError(f"{path}: {DAMAGED}")
    return str(base["sha256"])


def _beside(bases: Mapping[str, Path], known: set[Path]) -> list[tuple[Path, str]]:
    """Fine-tuned checkpoints in the folders of networks they were made from."""
    found: list[tuple[Path, str]] = []
    taken = {path.resolve() for path in [*known, *bases.values()]}
    for path in sorted({file for base in bases.values() for file in base.parent.glob("*.pth")}):
        if path.resolve() in taken:
            continue
        with contextlib.suppress(GradsegError):  # somebody else's file
            made_from = base_of(path)
            if made_from in bases:
                assert made_from is not None
                taken.add(path.resolve())
                found.append((path, made_from))
                print(f"{path}: fine-tuned for INT8 from {bases[made_from].name}, taken along (--no-qat leaves it out)")
    return found


def load(path: Path, args: argparse.Namespace) -> Loaded:
    """A checkpoint or an FP32 ONNX file in the deployment form; GradsegError for one in INT8."""
    own = argparse.Namespace(model=str(path), arch=None, size=None, data=None, spec=None)
    if path.suffix.lower() == ".onnx":
        for name in ("spec", *OPTIONS):
            setattr(own, name, getattr(args, name, None))
    loaded = load_any(own)
    if is_quantised(loaded.model):
        raise GradsegError(
            f"{path}: is INT8 already, there is no float to compare with; give its checkpoint or FP32 ONNX"
        )
    return loaded


def _name(subjects: Sequence[Subject]) -> None:
    specs = [(subject.loaded.spec.arch, subject.path.stem) for subject in subjects]
    archs = [stem if arch == "foreign" else arch for arch, stem in specs]
    files = [subject.path.name for subject in subjects]
    for subject, arch in zip(subjects, archs, strict=True):
        if archs.count(arch) == 1:
            subject.name = arch
        else:
            alone = files.count(subject.path.name) == 1
            subject.name = f"{arch} ({subject.path.name if alone else subject.path})"
