"""Prepares everything that a bare GPU machine needs for `gpu.py --from`: see `on_gpu.index` for what lies where.

Needs Python 3.10, torch, onnx and onnxruntime, no GPU. Labels that the GPU's are compared with are ONNX Runtime's, of
the same ONNX files; for INT8 its exact arithmetic on the Q/DQ as written, without this CPU's INT8 kernels.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import cv2
import numpy as np

from gradseg.base.conditions import conditions
from gradseg.base.errors import GradsegError
from gradseg.base.files import require_file, sha256_of, write_text
from gradseg.benchmarks.on_gpu.counts import counts_of
from gradseg.benchmarks.on_gpu.floors import FLOAT_BYTES
from gradseg.benchmarks.on_gpu.index import BORDERS, DECIDED, FORMAT, INDEX, NETWORKS, PRECISIONS, UNDECIDED
from gradseg.benchmarks.on_gpu.labels import Labeller
from gradseg.commands import ROOT
from gradseg.data.base import Dataset, spread
from gradseg.data.specs import open_data
from gradseg.graphs.frames import frame_name
from gradseg.models.spec import ModelSpec, spec_for
from gradseg.runtime.preprocess import Preprocessor

ASSETS = ROOT / "assets"
SCENES = "scenes:frames=64,seed=1000,size=360x480"  # other scenes than those of calibration
MIB = 1 << 20
REACH = 48 * MIB  # of LZMA: all forms of the largest network
INT8_FRAMES, BAKED_FRAMES = 16, 8  # with labels of INT8; with the resize inside
UNTRAINED_FRAMES = 6  # with labels of a network without mIoU, whose noise takes much space
EXACT_FRAMES = 8  # stored without loss, the others as the camera files they are, if that is smaller
LEFT, FIRST_FRAMES = 0.97, 24  # of the space, for frames, and what the first ones take beyond an ordinary one
LOSSLESS = [cv2.IMWRITE_WEBP_QUALITY, 101]
Say = Callable[[str], None]
Forms = Dict[Tuple[str, str], Any]  # (weak or typed, precision) → export.trt_onnx.TrtOnnx
Labellers = Dict[str, Dict[str, Labeller]]  # by network and kind of labels
Networks = Dict[str, Tuple[int, bytes]]  # SHA-256 → (where it begins, ONNX file)


@dataclass(frozen=True)
class Job:
    """What to pack. checkpoints: by model id; assets/ID.pth or seeded weights for the others. frames: None for as many
    as fit in max_mib. torch: checkpoints travel too. baked: networks with the resize inside as well."""

    models: tuple[str, ...]
    input_hw: tuple[int, int] = (512, 1024)
    frame_hw: tuple[int, int] = (540, 960)
    data: str = SCENES
    calib: Optional[str] = None
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    frames: Optional[int] = None
    max_mib: float = 40.0
    seed: int = 0
    torch: bool = True
    baked: bool = True


def prepare(folder: Path, job: Job, say: Say = print) -> dict[str, Any]:
    """Writes the pack and returns its index; `index.json` comes last, so that half a pack is none.

    Raises GradsegError if the folder holds something else, or a network cannot be converted.
    """
    data = open_data(job.data)
    if len(data) == 0:
        raise GradsegError(f"{job.data}: no frames inside")
    _empty(folder)
    networks: Networks = {}
    models: dict[str, Any] = {}
    labellers: Labellers = {}
    for name in job.models:
        models[name], labellers[name] = _pack_model(folder, name, job, networks, say)
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": REACH}]
    (folder / NETWORKS).write_bytes(lzma.compress(b"".join(data for _, data in networks.values()), filters=filters))
    used = _size(folder)
    say(f"networks: {used / MIB:.1f} MiB of {', '.join(job.models)}")
    frames = _pack_frames(folder, data, job, models, labellers, job.max_mib * MIB - used - len(json.dumps(models)), say)
    index = {
        "format": FORMAT,
        "input_hw": list(job.input_hw),
        "frame_hw": list(job.frame_hw),
        "data": {"source": job.data, "calibration": job.calib or "procedural scenes", "classes": list(data.classes)},
        "frames": frames,
        "models": models,
        "conditions": conditions(seed=job.seed),
        "files": {
            path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
        },
    }
    write_text(folder / INDEX, json.dumps(index, separators=(",", ":"), allow_nan=False))
    total = _size(folder) / MIB
    say(f"pack in {folder}: {len(models)} networks, {len(frames)} frames, {total:.1f} MiB")
    if total > job.max_mib:
        least = "leave out checkpoints (--torch none), models (--models) or frames (--frames)"
        say(f"warning: more than {job.max_mib:g} MiB; {least}")
    return index


def _empty(folder: Path) -> None:
    """The folder, new or emptied of an earlier pack; GradsegError if anything else is in it."""
    known = {INDEX, NETWORKS, "frames", "labels", "torch"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in folder.iterdir() if path.name not in known)
        if found:
            raise GradsegError(f"{folder}: holds {found[0]}, which is no part of a pack; name an empty folder")
        for name in known:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise GradsegError(f"cannot write {folder}: {error.strerror or error}") from error


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _pack_model(
    folder: Path, name: str, job: Job, networks: Networks, say: Say
) -> tuple[dict[str, Any], dict[str, Labeller]]:
    """One network's entry in the index, and what labels frames with it."""
    with tempfile.TemporaryDirectory() as scratch:
        path, trained, words = checkpoint_for(name, job, Path(scratch))
        say(f"{name}: {words}")
        spec, forms = _converted(path, name, job, say)
        if job.torch:
            (folder / "torch").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "torch" / f"{name}.pth")
    entry: dict[str, Any] = {
        "spec": spec.to_dict(),
        "trained": trained,
        "weights": words,
        "onnx": {},
        "counts": {},
        "labels": {},
        "torch": f"torch/{name}.pth" if job.torch else None,
    }
    labellers: dict[str, Labeller] = {}
    for border in BORDERS if job.baked else BORDERS[:1]:
        models = _pack_border(entry, border, spec, forms, job, networks)
        if border == "network":
            labellers = {kind: Labeller(models[kind], f"{name} {kind}") for kind in ("fp32", "int8")}
        else:
            labellers["frame"] = Labeller(models["fp32"], f"{name} frame")
    return entry, labellers


