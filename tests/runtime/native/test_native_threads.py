"""The native engine's threads: cores that it lends, frames that it brings in itself."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_toys import HW, frames
from native_toys import library, program_of, run_plan, toy_program

from gradseg.runtime.engines.native import NativeEngine
from gradseg.runtime.engines.protocol import lending
from gradseg.runtime.native.files import save_program
from gradseg.runtime.native.frames import functions
from gradseg.runtime.native.program import CONV, HEAD, NativeOp, NativeTensor
from gradseg.runtime.preprocess import Preprocessor, resize_labels

END = NativeTensor(*HW, 16)


@pytest.fixture
def gsn(tmp_path: Path) -> Path:
    library()
    save_program(toy_program(), tmp_path / "m.gsn")
    return tmp_path / "m.gsn"


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_cores_lent_meanwhile_change_nothing(threads: int) -> None:
    images = [frame[0] for frame in frames()]
    plan, over = library().create(toy_program(), threads), threading.Event()
    expected = [run_plan(plan, image, END) for image in images]

    def borrower() -> None:
        while not over.is_set():
            plan.borrow()
            plan.give_back()

    borrowers = [threading.Thread(target=borrower) for _ in range(2)]  # more than one at a time
    for each in borrowers:
        each.start()
    try:
        same = [
            np.array_equal(run_plan(plan, image, END), wanted)
            for _ in range(20)
            for image, wanted in zip(images, expected, strict=True)
        ]
    finally:
        over.set()
        for each in borrowers:
            each.join()
    assert all(same)


def test_a_core_stays_lent_from_frame_to_frame() -> None:
    image, plan = frames()[0][0], library().create(toy_program(), 2)
    expected = run_plan(plan, image, END)
    for _ in range(3):  # more often than there are threads to lend
        plan.borrow()
        assert np.array_equal(run_plan(plan, image, END), expected)
    for _ in range(3):
        plan.give_back()
        assert np.array_equal(run_plan(plan, image, END), expected)


def test_who_lends(gsn: Path) -> None:
    two, one = NativeEngine(gsn, 2), NativeEngine(gsn, 1)
    assert lending(two, 2) is two and lending(two, 1) is two
    assert lending(two, 3) is None, "a core is free"
    assert lending(one, 1) is None, "there is nothing to lend"
    two.close()
    with pytest.raises(RuntimeError, match="closed"):
        two.borrow_core()


def wide_engine(folder: Path) -> NativeEngine:
    """Of a network that is wide enough for the native resizes: one convolution and the head."""
    random, (height, width) = np.random.default_rng(3), (40, 160)
    conv = NativeOp(CONV, "conv", 0, 1, 3, 16, weight=random.integers(-127, 128, (16, 3, 3, 3), np.int8))
    conv.kh = conv.kw = 3
    conv.pt = conv.pl = 1
    conv.scale, conv.bias = np.full(16, 0.004, np.float32), np.full(16, 90, np.float32)
    head = NativeOp(HEAD, "head", 1, -1, 16, 5, weight=random.normal(size=(5, 16, 1, 1)).astype(np.float32))
    head.bias = np.zeros(5, np.float32)
    conv.out_h, conv.out_w = head.out_h, head.out_w = height, width
    program = program_of([NativeTensor(height, width, 3), NativeTensor(height, width, 16)], [conv, head], 5)
    save_program(program, folder / "wide.gsn")
    return NativeEngine(folder / "wide.gsn", 3)


@pytest.mark.parametrize("frame_hw", [(60, 100), (37, 181), (200, 130)])
def test_frames_and_labels_of_another_size_are_the_preprocessors(tmp_path: Path, frame_hw: Any) -> None:
    library()
    if functions() is None:
        pytest.skip("needs a CPU with AVX-512 VBMI")
    engine, random = wide_engine(tmp_path), np.random.default_rng(7)
    engine.expect(frame_hw)
    for _ in range(3):
        whole = random.integers(0, 256, (frame_hw[0], frame_hw[1] + 5, 3), np.uint8)
        frame = whole[:, 2:-3]  # rows further apart than they are long
        expected = engine.infer(Preprocessor(engine.frame_hw)(frame)).copy()
        assert len(np.unique(expected)) > 1
        assert engine.load(frame) and np.array_equal(engine.infer_loaded(), expected)
        large: np.ndarray[Any, Any] = np.full(frame_hw, 99, np.uint8)
        assert engine.spread(large) and np.array_equal(large, resize_labels(expected[0], frame_hw))
        assert not engine.load(frame[:, ::-1]), "from right to left"
    assert not engine.load(np.zeros((*engine.frame_hw, 3), np.uint8)), "of its own size already"
    assert not engine.spread(np.empty(engine.frame_hw, np.uint8)), "of their own size already"
    engine.close()
