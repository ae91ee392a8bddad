"""Programs of the native engine as files.

A .gsn file is a NumPy .npz without pickles: "program", UTF-8 JSON as bytes (format, spec, precision, calibration,
tensors, ops), and the arrays that the operators name. What is read is checked completely before anything uses it, so
that the library never sees an index, a size or a shape that does not fit.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO, Dict, Optional, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path, require_file
from gradseg.commands import command
from gradseg.models.spec import ModelSpec
from gradseg.runtime.native.checks import Problem, check_program, weight_shape
from gradseg.runtime.native.program import HEAD, KINDS, NativeOp, NativeProgram, NativeTensor

FORMAT = 1
SUFFIX = ".gsn"
MOST_JSON = 1 << 24  # bytes
HEADER = 4096  # bytes of a .npy file before its array, at most
ARRAYS = ("weight", "scale", "bias")


def save_program(program: NativeProgram, path: Path) -> None:
    """Writes a .gsn file in one step. The same program gives the same bytes."""
    with atomic_path(path) as temporary, open(str(temporary), "wb") as stream:
        write_program(program, stream)


def write_program(program: NativeProgram, stream: BinaryIO) -> None:
    check_program(program)
    arrays: Dict[str, np.ndarray[Any, Any]] = {}
    ops = []
    for index, op in enumerate(program.ops):
        plain = {f.name: getattr(op, f.name) for f in fields(op) if f.name not in ARRAYS}
        for name in ARRAYS:
            array = getattr(op, name)
            if array is not None:
                plain[name] = f"{name}{index}"
                arrays[plain[name]] = array
        ops.append(plain)
    tensors = [asdict(tensor) for tensor in program.tensors]
    known = {**vars(program), "format": FORMAT, "spec": program.spec.to_dict(), "tensors": tensors, "ops": ops}
    text = json.dumps(known, sort_keys=True, allow_nan=False).encode("utf-8")
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in [("program", np.frombuffer(text, np.uint8)), *arrays.items()]:
            entry = zipfile.ZipInfo(f"{name}.npy")  # of a fixed date
            with archive.open(entry, "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def load_program(path: Path) -> NativeProgram:
    """Reads a .gsn file; GradsegError, saying what is wrong with it, for any other."""
    found = require_file(path, f"a GradSeg native program ({SUFFIX})")
    try:
        with zipfile.ZipFile(str(found)) as archive:
            program = _read(archive)
        check_program(program)
    except GradsegError as error:
        raise GradsegError(f"{found}: {error}") from error
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise GradsegError(
            f"{found}: damaged, or not a GradSeg native program ({str(error)[:200]}); make it again: "
            f"{command('export/to_native.py', 'CKPT', '-o', found.name)}"
        ) from error
    return program


def _read(archive: zipfile.ZipFile) -> NativeProgram:
    text = _array(archive, "program", np.uint8, None).tobytes()
    raw = json.loads(text.decode("utf-8"))
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise Problem(f"format {raw.get('format') if isinstance(raw, dict) else None!r}, this version reads {FORMAT}")
    known = _typed(raw, {"spec": dict, "precision": str, "calibration": dict, "tensors": list, "ops": list}, "program")
    spec = ModelSpec.from_dict(known["spec"], "its spec")
    tensors = [_built(NativeTensor, each, f"tensor {index}") for index, each in enumerate(known["tensors"])]
    ops = []
    for index, each in enumerate(known["ops"]):
        where = f"operator {index}"
        names = {name: each.pop(name) for name in ARRAYS if isinstance(each, dict) and name in each}
        op = _built(NativeOp, each, where)
        if not 0 <= op.kind < len(KINDS):
            raise Problem(f"{where} ({op.name[:80]}): kind {op.kind}")
        for name, key in names.items():
            shape = weight_shape(op) if name == "weight" else (op.cout,)
            if shape == ():
                raise Problem(f"{where}: {name} has no use here")
            if key != f"{name}{index}":
                raise Problem(f"{where}: its {name} is {key!r}")
            kind = np.int8 if name == "weight" and op.kind != HEAD else np.float32
            setattr(op, name, _array(archive, key, kind, shape))
        ops.append(op)
    return NativeProgram(spec, tensors, ops, known["precision"], known["calibration"])


def _built(kind: Any, raw: Any, where: str) -> Any:
    """A tensor or operator from parsed JSON with exactly its fields, all of the right type."""
    if not isinstance(raw, dict):
        raise Problem(f"{where} is no JSON object")
    types = {f.name: {"int": int, "str": str, "float": float}.get(str(f.type)) for f in fields(kind)}
    return kind(**_typed(raw, {name: each for name, each in types.items() if each is not None}, where))


def _typed(raw: Dict[str, Any], types: Dict[str, Any], where: str) -> Dict[str, Any]:
    missing, extra = sorted(set(types) - set(raw)), sorted(set(raw) - set(types) - {"format"})
    if missing or extra:
        raise Problem(f"{where}: fields missing {missing}, unknown {extra}")
    for name, kind in types.items():
        if type(raw[name]) is not kind:
            raise Problem(f"{where}: {name} is {str(raw[name])[:40]!r}, expected {kind.__name__}")
    return {name: raw[name] for name in types}


def _array(archive: zipfile.ZipFile, name: str, dtype: Any, shape: Optional[Tuple[int, ...]]) -> Any:
    """A stored array of exactly this dtype and shape (None: one dimension); its size is looked at before it is read."""
    entry = archive.getinfo(f"{name}.npy")
    size = np.dtype(dtype).itemsize
    most = MOST_JSON if shape is None else size * math.prod(max(dim, 0) for dim in shape)
    if entry.file_size > most + HEADER:
        raise Problem(f"{name} has {entry.file_size} bytes, {most} are expected")
    with archive.open(entry) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
    if array.dtype != dtype or (array.ndim != 1 if shape is None else array.shape != shape):
        raise Problem(f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape or '(bytes,)'}")
    return np.ascontiguousarray(array)
