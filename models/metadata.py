"""What a GradSeg ONNX file says about itself, read and written. Reading needs the standard library alone.

Keys of `metadata_props`: gradseg.spec (ModelSpec JSON), gradseg.format (deployment | logits), gradseg.precision
(fp32 | fp16 | int8), gradseg.calibration (JSON, INT8 only), gradseg.target (cpu | trt: INT8, and FP32 in
the form for ONNX Runtime), gradseg.frame_size ("720x1280": resizing from and to frames of this size is in the graph)
and gradseg.batch ("4": frames per call), these two only where they are not the spec's size and 1; gradseg.partner
("fp16": what an INT8 model's other floats are in, where that is not float32).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple, Union

from gradseg.base.errors import GradsegError
from gradseg.base.files import require_file
from gradseg.commands import command
from gradseg.models.spec import ModelSpec, parse_size

SPEC, FORMAT, PRECISION = "gradseg.spec", "gradseg.format", "gradseg.precision"
CALIBRATION, TARGET = "gradseg.calibration", "gradseg.target"
FRAME_SIZE, BATCH = "gradseg.frame_size", "gradseg.batch"
PARTNER = "gradseg.partner"
DEPLOYMENT, LOGITS = "deployment", "logits"


def read_metadata(path: Union[str, Path]) -> Dict[str, str]:
    """The metadata of an ONNX file, without onnx or protobuf. GradsegError if the file is not an ONNX model."""
    found = require_file(path, "an ONNX model (.onnx)")
    try:
        return metadata_of_bytes(found.read_bytes())
    except ValueError as error:
        raise GradsegError(f"{found}: truncated or not an ONNX model ({error})") from error


def metadata_of_bytes(data: bytes) -> Dict[str, str]:
    """`metadata_props` (field 14) of a serialised ModelProto; ValueError if the bytes are not one."""
    metadata: Dict[str, str] = {}
    has_graph = False
    for number, value in _fields(data):
        if number == 7 and isinstance(value, memoryview):
            has_graph = True
        if number == 14 and isinstance(value, memoryview):
            entry = {n: bytes(v).decode("utf-8") for n, v in _fields(value) if isinstance(v, memoryview)}
            metadata[entry.get(1, "")] = entry.get(2, "")
    if not has_graph:
        raise ValueError("no graph inside")
    return metadata


def _fields(data: Union[bytes, memoryview]) -> Iterator[Tuple[int, Any]]:
    """(field number, value) of a protobuf message's top level: int, or memoryview for length-delimited fields."""
    view, position = memoryview(data), 0
    while position < len(view):
        key, position = _varint(view, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(view, position)
            yield number, value
            continue
        if kind == 2:
            size, position = _varint(view, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {position}")
        if position + size > len(view):
            raise ValueError(f"{position + size} bytes needed, {len(view)} there")
        yield number, view[position : position + size]
        position += size


def _varint(view: memoryview, position: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(view) or shift > 63:
            raise ValueError("cut off inside a number")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def spec_from_metadata(metadata: Mapping[str, str], where: Union[str, Path]) -> ModelSpec:
    """The ModelSpec inside; GradsegError saying how to give it if there is none."""
    if SPEC not in metadata:
        raise GradsegError(
            f"{where}: an ONNX model without GradSeg metadata; say what it is with --spec FILE (a ModelSpec as JSON), "
            f"or export it again from its checkpoint: {command('export/to_onnx.py', 'CKPT')}"
        )
    return ModelSpec.from_json(metadata[SPEC], f"{where}: {SPEC}")


def calibration_of(metadata: Mapping[str, str]) -> Optional[Dict[str, Any]]:
    """What an INT8 model says of its calibration; None if it says nothing that can be read."""
    try:
        found = json.loads(metadata.get(CALIBRATION) or "null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def borders(
    values: Mapping[str, str], spec: ModelSpec, where: Union[str, Path] = "model"
) -> Tuple[int, Tuple[int, int]]:
    """(batch, (height, width)) of the frames that a deployment-form model takes; 1 and the spec's size by default.

    GradsegError for what cannot be a size or a number of frames.
    """
    batch = values.get(BATCH, "1")
    if not batch.isdecimal() or int(batch) < 1:
        raise GradsegError(f"{where}: {BATCH} is {batch!r}, not a number of frames; export it again")
    try:
        frame_hw = parse_size(values[FRAME_SIZE]) if FRAME_SIZE in values else spec.input_hw
    except GradsegError as error:
        raise GradsegError(f"{where}: {FRAME_SIZE}: {error}") from error
    return int(batch), frame_hw


def set_metadata(model: Any, values: Mapping[str, Optional[str]]) -> None:
    """Writes key/value pairs into a ModelProto, replacing those that are there; None removes."""
    kept = {**{entry.key: entry.value for entry in model.metadata_props}, **values}
    del model.metadata_props[:]
    for key, value in kept.items():
        if value is not None:
            model.metadata_props.add(key=key, value=value)
