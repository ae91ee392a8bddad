"""The legend in pictures: only what is seen, steady, small, in true colours, and the rest of the picture untouched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core import random_frame

from gradseg.runtime.sinks.legend import HOLD, PART, ROWS
from gradseg.runtime.sinks.overlay import MODES, Overlay

HW = (240, 320)
NAMES = [f"class {index}" for index in range(150)]
PALETTE = [(index, 250, 100) for index in range(150)]  # no grey, as letters on a grey frame are


def bands(*classes: int, hw: tuple[int, int] = HW) -> np.ndarray[Any, Any]:
    """Labels: these classes in columns of equal width."""
    return np.broadcast_to(np.repeat(classes, -(-hw[1] // len(classes)))[: hw[1]].astype(np.uint8), hw).copy()


def colours(overlay: Overlay, labels: np.ndarray[Any, Any]) -> set[int]:
    """Classes whose true colour stands in the picture of a grey frame, where the blend has none of them."""
    picture = overlay(np.full((*labels.shape, 3), 128, np.uint8), labels)
    seen = {tuple(int(value) for value in colour) for colour in picture.reshape(-1, 3)[:, ::-1]}
    return {index for index, colour in enumerate(PALETTE) if colour in seen}


def legend(hold: int = HOLD, alpha: float = 0.0, mode: str = "overlay") -> Overlay:
    return Overlay(PALETTE, mode, alpha, NAMES, hold)


@pytest.mark.parametrize("mode", MODES)
def test_it_stands_in_the_corner_of_the_coloured_picture_alone(mode: str) -> None:
    frame, labels = random_frame(HW, 0), bands(3, 7, 9)
    plain, named = Overlay(PALETTE, mode)(frame, labels), legend(alpha=0.5, mode=mode)(frame, labels)
    rows, columns, _ = (plain != named).nonzero()
    left = HW[1] if mode == "side-by-side" else 0
    assert 0 < rows.max() < HW[0] // 2 and left < columns.min() <= columns.max() < left + HW[1] // 2


def test_the_classes_that_are_seen_in_their_true_colours() -> None:
    assert colours(legend(), bands(3, 7, 9)) == {3, 7, 9}
    assert colours(legend(), bands(3, 255)) == {3}, "a value without a class has no name"
    assert colours(legend(), bands(255)) == set()


def test_a_class_that_flickers_stays() -> None:
    steady, single = legend(), legend(hold=1)
    for overlay in (steady, single):
        assert colours(overlay, bands(3, 7)) == {3, 7}
    assert colours(single, bands(3)) == {3}
    for _ in range(HOLD - 1):
        assert colours(steady, bands(3)) == {3, 7}
    assert colours(steady, bands(3)) == {3}


def test_of_many_classes_the_largest_are_listed_in_a_part_of_the_picture() -> None:
    overlay, labels = legend(), bands(*range(150), hw=(360, 1200))
    labels[:, 600:] = 140
    assert 140 in colours(overlay, labels) and len(colours(overlay, labels)) <= ROWS - 1
    frame = random_frame(labels.shape, 1)
    rows, columns, _ = (overlay(frame, labels) != frame).nonzero()
    assert rows.max() <= (PART + 0.1) * 360 and columns.max() < 600


def test_it_is_drawn_anew_only_for_another_set(monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = legend(hold=1)
    drawn: list[Any] = []
    real = overlay._legend._render
    monkeypatch.setattr(overlay._legend, "_render", lambda pixels: (drawn.append(pixels), real(pixels)))
    for labels in (bands(3, 7), bands(7, 3), bands(3, 3, 7), bands(7), bands(3, 7), bands(3, 7, hw=(100, 300))):
        colours(overlay, labels)
    assert len(drawn) == 4


@given(st.tuples(st.integers(1, 90), st.integers(1, 200)), st.sampled_from(MODES), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_pictures_of_any_size_are_taken(hw: tuple[int, int], mode: str, count: int) -> None:
    labels = bands(*range(count), hw=hw)
    overlay = Overlay(PALETTE, mode, classes=["a name that is much too long for it", "", "Gebäude", *NAMES])
    assert overlay(random_frame(hw, 0), labels).shape[:2] == overlay.output_hw(hw)