def _converted(path: Path, name: str, job: Job, say: Say) -> tuple[ModelSpec, Forms]:
    """The network in every precision, for weakly and for strongly typed builders."""
    from gradseg.export.trt.forms import onnx_for_trt
    from gradseg.graphs.load import model_from_checkpoint

    loaded = model_from_checkpoint(str(path), name, job.input_hw, _other_data(job))
    args = _arguments(path, job)
    forms: Forms = {("weak", precision): onnx_for_trt(loaded, args, precision, False) for precision in PRECISIONS}
    forms["typed", "fp32"] = forms["weak", "fp32"]
    forms["typed", "fp16"] = onnx_for_trt(loaded, args, "fp16", True)
    packed = dataclasses.replace(loaded, model=forms["weak", "int8"].model)  # calibrated once
    forms["typed", "int8"] = onnx_for_trt(packed, args, "int8", True)
    for (form, precision), made in sorted(forms.items()):
        for line in made.lines:
            say(f"{name} {precision} ({form}): {line}")
    return loaded.spec, forms


def _pack_border(
    entry: dict[str, Any], border: str, spec: ModelSpec, forms: Forms, job: Job, networks: Networks
) -> dict[str, Any]:
    """Writes a network's forms with one kind of border; returns the weakly typed models by precision."""
    from gradseg.graphs.borders import with_borders

    frame_hw = job.frame_hw if border == "frame" else None
    packed: dict[str, dict[str, Any]] = {precision: {} for precision in PRECISIONS}
    models = {}
    for (form, precision), made in forms.items():
        model = with_borders(made.model, spec, frame_hw=frame_hw)
        data = model.SerializeToString()
        digest = hashlib.sha256(data).hexdigest()
        start, _ = networks.setdefault(digest, (sum(len(each) for _, each in networks.values()), data))
        facts = {"sha256": digest, "start": start, "bytes": len(data), "keep_fp32": list(made.keep_fp32)}
        packed[precision][form] = facts
        if form == "weak":
            models[precision] = model
    entry["onnx"][border] = packed
    entry["counts"][border] = {name: counts_of(model, FLOAT_BYTES[name]) for name, model in models.items()}
    return models


def _arguments(path: Path, job: Job) -> argparse.Namespace:
    """What `onnx_for_trt` reads: the arguments of the export scripts, at their defaults but for the data."""
    from gradseg.base.options import add_calibration_arguments, add_model_arguments

    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    add_calibration_arguments(parser)
    given = {"--size": "{}x{}".format(*job.input_hw), "--calib": job.calib, "--data": _other_data(job)}
    options = [word for name, value in given.items() if value for word in (name, value)]
    return parser.parse_args([str(path), *options])


