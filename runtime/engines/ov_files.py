"""OpenVINO IR files (.xml with a .bin beside it): what they say about themselves, and whether they are whole.

GradSeg keeps its metadata in the .xml under rt_info/gradseg: the keys of `gradseg.models.metadata` without their
"gradseg.", and these of the file itself: hint (f32 | bf16 | f16, what to compute floats in), pinning (yes | no, absent:
OpenVINO's choice), weights_bytes and weights_sha256 of the .bin. Standard library only.
"""

from __future__ import annotations

import xml.etree.ElementTree as Tree
from pathlib import Path
from typing import Dict, Mapping, Union

from gradseg.base.errors import GradsegError
from gradseg.base.files import require_file, sha256_of
from gradseg.commands import command

SECTION, PREFIX = "gradseg", "gradseg."
HINT, PINNING = "gradseg.hint", "gradseg.pinning"
WEIGHTS_BYTES, WEIGHTS_SHA256 = "gradseg.weights_bytes", "gradseg.weights_sha256"
HINTS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}  # OpenVINO's word for a float type → GradSeg's


def again(path: Path) -> str:
    return f"make it again: {command('export/to_openvino.py', 'MODEL', '-o', path.name)}"


def weights_of(path: Path) -> Path:
    """The .bin that belongs to an .xml."""
    return path.with_suffix(".bin")


def read_ir_metadata(path: Union[str, Path]) -> Dict[str, str]:
    """GradSeg's metadata in an .xml, with the keys of `gradseg.models.metadata`; {} in one of other origin.

    GradsegError if the file is missing, truncated or no IR.
    """
    found = require_file(path, "an OpenVINO IR (.xml)")
    try:
        root = Tree.parse(str(found)).getroot()
    except (Tree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise GradsegError(
            f"{found}: truncated or not an OpenVINO IR ({error}); copy it here again with its .bin, or " + again(found)
        ) from error
    if root.tag != "net" or root.find("layers") is None:
        raise GradsegError(f"{found}: is XML, but not an OpenVINO IR (its root is <{root.tag}>)")
    section = root.find(f"rt_info/{SECTION}")
    return {} if section is None else {PREFIX + entry.tag: entry.get("value", "") for entry in section}


def check_weights(path: Path, metadata: Mapping[str, str]) -> None:
    """Raises GradsegError unless the .bin beside `path` is there and the very one that `metadata` names."""
    weights = weights_of(path)
    if not weights.is_file():
        raise GradsegError(f"{path}: its weights, {weights.name}, are not beside it; copy both files")
    mended = f"copy both files here again, or {again(path)}"
    size, wanted = weights.stat().st_size, metadata.get(WEIGHTS_BYTES)
    if wanted is not None and str(size) != wanted:
        raise GradsegError(f"{weights}: {size} bytes, but {path.name} was written with {wanted}; {mended}")
    digest = metadata.get(WEIGHTS_SHA256)
    if digest is not None and sha256_of(weights) != digest:
        raise GradsegError(f"{weights}: is damaged or of another network than {path.name} (SHA-256); {mended}")
