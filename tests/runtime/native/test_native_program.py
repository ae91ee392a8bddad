"""Files of the native engine: the same program comes back, and nothing that does not fit reaches the library."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_toys import program_of

from gradseg.base.errors import GradsegError
from gradseg.runtime.native.checks import Problem, check_program
from gradseg.runtime.native.files import ARRAYS, load_program, save_program, write_program
from gradseg.runtime.native.program import (
    ADD,
    CONV,
    DEPTHWISE,
    HEAD,
    POOL,
    S16,
    UPSAMPLE,
    NativeOp,
    NativeProgram,
    NativeTensor,
)


def every_kind() -> NativeProgram:
    """A program of 8x16 pixels with every kind of operator, tensors without padding yet."""
    random = np.random.default_rng(0)

    def tensor(height: int, width: int, dtype: int = 0) -> NativeTensor:
        return NativeTensor(height, width, 16, 0, dtype)

    def op(kind: int, source: int, target: int, weight: Any = None, **changes: Any) -> NativeOp:
        name = f"operator of kind {kind}"
        made = NativeOp(kind, name, source, target, 16, 16, weight=weight, **changes)
        made.scale, made.bias = (random.uniform(0.01, 0.02, 16).astype(np.float32) for _ in range(2))
        return made

    def int8(*shape: int) -> np.ndarray[Any, Any]:
        return random.integers(-127, 128, shape, np.int8)

    first = op(CONV, 0, 1, int8(13, 3, 3, 3), kh=3, kw=3, sy=2, sx=2, pt=1, pl=1, out_h=4, out_w=8)
    first.cin, first.cout, first.scale, first.bias = 3, 13, np.ones(13, np.float32), np.ones(13, np.float32)
    beside = op(POOL, 0, 1, kh=2, kw=2, sy=2, sx=2, out_h=4, out_w=8, out_offset=13)
    beside.cin, beside.cout, beside.scale, beside.bias = 3, 3, np.ones(3, np.float32), np.ones(3, np.float32)
    deep = op(DEPTHWISE, 1, 2, int8(16, 3, 3), kh=3, kw=3, dy=2, dx=2, pt=2, pl=2, out_h=4, out_w=8)
    total = op(CONV, 2, 3, int8(16, 1, 1, 8), groups=2, residual=1, residual_scale=0.5, out_h=4, out_w=8)
    added = op(ADD, 3, 4, residual=2, residual_scale=0.25, out_h=4, out_w=8)
    eighths = op(CONV, 4, 5, int8(16, 1, 1, 16), out_h=4, out_w=8)
    up = op(UPSAMPLE, 5, 6, out_h=8, out_w=16)
    head = op(HEAD, 6, -1, random.normal(size=(3, 16, 1, 1)).astype(np.float32), out_h=8, out_w=16)
    up.scale = up.bias = head.scale = None
    head.cout, head.bias = 3, np.zeros(3, np.float32)
    small = [tensor(4, 8) for _ in range(4)]
    tensors = [NativeTensor(8, 16, 3), *small, tensor(4, 8, S16), tensor(8, 16)]
    return program_of(tensors, [first, beside, deep, total, added, eighths, up, head])


def saved(program: NativeProgram) -> bytes:
    stream = io.BytesIO()
    write_program(program, stream)
    return stream.getvalue()


def written(folder: Path, data: bytes) -> Path:
    path = folder / "m.gsn"
    path.write_bytes(data)
    return path


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return stream.getvalue()


def npy(array: Any, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def with_json(change: Callable[[Any], Any]) -> bytes:
    """The file of `every_kind` with its JSON changed."""
    parts = members(saved(every_kind()))
    known = json.loads(np.load(io.BytesIO(parts["program.npy"])).tobytes())
    result = change(known)
    text = json.dumps(known if result is None else result)
    parts["program.npy"] = npy(np.frombuffer(text.encode(), np.uint8))
    return packed(parts)


def test_a_program_comes_back_as_it_was(tmp_path: Path) -> None:
    program = every_kind()
    program.calibration = {"method": "mse", "frames": 4}
    path = tmp_path / "folder" / "m.gsn"
    save_program(program, path)
    found = load_program(path)
    assert (found.spec, found.tensors, found.precision) == (program.spec, program.tensors, "int8")
    assert found.calibration == program.calibration
    for one, other in zip(found.ops, program.ops, strict=True):
        for field in fields(NativeOp):
            assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name
    assert saved(found) == saved(program) == path.read_bytes(), "the same bytes every time"


def test_multiply_accumulates() -> None:
    assert [op.macs for op in every_kind().ops] == [13 * 27 * 32, 0, 144 * 32, 128 * 32, 0, 256 * 32, 0, 48 * 128]


@pytest.mark.parametrize("keep", [0, 1, 30, 500, -1, -40, -2000])
def test_a_cut_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = written(tmp_path, saved(every_kind())[:keep])
    with pytest.raises(GradsegError, match=r"m\.gsn: (is empty|damaged, or not a GradSeg native program)"):
        load_program(path)


def test_what_is_no_file_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradsegError, match=r"no such file; expected a GradSeg native program \(\.gsn\)"):
        load_program(tmp_path / "none.gsn")
    for data in (b"text", packed({}), packed({"program.npy": b"nothing"}), packed({"other.npy": npy(np.zeros(2))})):
        with pytest.raises(GradsegError, match=r"damaged, or not a GradSeg native program .*export/to_native\.py"):
            load_program(written(tmp_path, data))


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["program", "weight0"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    parts = members(saved(every_kind()))
    parts[f"{name}.npy"] = npy(np.array([Trap(tmp_path / "sprung")], object), allow_pickle=True)
    with pytest.raises(GradsegError, match="damaged"):
        load_program(written(tmp_path, packed(parts)))
    assert not (tmp_path / "sprung").exists()


def test_an_array_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    parts = members(saved(every_kind()))
    parts["weight0.npy"] = npy(np.zeros(50_000_000, np.int8))
    with pytest.raises(GradsegError, match=r"weight0 has 50000128 bytes, 351 are expected"):
        load_program(written(tmp_path, packed(parts, zipfile.ZIP_DEFLATED)))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((13, 3, 3, 2), np.int8), r"weight0 is int8 \(13, 3, 3, 2\), expected int8 \(13, 3, 3, 3\)"),
        (np.zeros((13, 3, 3, 3), np.uint8), r"weight0 is uint8"),
        (np.zeros(351, np.int8), r"weight0 is int8 \(351,\)"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(tmp_path: Path, array: Any, said: str) -> None:
    parts = members(saved(every_kind()))
    parts["weight0.npy"] = npy(array)
    with pytest.raises(GradsegError, match=said):
        load_program(written(tmp_path, packed(parts)))


def set_in(*path: Any) -> Callable[[Any], None]:
    """Sets what stands under a path of keys to the last one."""
    *keys, last, value = path

    def change(known: Any) -> None:
        for key in keys:
            known = known[key]
        known[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda known: [], "format None, this version reads 1"),
        (set_in("format", 2), "format 2, this version reads 1"),
        (lambda known: known.pop("spec") and None, r"program: fields missing \['spec'\]"),
        (set_in("more", 1), r"unknown \['more'\]"),
        (set_in("precision", 8), r"program: precision is '8', expected str"),
        (set_in("spec", "classes", ["one"]), r"1 classes"),
        (set_in("spec", "input_hw", [16, 16]), r"frame of 8x16, not the spec's size"),
        (set_in("tensors", []), r"0 tensors and 8 operators"),
        (set_in("tensors", 1, 5), r"tensor 1 is no JSON object"),
        (set_in("tensors", 1, "height", "4"), r"tensor 1: height is '4', expected int"),
        (set_in("tensors", 1, "height", True), r"tensor 1: height is 'True', expected int"),
        (set_in("tensors", 1, "height", 4.0), r"tensor 1: height is '4.0', expected int"),
        (set_in("tensors", 1, "height", 0), r"tensor 1: 0x8"),
        (set_in("tensors", 1, "height", 2**40), r"tensor 1: 1099511627776x8"),
        (set_in("tensors", 1, "channels", 13), r"tensor 1: 13 channels"),
        (set_in("tensors", 1, "channels", 24), r"tensor 1: 24 channels, no multiple of 16"),
        (set_in("tensors", 1, "dtype", 2), r"tensor 1: dtype 2"),
        (set_in("tensors", 1, "zero", 256), r"tensor 1: zero is 256"),
        (set_in("tensors", 1, "halo", -1), r"tensor 1: halo -1"),
        (set_in("tensors", 1, "halo", 1), r"operator 2 \(.*\): reads beyond its input's halo"),
        (set_in("tensors", 0, "channels", 16), r"tensor 0: the frame is not uint8 of 3 channels"),
        (set_in("ops", 0, "kind", 9), r"operator 0 \(operator of kind 0\): kind 9"),
        (set_in("ops", 0, "kind", 4), r"weight0 is int8 .*, expected float32"),
        (set_in("ops", 2, "input", 5), r"operator 2 .*: reads tensor 5, which nothing has written"),
        (set_in("ops", 2, "input", -1), r"operator 2 .*: reads tensor -1"),
        (set_in("ops", 2, "output", 99), r"operator 2 .*: writes tensor 99"),
        (set_in("ops", 2, "output", 0), r"operator 2 .*: writes tensor 0"),
        (set_in("ops", 2, "output", 1), r"operator 2 .*: writes tensor 1"),
        (set_in("ops", 3, "residual", 6), r"operator 3 .*: adds tensor 6"),
        (set_in("ops", 3, "residual", 0), r"operator 3 .*: adds tensor 0"),
        (set_in("ops", 3, "residual_scale", 1e300), r"operator 3 .*: residual_scale is 1e\+300"),
        (set_in("ops", 3, "groups", 3), r"weight3 is int8"),
        (set_in("ops", 3, "groups", 0), r"weight3 is int8"),
        (set_in("ops", 4, "groups", 0), r"operator 4 .*: groups is 0, expected 1"),
        (set_in("ops", 4, "groups", 3), r"operator 4 .*: 3 groups of 16 channels"),
        (set_in("ops", 4, "weight", "weight4"), r"operator 4: weight has no use here"),
        (set_in("ops", 0, "cout", 10**12), r"weight0 is int8"),
        (set_in("ops", 0, "pt", 2), r"operator 0 .*: reads beyond its input's halo"),
        (set_in("ops", 0, "out_h", 5), r"operator 0 .*: (reads beyond its input's halo|writes rows beyond 4)"),
        (set_in("ops", 0, "oy", 2), r"operator 0 .*: writes rows beyond 4"),
        (set_in("ops", 0, "px", 1), r"operator 0 .*: writes columns beyond 8"),
        (set_in("ops", 0, "out_offset", 4), r"operator 0 .*: writes channels beyond 16"),
        (set_in("ops", 1, "out_offset", 14), r"operator 1 .*: writes channels beyond 16"),
        (set_in("ops", 2, "dy", 1), r"operator 2 .*: not in the form of its kind"),
        (set_in("ops", 4, "residual", -1), r"operator 4 .*: not in the form of its kind"),
        (set_in("ops", 6, "out_h", 4), r"operator 6 .*: does not double the size"),
        (set_in("ops", 7, "out_h", 4), r"operator 7 .*: does not give labels of the frame's size"),
        (set_in("ops", 7, "output", 6), r"operator 7 .*: does not give the spec's classes"),
        (set_in("ops", 0, "weight", "weight3"), r"operator 0: its weight is 'weight3'"),
        (lambda known: known["ops"][0].pop("weight") and None, r"operator 0 .*: weight is not \(13, 3, 3, 3\)"),
        (lambda known: known["ops"].pop() and None, r"operator 6 .*: the head, and nothing else, stands last"),
    ],
)
def test_every_number_is_checked(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(GradsegError, match=said) as caught:
        load_program(written(tmp_path, with_json(change)))
    assert caught.value.exit_code == 2 and "m.gsn: " in str(caught.value) and len(str(caught.value)) < 500


def test_numbers_that_are_none_are_refused() -> None:
    program = every_kind()
    scale = program.ops[0].scale
    assert scale is not None
    scale[3] = np.nan
    with pytest.raises(Problem, match=r"operator 0 .*: scale is not finite"):
        check_program(program)


NUMBERS = [field.name for field in fields(NativeOp) if field.name not in ("name", "residual_scale", *ARRAYS)]
VALUES = st.one_of(st.integers(-3, 20), st.sampled_from([64, 255, 256, 4096, 2**15, 2**31 - 1, 2**31, -(2**31), 2**63]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 7), name=st.sampled_from(NUMBERS), value=VALUES)
def test_whatever_passes_stays_inside_its_tensors(which: int, name: str, value: int) -> None:
    """Any one number changed: refused, or what it reads and writes lies inside."""
    program = every_kind()
    setattr(program.ops[which], name, value)
    try:
        check_program(program)
    except Problem:
        return
    for op in program.ops[:-1]:
        source, target = program.tensors[op.input], program.tensors[op.output]
        if op.kind != UPSAMPLE:
            assert -op.pt >= -source.halo and -op.pl >= -source.halo
            assert (op.out_h - 1) * op.sy - op.pt + (op.kh - 1) * op.dy < source.height + source.halo
            assert (op.out_w - 1) * op.sx - op.pl + (op.kw - 1) * op.dx < source.width + source.halo
        assert op.py >= 0 and (op.out_h - 1) * op.oy + op.py < target.height
        assert op.px >= 0 and (op.out_w - 1) * op.ox + op.px < target.width
        assert op.out_offset >= 0 and op.out_offset + op.cout <= target.channels


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_any_changed_byte_is_harmless(tmp_path: Path, at: float, byte: int) -> None:
    """A file is read, or refused in one line; a checksum guards the arrays."""
    data = bytearray(saved(every_kind()))
    data[int(at * len(data))] = byte
    try:
        load_program(written(tmp_path, bytes(data)))
    except GradsegError as error:
        assert "m.gsn: " in str(error)
