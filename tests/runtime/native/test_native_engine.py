"""The native library against a plain NumPy interpreter, operator by operator; its engine; to_native.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_toys import HW, SCENES, checkpoint, exported, frames, one_torch_thread  # noqa: F401
from foreign_toys import spec, toy
from hypothesis import given, settings
from hypothesis import strategies as st
from native_reference import run
from native_toys import check_library, library, program_of, quantised_for_native, run_plan, toy_program
from test_native_program import every_kind

from gradseg.base.errors import GradsegError
from gradseg.export import to_native
from gradseg.export.native.lower import native_program
from gradseg.graphs.deployment import deployment_from_logits
from gradseg.models.checkpoint import save_checkpoint
from gradseg.runtime.engines.native import NativeEngine
from gradseg.runtime.native import library as native_library
from gradseg.runtime.native.checks import check_program
from gradseg.runtime.native.files import load_program, save_program
from gradseg.runtime.native.library import ABI, Library, native_isa, open_library
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

ISAS = ("scalar", "avx2", "avx-vnni", "avx512-vnni", "neon-dotprod", "neon-i8mm")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Every one that this CPU and this build have."""
    if library().isa(request.param) is None:
        pytest.skip(f"needs a CPU and a build with {request.param}")
    return str(request.param)


@pytest.mark.parametrize("arch", ["erfnet", "dg4s-star", "dg2-star-light"])
def test_every_operator_of_a_network(arch: str, isa: str) -> None:
    check_library(toy_program(arch), frames()[0][0], isa)


def test_every_operator_of_a_foreign_network(isa: str) -> None:
    program = native_program(quantised_for_native(deployment_from_logits(toy("unet"), spec())))
    check_library(program, frames()[0][0], isa)


def test_every_kind_of_operator(isa: str) -> None:
    random = np.random.default_rng(1)
    check_library(every_kind(), random.integers(0, 256, (8, 16, 3), np.uint8), isa)


