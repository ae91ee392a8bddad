"""The native engine's label head: the integers of its header on every instruction set, and what rounding costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_reference import head, head_integers
from native_toys import library, program_of, run_plan

from gradseg.base.errors import GradsegError
from gradseg.runtime.native.program import CONV, HEAD, NativeOp, NativeProgram, NativeTensor

ISAS = ("scalar", "avx2", "avx-vnni", "avx512-vnni", "neon-dotprod", "neon-i8mm")


def head_program(weight: Any, bias: Any, height: int = 2, width: int = 37, seed: int = 0) -> NativeProgram:
    """The frame -> a 1x1 convolution to what the head reads, spread over 0..255 and often clipped -> the head.

    weight: (classes, channels, 1 or 2, the same); bias: (classes,).
    """
    random = np.random.default_rng(seed)
    classes, inputs, size = weight.shape[:3]
    source = NativeTensor(height, width, -(-inputs // 16) * 16)
    first = NativeOp(CONV, "first", 0, 1, 3, inputs, out_h=height, out_w=width)
    first.weight = random.integers(-127, 128, (inputs, 1, 1, 3), np.int8)
    first.scale, first.bias = np.full(inputs, 0.01, np.float32), random.uniform(0, 255, inputs).astype(np.float32)
    last = NativeOp(HEAD, "head", 1, -1, inputs, classes, kh=size, kw=size, out_h=height * size, out_w=width * size)
    last.weight, last.bias = np.ascontiguousarray(weight, np.float32), np.ascontiguousarray(bias, np.float32)
    return program_of([NativeTensor(height, width, 3), source], [first, last])


def image_for(program: NativeProgram, seed: int = 0) -> np.ndarray[Any, Any]:
    """Noise, with black and white pixels."""
    random, frame = np.random.default_rng(seed), program.tensors[0]
    image = random.integers(0, 256, (frame.height, frame.width, 3), np.uint8)
    image[random.random(image.shape[:2]) < 0.2] = 255
    image[random.random(image.shape[:2]) < 0.2] = 0
    return image


def labels_of(program: NativeProgram, isa: str, threads: int = 1) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Labels, and what the head read."""
    plan, last = library().create(program, threads, isa), program.ops[-1]
    labels = run_plan(plan, image_for(program), NativeTensor(last.out_h, last.out_w, 16))
    source = plan.read(1)
    assert source is not None
    plan.close()
    return labels, source


def check_everywhere(program: NativeProgram) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Labels are those of the integers, on every instruction set that is here; labels and inputs."""
    found = [labels_of(program, isa) for isa in ISAS if library().isa(isa) is not None]
    expected = head(program.ops[-1], {1: found[0][1]}).argmax(axis=2)
    for labels, _ in found:
        assert np.array_equal(labels, expected)
    return found[0]


def weights_of(random: Any, form: str, classes: int, inputs: int, size: int) -> tuple[Any, Any]:
    weight, bias = random.normal(size=(classes, inputs, size, size)), random.normal(size=classes) * 9
    if form == "tiny":
        return weight * 1e-38, bias * 1e-38
    if form == "huge":
        return weight * 3e37, bias * 1e37
    if form == "largest":  # every sum is as great as it can be, of either sign
        return np.where(random.random(weight.shape[:1])[:, None, None, None] < 0.5, 1, -1) * np.ones_like(weight), bias
    if form == "few values":  # many equal scores
        return np.rint(weight / 2), np.rint(bias / 9)
    if form == "far biases":
        return weight, bias + random.choice([1e9, -1e9, 0], classes)
    if form == "one offset":
        return weight, bias + 1e6
    if form == "one large weight":
        weight.flat[random.integers(weight.size)] = 1e4
        return weight, bias
    assert form in ("usual", "zero")
    return (weight, bias) if form == "usual" else (weight * 0, bias * 0)


FORMS = ("usual", "tiny", "huge", "largest", "few values", "far biases", "one offset", "one large weight", "zero")


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    classes=st.one_of(st.integers(1, 256), st.sampled_from([1, 2, 3, 11, 19, 31, 32, 33, 64, 65, 256])),
    inputs=st.one_of(st.integers(1, 512), st.sampled_from([1, 13, 16, 16, 16, 24, 32, 64, 512])),
    size=st.integers(1, 2),
    width=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_labels_are_those_of_the_integers(
    form: str, classes: int, inputs: int, size: int, width: int, seed: int
) -> None:
    weight, bias = weights_of(np.random.default_rng(seed), form, classes, inputs, size)
    check_everywhere(head_program(weight, bias, 2, width, seed))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("classes", "inputs"), [(256, 512), (11, 16)])
def test_the_largest_head_and_a_usual_one(form: str, classes: int, inputs: int, size: int) -> None:
    weight, bias = weights_of(np.random.default_rng(size), form, classes, inputs, size)
    check_everywhere(head_program(weight, bias, 1, 17))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("equal", [(0, 1, 255), (31, 32, 33), (40, 100, 255), (63, 64), (5, 31)])
def test_the_first_of_equal_classes_wins(equal: tuple[int, ...], size: int) -> None:
    """Also where they lie in different chunks. Of the others, which are equal, too, the first wins on darker pixels."""
    weight, bias = np.zeros((256, 16, size, size)), np.full(256, 900.0)
    weight[list(equal)], bias[list(equal)] = np.random.default_rng(3).random((1, 16, size, size)), 0.0
    labels, _ = check_everywhere(head_program(weight, bias))
    other = min(set(range(256)) - set(equal))
    assert set(np.unique(labels)) == {equal[0], other}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("form", ["usual", "one offset", "far biases", "few values"])
@pytest.mark.parametrize(
    ("classes", "inputs", "most_near"), [(11, 16, 0.01), (19, 16, 0.01), (150, 64, 0.03), (150, 512, 0.2)]
)
def test_labels_are_those_of_real_numbers_unless_two_classes_are_near(
    classes: int, inputs: int, most_near: float, form: str, size: int
) -> None:
    """Rounding moves a score by at most (sum of inputs + 1) / 2 / scale, hence two scores by twice that."""
    weight, bias = weights_of(np.random.default_rng(classes), form, classes, inputs, size)
    program = head_program(weight, bias, 8, 40)
    last = program.ops[-1]
    assert last.weight is not None and last.bias is not None
    labels, source = check_everywhere(program)
    values = source[:, :, :inputs].astype(np.float64)
    scores = np.einsum("hwi,oiyx->hywxo", values, last.weight.astype(np.float64)) + last.bias.astype(np.float64)
    scores = scores.reshape(last.out_h, last.out_w, classes)
    bound = (values.sum(2) + 1).repeat(size, 0).repeat(size, 1) / head_integers(last).scale
    at_label = np.take_along_axis(scores, labels[:, :, None].astype(np.int64), 2)[:, :, 0]
    assert (scores.max(2) - at_label <= bound).all()
    second, first = np.moveaxis(np.partition(scores, -2, 2)[:, :, -2:], 2, 0)
    clear = first - second > bound
    assert np.array_equal(labels[clear], scores.argmax(2)[clear])
    if form != "few values":
        assert np.mean(~clear) <= most_near


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["weight", "bias"])
def test_numbers_that_are_none_are_refused(place: str, value: float) -> None:
    found, program = library(), head_program(np.ones((3, 16, 2, 2)), np.zeros(3))
    getattr(program.ops[-1], place).flat[-1] = value
    with pytest.raises(GradsegError, match="operator 1: a weight or bias of the label head is not finite"):
        found.create(program, 1)