def _other_data(job: Job) -> Optional[str]:
    """Frames to verify conversions on: those of the pack, unless they are the default scenes."""
    return None if job.data == SCENES else job.data


def checkpoint_for(name: str, job: Job, scratch: Path) -> tuple[Path, bool, str]:
    """(checkpoint, whether it was trained, what it is in words): the given one, assets/ID.pth, else seeded weights."""
    given = job.checkpoints.get(name)
    shipped = ASSETS / f"{name}.pth"
    if given is not None or shipped.is_file():
        path = require_file(given or shipped, "a checkpoint (.pth)")
        return path, True, f"weights of {path.name}, SHA-256 {sha256_of(path)[:16]}"
    from gradseg.benchmarks.common.untrained import untrained_network
    from gradseg.models.checkpoint import save_checkpoint

    path = scratch / f"{name}.pth"
    save_checkpoint(path, untrained_network(spec_for(name, input_hw=job.input_hw), job.seed))
    return path, False, f"untrained weights of seed {job.seed}: latency and agreement of labels, no accuracy"


def _pack_frames(
    folder: Path, data: Dataset, job: Job, models: dict[str, Any], labellers: Labellers, space: float, say: Say
) -> list[dict[str, Any]]:
    """Writes frames, true labels and every network's; fills in the models' "labels", returns the index's "frames"."""
    count = job.frames or len(data)
    if job.frames is None:
        unused: dict[str, Any] = {name: {**models[name], "labels": {}} for name in models}
        with tempfile.TemporaryDirectory() as scratch:
            some, at = spread(data, 2), max(INT8_FRAMES, BAKED_FRAMES, UNTRAINED_FRAMES, EXACT_FRAMES)
            for index in range(len(some)):
                _pack_frame(Path(scratch), some, index, at + index, unused, labellers)
            each = _size(Path(scratch)) / len(some)
        first = FIRST_FRAMES * each  # the first ones have more labels
        count = max(1, min(len(data), int((LEFT * space - first) / each)))
    chosen = spread(data, count)
    step = max(1, len(chosen) // INT8_FRAMES)  # the first ones, which have more labels, are from everywhere
    order = sorted(range(len(chosen)), key=lambda index: (index % step != 0, index))
    frames = []
    for number, index in enumerate(order):
        frames.append(_pack_frame(folder, chosen, index, number, models, labellers))
        if len(frames) % 20 == 0:
            say(f"frames: {len(frames)} of {len(order)}")
    return frames


def _pack_frame(
    folder: Path, data: Dataset, index: int, number: int, models: dict[str, Any], labellers: Labellers
) -> dict[str, Any]:
    """Frame `index` of the data as number `number` of the pack."""
    sample = data[index]
    label = f"frames/{number:04d}.png"
    _write_image(folder / label, sample.label)
    image = _pack_image(folder, f"frames/{number:04d}", Path(frame_name(data, index)), sample.image, number)
    for name, own in labellers.items():
        trained = models[name]["trained"]
        for kind, labeller in own.items():
            limits = {"fp32": number + 1, "int8": INT8_FRAMES, "frame": BAKED_FRAMES}
            if number < (limits[kind] if trained else UNTRAINED_FRAMES):
                labels, levels = labeller(Preprocessor(labeller.frame_hw)(sample.image))
                if trained:  # then FP32's near-ties alone are left out, whatever the precision
                    levels = np.where(levels == UNDECIDED, levels, np.uint8(DECIDED))
                path = f"labels/{name}/{kind}/{number:04d}.webp"
                _write_image(folder / path, np.dstack([labels, levels, np.zeros_like(labels)]), LOSSLESS)
                models[name]["labels"].setdefault(kind, []).append(path)
    return {"name": sample.name, "image": image, "label": label, "pixels_crc32": zlib.crc32(sample.image.tobytes())}


def _pack_image(folder: Path, stem: str, source: Path, image: np.ndarray[Any, Any], number: int) -> str:
    """Writes a frame; returns its name. JPEG files are taken as they are, but for the first frames."""
    if number >= EXACT_FRAMES and source.suffix.lower() in (".jpg", ".jpeg") and source.is_file():
        shutil.copyfile(source, folder / f"{stem}.jpg")
        return f"{stem}.jpg"
    _write_image(folder / f"{stem}.webp", image, LOSSLESS)
    return f"{stem}.webp"


def _write_image(path: Path, image: np.ndarray[Any, Any], options: Optional[list[int]] = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(path.suffix, image, options or [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise GradsegError(f"{path}: OpenCV {cv2.__version__} cannot write {path.suffix}")
    path.write_bytes(data.tobytes())