@st.composite
def convolutions(draw: st.DrawFn) -> NativeProgram:
    """The frame → 3x3 convolution → one convolution of any form → labels; values spread over all 8 bits."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    inputs = draw(st.sampled_from([3, 16, 20, 24, 64]))
    groups = draw(st.sampled_from([g for g in (1, 2, 4, inputs) if inputs % g == 0]))
    outputs = groups * draw(st.integers(1, max(1, 80 // groups)))
    kh, kw = draw(st.sampled_from([(1, 1), (3, 3), (3, 1), (1, 3), (2, 2), (5, 4)]))
    stride, dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2), (3, 3)]))
    pad = draw(st.integers(0, max(kh, kw) * dilation // 2))
    rows, columns = (size + 2 * pad - dilation * (k - 1) - 1 for size, k in ((height, kh), (width, kw)))
    out_h, out_w = max(rows // stride + 1, 1), max(columns // stride + 1, 1)
    apart = draw(st.sampled_from([1, 1, 2]))  # as the parts of a deconvolution are written
    offset = draw(st.sampled_from([0, 0, 3]))
    room = -(-(outputs + offset) // 16) * 16
    frame, source = NativeTensor(height, width, 3, zero=0x4080A0), NativeTensor(height, width, -(-inputs // 16) * 16)
    source.zero = draw(st.sampled_from([0, 37]))
    target = NativeTensor(out_h * apart, out_w * apart, room)
    first = _convolution(random, "first", 0, 1, (inputs, 3, 3, 3), 1)
    first.pt = first.pl = 1
    first.out_h, first.out_w = height, width
    second = _convolution(random, "second", 1, 2, (outputs, kh, kw, inputs // groups), groups)
    second.sy = second.sx = stride
    second.dy = second.dx = dilation
    second.pt = second.pl = pad
    second.out_h, second.out_w, second.out_offset = out_h, out_w, offset
    second.oy = second.ox = apart
    second.py = second.px = apart - 1
    tensors, ops = [frame, source, target], [first, second]
    if offset == 0 and apart == 1 and draw(st.booleans()):
        beside = _convolution(random, "beside", 1, 3, (outputs, kh, kw, inputs // groups), groups)
        for name in ("sy", "sx", "dy", "dx", "pt", "pl", "out_h", "out_w"):
            setattr(beside, name, getattr(second, name))
        tensors.append(NativeTensor(out_h, out_w, room))
        ops.insert(1, beside)
        second.residual, second.residual_scale = 3, float(np.float32(random.uniform(-1, 1)))
    head = NativeOp(HEAD, "head", 2, -1, room, 3, out_h=target.height, out_w=target.width)
    head.weight, head.bias = random.normal(size=(3, room, 1, 1)).astype(np.float32), np.zeros(3, np.float32)
    return program_of(tensors, [*ops, head])


def _convolution(random: Any, name: str, source: int, target: int, shape: Any, groups: int) -> NativeOp:
    outputs, kh, kw, inputs = shape
    op = NativeOp(CONV, name, source, target, inputs * groups, outputs, groups=groups, kh=kh, kw=kw)
    op.weight = random.integers(-127, 128, shape, np.int8)
    spread = 128.0 * 74 * np.sqrt(kh * kw * inputs)
    op.scale = random.uniform(40 / spread, 160 / spread, outputs).astype(np.float32)
    op.bias = random.uniform(0, 255, outputs).astype(np.float32)
    return op


@settings(max_examples=60, deadline=None)
@given(program=convolutions(), seed=st.integers(0, 99))
def test_convolutions_of_any_form(program: NativeProgram, seed: int) -> None:
    found, frame = library(), program.tensors[0]
    image = np.random.default_rng(seed).integers(0, 256, (frame.height, frame.width, 3), np.uint8)
    for isa in ISAS:
        if found.isa(isa) is not None:
            check_library(program, image, isa)


def test_threads_and_frames_change_nothing() -> None:
    """The same labels by any number of threads, and a frame leaves nothing behind for the next one."""
    program, found = toy_program(), library()
    end = NativeTensor(*HW, 16)
    plans = [found.create(program, threads) for threads in (1, 2, 3)]
    wanted = [run_plan(plans[0], frame[0], end) for frame in frames()]
    for plan in plans:
        for frame, expected in zip(reversed(frames()), reversed(wanted), strict=True):
            assert np.array_equal(run_plan(plan, frame[0], end), expected)
    assert len({labels.tobytes() for labels in wanted}) == len(wanted)


def test_rows_of_a_larger_frame() -> None:
    """The frame may be a part of a larger image."""
    wide = np.zeros((HW[0], HW[1] + 10, 3), np.uint8)
    wide[:, 4 : HW[1] + 4] = frames()[0][0]
    plan, end = library().create(toy_program(), 2), NativeTensor(*HW, 16)
    expected = run_plan(plan, frames()[0][0], end)
    assert np.array_equal(run_plan(plan, wide[:, 4 : HW[1] + 4], end), expected)


def test_labels_are_those_of_numpy() -> None:
    program, end = toy_program(), NativeTensor(*HW, 16)
    plan = library().create(program, 1)
    same = [np.mean(run_plan(plan, frame[0], end) == run(program, frame[0]).labels) for frame in frames()]
    assert max(same) > 0.999 and min(same) > 0.9, same


def saved_toy(folder: Path) -> Path:
    path = folder / "m.gsn"
    save_program(toy_program(), path)
    return path


def test_the_engine(tmp_path: Path) -> None:
    library()
    engine = NativeEngine(saved_toy(tmp_path), 2)
    assert (engine.precision, engine.threads, engine.batch, engine.frame_hw) == ("int8", 2, 1, HW)
    assert engine.device == "CPU" and engine.backend == f"gradseg-native {ABI} ({native_isa()})"
    assert engine.spec == exported_spec() and engine.calibration is not None
    labels = engine.infer(frames()[0])
    assert labels.shape == (1, *HW) and labels.dtype == np.uint8
    kept = labels.copy()
    assert engine.infer(frames()[1]) is labels and not np.array_equal(labels, kept)
    with pytest.raises(GradsegError, match=r"engine input: expected contiguous uint8 BGR \(1, 64, 96, 3\)"):
        engine.infer(frames()[0][:, ::2])
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="was closed"):
        engine.infer(frames()[0])


def exported_spec() -> Any:
    return checkpoint().spec


def test_what_each_operator_takes(tmp_path: Path) -> None:
    library()
    rows = NativeEngine(saved_toy(tmp_path), 1).profile(frames()[0])
    program = toy_program()
    assert [row[0] for row in rows] == [op.name for op in program.ops]
    assert sum(row[1] for row in rows) == sum(op.macs for op in program.ops) > 1e7
    assert all(row[2] > 0 and row[3] >= 0 for row in rows) and sum(row[3] for row in rows) > 0


def test_an_unknown_instruction_set_is_refused(tmp_path: Path) -> None:
    library()
    with pytest.raises(GradsegError, match=r"m\.gsn: this CPU or build has no mmx") as caught:
        NativeEngine(saved_toy(tmp_path), isa="mmx")
    assert caught.value.exit_code == 3


def test_a_spec_of_another_size_is_refused(tmp_path: Path) -> None:
    library()
    with pytest.raises(GradsegError, match="its frame size or classes are not those of the spec given"):
        NativeEngine(saved_toy(tmp_path), spec=exported_spec().with_size((128, 96)))


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "library_path", lambda: None)
    assert native_isa() is None
    with pytest.raises(GradsegError, match=r"was not built on this machine; build it .*pip install") as caught:
        open_library()
    assert caught.value.exit_code == 3
    with pytest.raises(GradsegError, match="was not built"):
        NativeEngine(saved_toy(tmp_path))


def test_a_library_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(b"text")
    monkeypatch.setenv(native_library.VARIABLE, str(other))
    assert native_isa() is None
    with pytest.raises(GradsegError, match=r"other\.so: cannot be loaded as the native engine") as caught:
        open_library()
    assert caught.value.exit_code == 3


def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    library()
    path = native_library.library_path()
    monkeypatch.setattr(native_library, "ABI", 99)
    with pytest.raises(GradsegError, match=r"the native engine's interface \d+, this version needs 99"):
        Library(str(path))


def test_what_the_library_refuses_is_said() -> None:
    program = every_kind()
    program.tensors[1].channels = 17
    with pytest.raises(GradsegError, match=r"the native engine cannot run this program: .+16"):
        library().create(program, 1)
    with pytest.raises(GradsegError, match=r"cannot run this program: .*threads"):
        library().create(every_kind(), 0)


def test_interpolation_of_extremes_does_not_overflow(isa: str) -> None:
    """What an upsampling reads may lie anywhere in its 16 bits."""
    small, large = NativeTensor(3, 5, 16), NativeTensor(6, 10, 16)
    first = NativeOp(CONV, "first", 0, 1, 3, 16, out_h=3, out_w=5)
    first.weight = np.full((16, 1, 1, 3), 127, np.int8)
    first.scale, first.bias = np.linspace(-1, 1, 16).astype(np.float32), np.zeros(16, np.float32)
    small.dtype = S16
    up = NativeOp(UPSAMPLE, "up", 1, 2, 16, 16, out_h=6, out_w=10)
    head = NativeOp(HEAD, "head", 2, -1, 16, 3, out_h=6, out_w=10)
    head.weight, head.bias = np.ones((3, 16, 1, 1), np.float32), np.zeros(3, np.float32)
    program = program_of([NativeTensor(3, 5, 3), small, large], [first, up, head])
    for level in (0, 1, 128, 255):
        check_library(program, np.full((3, 5, 3), level, np.uint8), isa)


def test_sums_and_poolings_of_any_size(isa: str) -> None:
    for height, width, channels in ((2, 2, 16), (4, 34, 48), (6, 10, 128)):
        random = np.random.default_rng(width)
        shape = (height, width, channels)
        tensors = [NativeTensor(height, width, 3), NativeTensor(*shape), NativeTensor(*shape), NativeTensor(*shape)]
        tensors += [NativeTensor(height // 2, width // 2, channels)]
        ops = [_convolution(random, "first", 0, 1, (channels, 1, 1, 3), 1), NativeOp(DEPTHWISE, "dw", 1, 2, 0, 0)]
        ops[1].weight = random.integers(-127, 128, (channels, 3, 3), np.int8)
        ops[1].kh = ops[1].kw = 3
        ops[1].pt = ops[1].pl = 1
        ops += [NativeOp(ADD, "sum", 2, 3, 0, 0, residual=1, residual_scale=-0.75), NativeOp(POOL, "pool", 3, 4, 0, 0)]
        ops[3].kh = ops[3].kw = ops[3].sy = ops[3].sx = 2
        for op in ops:
            op.out_h, op.out_w = program_size(tensors, op)
            if op.kind != CONV:
                op.cin = op.cout = channels
                op.scale = random.uniform(0.002, 0.9 if op.kind != DEPTHWISE else 0.004, channels).astype(np.float32)
                op.bias = random.uniform(-20, 200, channels).astype(np.float32)
        head = NativeOp(HEAD, "head", 4, -1, channels, 2, kh=2, kw=2, out_h=height, out_w=width)
        head.weight, head.bias = np.ones((2, channels, 2, 2), np.float32), np.zeros(2, np.float32)
        program = program_of(tensors, [*ops, head], 2)
        check_program(program)
        check_library(program, random.integers(0, 256, (height, width, 3), np.uint8), isa)


def program_size(tensors: list[NativeTensor], op: NativeOp) -> tuple[int, int]:
    return tensors[op.output].height, tensors[op.output].width


def saved_checkpoint(folder: Path) -> Path:
    path = folder / "net.pth"
    save_checkpoint(path, checkpoint().network)
    return path


def test_to_native(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library()
    out = tmp_path / "m.gsn"
    argv = [str(saved_checkpoint(tmp_path)), "-o", str(out), "--calib", SCENES, "--calib-frames", "4", "--threads", "1"]
    assert to_native.main(argv) == 0
    said = capsys.readouterr().out
    assert f"wrote {out}: " in said and "64x96, int8, 68 operators" in said
    assert "labels equal to its Q/DQ model's in ONNX Runtime on 9" in said and "INT8: labels equal to FP32's on" in said
    assert "65 of 66 convolutions in INT8, equalised and biases corrected" in said
    engine = NativeEngine(out, 1)
    assert engine.calibration is not None and engine.calibration["source"] == SCENES


def test_to_native_where_it_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native_library, "library_path", lambda: None)
    out = tmp_path / "m.gsn"
    model = tmp_path / "m.onnx"
    model.write_bytes(exported().SerializeToString())
    assert to_native.main([str(model), "-o", str(out), "--calib", SCENES, "--calib-frames", "2"]) == 0
    assert "built, not run: the native engine was not built on this machine" in capsys.readouterr().out
    assert load_program(out).spec == exported_spec()


def test_a_program_with_other_labels_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library()
    out = tmp_path / "m.gsn"
    right = NativeEngine.infer
    monkeypatch.setattr(NativeEngine, "infer", lambda self, batch: (right(self, batch) + 1) % 11)
    with pytest.raises(GradsegError, match=r"its labels are those of its Q/DQ model on only .*not written"):
        to_native.main([str(saved_checkpoint(tmp_path)), "-o", str(out), "--calib", SCENES, "--calib-frames", "2"])
    assert not out.exists()


def test_to_native_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(GradsegError, match=r"the output must end in \.gsn, such as -o m\.gsn"):
        to_native.main(["net.pth", "-o", str(tmp_path / "m.onnx")])
