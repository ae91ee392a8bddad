"""An ONNX model → OpenVINO IR: NAME.xml with NAME.bin beside it, described in its rt_info. Needs onnx and openvino."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Dict, Optional

import onnx

from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path, sha256_of
from gradseg.base.packages import need
from gradseg.runtime.engines.ov import (
    HINT,
    HINTS,
    PINNING,
    PREFIX,
    SECTION,
    WEIGHTS_BYTES,
    WEIGHTS_SHA256,
    weights_of,
)


def write_ir(model: onnx.ModelProto, path: Path, hint: str, pinning: Optional[bool] = None) -> None:
    """Writes an ONNX model (uint8 frame → uint8 labels, with GradSeg's metadata) as it stands; see `ir.form`.

    Args:
        path: the .xml; the .bin goes beside it. Both are replaced; whoever reads between the two renames finds files
            that do not belong together, which the engine says.
        hint: "f32", "bf16" or "f16", what OpenVINO is to compute floats in where the CPU has it.
        pinning: whether its threads are to stay on their cores; None leaves it to OpenVINO.

    Raises GradsegError for a hint that is none, without OpenVINO (exit code 3), for a model that OpenVINO cannot read,
    and if the files cannot be written.
    """
    if hint not in HINTS:
        raise GradsegError(f"{path}: OpenVINO's precision hint {hint!r}; one of {', '.join(HINTS)}")
    values = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith(PREFIX)}
    values[HINT] = hint
    if pinning is not None:
        values[PINNING] = "yes" if pinning else "no"
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]  # OpenVINO would keep all of it, what exporters left there too
    with tempfile.TemporaryDirectory(prefix="gradseg-ir-") as folder:
        made = Path(folder) / "model.xml"
        _serialise(bare, values, made, path)
        with atomic_path(weights_of(path)) as weights, atomic_path(path) as description:
            shutil.copyfile(weights_of(made), weights)
            shutil.copyfile(made, description)


def _serialise(model: onnx.ModelProto, values: Dict[str, str], made: Path, where: Path) -> None:
    need(where, "openvino", "openvino")
    import openvino

    try:
        network = openvino.Core().read_model(model.SerializeToString())
    except RuntimeError as error:  # the only class that OpenVINO raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception from" not in line]
        version = openvino.__version__.partition("-")[0]
        raise GradsegError(f"{where}: OpenVINO {version} cannot read the ONNX ({' '.join(lines)[:200]})") from error
    weights = weights_of(made)
    openvino.serialize(network, str(made), str(weights))
    described = {**values, WEIGHTS_BYTES: str(weights.stat().st_size), WEIGHTS_SHA256: sha256_of(weights)}
    for key, value in described.items():
        network.set_rt_info(value, [SECTION, key[len(PREFIX) :]])
    openvino.serialize(network, str(made), str(weights))
    if sha256_of(weights) != described[WEIGHTS_SHA256]:
        raise GradsegError(f"{where}: OpenVINO wrote other weights the second time; please report its version")
